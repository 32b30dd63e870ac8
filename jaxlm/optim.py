"""Optimizers and schedules as frozen configs with a `build`: the learning rate is a plain function of the step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxlm.types import Array

if TYPE_CHECKING:
    import optax

Rate = Callable[[Array], Array]


@dataclass(frozen=True)
class Constant:
    """`peak`, after a linear warm-up of `warmup` steps."""

    peak: float = 1e-3
    warmup: int = 0

    horizon = False

    def build(self, steps: int) -> Rate:
        """step (0 at the first update) -> learning rate."""
        return lambda step: self.peak * _warm(step, self.warmup)


@dataclass(frozen=True)
class InverseSqrt:
    """peak * min((step + 1) / warmup, sqrt(warmup / (step + 1))): Vaswani et al. 2017, equation 3, scaled to `peak`.

    The paper's own rate D^-0.5 * min(n^-0.5, n * warmup^-1.5) is peak = (D * warmup)^-0.5 * factor.
    """

    peak: float = 1e-3
    warmup: int = 4000

    horizon = False

    def build(self, steps: int) -> Rate:
        """step (0 at the first update) -> learning rate."""
        first = max(self.warmup, 1)
        return lambda step: self.peak * jnp.minimum((step + 1) / first, jnp.sqrt(first / (step + 1)))


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up to `peak`, then half a cosine down to `peak * floor` at the run's last step."""

    peak: float = 1e-3
    warmup: int = 0
    floor: float = 0.1

    horizon = True

    def build(self, steps: int) -> Rate:
        """step (0 at the first update) -> learning rate."""

        def rate(step):
            shape = 0.5 * (1.0 + jnp.cos(jnp.pi * _done(step, self.warmup, steps)))
            return self.peak * _warm(step, self.warmup) * (self.floor + (1.0 - self.floor) * shape)

        return rate


@dataclass(frozen=True)
class Linear:
    """Linear warm-up to `peak`, then a straight line down to `peak * floor` at the run's last step."""

    peak: float = 1e-3
    warmup: int = 0
    floor: float = 0.0

    horizon = True

    def build(self, steps: int) -> Rate:
        """step (0 at the first update) -> learning rate."""

        def rate(step):
            left = 1.0 - _done(step, self.warmup, steps)
            return self.peak * _warm(step, self.warmup) * (self.floor + (1.0 - self.floor) * left)

        return rate


Schedule = Constant | InverseSqrt | Cosine | Linear


@dataclass(frozen=True)
class AdamW:
    """Adam (Kingma and Ba 2015), with decoupled weight decay (Loshchilov and Hutter 2019) where `weight_decay` > 0.

    Attributes:
      schedule: the learning rate.
      b1, b2, eps: of Adam.
      weight_decay: on leaves of rank >= 2 only (no biases, no norms).
      clip: largest global norm of the gradient; 0 leaves it alone.
    """

    schedule: Schedule = Constant()
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip: float = 0.0

    def build(self, steps: int) -> "optax.GradientTransformation":
        """The optax transformation for a run of `steps` steps."""
        import jax
        import optax

        parts = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        parts.append(optax.scale_by_adam(self.b1, self.b2, self.eps))
        if self.weight_decay:
            mask = lambda params: jax.tree_util.tree_map_with_path(_decays, params)  # noqa: E731
            parts.append(optax.add_decayed_weights(self.weight_decay, mask))
        return optax.chain(*parts, optax.scale_by_learning_rate(self.schedule.build(steps)))


def _decays(path: tuple, leaf: Array) -> bool:
    """Matrices decay, vectors do not; a stack of layers adds an axis to both."""
    return leaf.ndim - any(getattr(key, "key", None) == "layers" for key in path) >= 2


def _warm(step: Array, warmup: int) -> Array:
    return jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def _done(step: Array, warmup: int, steps: int) -> Array:
    """Share of the steps after the warm-up that is done, in [0, 1]."""
    return jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)

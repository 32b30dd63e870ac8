"""Optimizers and schedules as frozen configs with a `build`: the learning rate is a plain function of the step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxlm.types import Array

if TYPE_CHECKING:
    import optax


ScheduleFn = Callable[[Array], Array]


@dataclass(frozen=True)
class Constant:
    """`peak`, after a linear warm-up of `warmup` steps."""

    peak: float = 1e-3
    warmup: int = 0

    needs_total_steps = False

    def build(self, steps: int) -> ScheduleFn:
        """step (0 at the first update) -> learning rate."""
        return lambda step: self.peak * _warmup_factor(step, self.warmup)


@dataclass(frozen=True)
class InverseSqrt:
    """peak * min((step + 1) / warmup, sqrt(warmup / (step + 1))): Vaswani et al. 2017, equation 3, scaled to `peak`.

    The paper's own rate D^-0.5 * min(n^-0.5, n * warmup^-1.5) is peak = (D * warmup)^-0.5 * factor.
    """

    peak: float = 1e-3
    warmup: int = 4000

    needs_total_steps = False

    def build(self, steps: int) -> ScheduleFn:
        """step (0 at the first update) -> learning rate."""
        first = max(self.warmup, 1)
        return lambda step: self.peak * jnp.minimum((step + 1) / first, jnp.sqrt(first / (step + 1)))


@dataclass(frozen=True)
class CosineDecay:
    """Linear warm-up to `peak`, then half a cosine down to `peak * floor` at the run's last step."""

    peak: float = 1e-3
    warmup: int = 0
    min_lr_ratio: float = 0.1

    needs_total_steps = True

    def build(self, steps: int) -> ScheduleFn:
        """step (0 at the first update) -> learning rate."""

        def rate(step):
            shape = 0.5 * (1.0 + jnp.cos(jnp.pi * _decay_progress(step, self.warmup, steps)))
            return (
                self.peak * _warmup_factor(step, self.warmup) * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * shape)
            )

        return rate


@dataclass(frozen=True)
class LinearDecay:
    """Linear warm-up to `peak`, then a straight line down to `peak * floor` at the run's last step."""

    peak: float = 1e-3
    warmup: int = 0
    min_lr_ratio: float = 0.0

    needs_total_steps = True

    def build(self, steps: int) -> ScheduleFn:
        """step (0 at the first update) -> learning rate."""

        def rate(step):
            left = 1.0 - _decay_progress(step, self.warmup, steps)
            return (
                self.peak * _warmup_factor(step, self.warmup) * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * left)
            )

        return rate


@dataclass(frozen=True)
class StepDecay:
    """`peak` for `hold` steps, then times `factor` after every `every` further steps, from the first of them on.

    Zaremba et al. 2014, section 4.1: 1.0 for 6 epochs, then divided by 1.2 after each epoch (the medium LSTM).
    """

    peak: float = 1.0
    hold_steps: int = 1000
    decay_every: int = 1000
    decay_factor: float = 0.5

    needs_total_steps = False

    def build(self, steps: int) -> ScheduleFn:
        """step (0 at the first update) -> learning rate."""
        return lambda step: (
            self.peak * self.decay_factor ** jnp.maximum((step - self.hold_steps) // self.decay_every + 1, 0)
        )


Schedule = Constant | InverseSqrt | CosineDecay | LinearDecay | StepDecay


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
            mask = lambda params: jax.tree_util.tree_map_with_path(_has_weight_decay, params)  # noqa: E731
            parts.append(optax.add_decayed_weights(self.weight_decay, mask))
        return optax.chain(*parts, optax.scale_by_learning_rate(self.schedule.build(steps)))


@dataclass(frozen=True)
class SGD:
    """Plain gradient descent, with momentum (Polyak 1964) and L2 weight decay where they are more than 0.

    Attributes:
      schedule: the learning rate, for gradients of the mean loss a token.
      momentum: of the update.
      weight_decay: added to the gradient, of leaves of rank >= 2 only.
      clip: largest global norm of the gradient; 0 leaves it alone.
    """

    schedule: Schedule = Constant(1.0)
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0

    def build(self, steps: int) -> "optax.GradientTransformation":
        """The optax transformation for a run of `steps` steps."""
        import jax
        import optax

        parts = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        if self.weight_decay:
            mask = lambda params: jax.tree_util.tree_map_with_path(_has_weight_decay, params)  # noqa: E731
            parts.append(optax.add_decayed_weights(self.weight_decay, mask))
        if self.momentum:
            parts.append(optax.trace(self.momentum))
        return optax.chain(*parts, optax.scale_by_learning_rate(self.schedule.build(steps)))


def _has_weight_decay(path: tuple, leaf: Array) -> bool:
    """Matrices decay, vectors do not; a stack of layers adds an axis to both."""
    return leaf.ndim - any(getattr(key, "key", None) == "layers" for key in path) >= 2


def _warmup_factor(step: Array, warmup: int) -> Array:
    return jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def _decay_progress(step: Array, warmup: int, steps: int) -> Array:
    """Share of the steps after the warm-up that is done, in [0, 1]."""
    return jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)

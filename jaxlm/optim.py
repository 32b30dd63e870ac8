"""Optimizers and learning rate schedules as frozen configs: `build` returns the optax transformation, or the schedule.

A schedule is a function of the step (0 at the first update). Those that depend on the length of the run, which then
cannot be extended, have `needs_total_steps`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxlm.pytree import map_named
from jaxlm.types import Array

if TYPE_CHECKING:
    import optax

ScheduleFn = Callable[[Array], Array]


@dataclass(frozen=True)
class Constant:
    """`peak`, after a linear warm-up of `warmup` steps."""

    peak: float = 1e-3
    warmup: int = 0

    def build(self, steps: int) -> ScheduleFn:
        return lambda step: self.peak * _warmup_factor(step, self.warmup)


@dataclass(frozen=True)
class InverseSqrt:
    """peak * min((step + 1) / warmup, sqrt(warmup / (step + 1))): Vaswani et al. 2017, equation 3, scaled to `peak`.

    The paper's own rate D^-0.5 * min(n^-0.5, n * warmup^-1.5) is peak = (D * warmup)^-0.5 * factor.
    """

    peak: float = 1e-3
    warmup: int = 4000

    def build(self, steps: int) -> ScheduleFn:
        first = max(self.warmup, 1)
        return lambda step: self.peak * jnp.minimum((step + 1) / first, jnp.sqrt(first / (step + 1)))


@dataclass(frozen=True)
class CosineDecay:
    """Linear warm-up to `peak`, then half a cosine down to `peak * min_lr_ratio` at the last step of the run."""

    peak: float = 1e-3
    warmup: int = 0
    min_lr_ratio: float = 0.1

    needs_total_steps = True

    def build(self, steps: int) -> ScheduleFn:
        return _warmup_and_decay(self, steps, lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


@dataclass(frozen=True)
class LinearDecay:
    """Linear warm-up to `peak`, then linear decay to `peak * min_lr_ratio` at the last step of the run."""

    peak: float = 1e-3
    warmup: int = 0
    min_lr_ratio: float = 0.0

    needs_total_steps = True

    def build(self, steps: int) -> ScheduleFn:
        return _warmup_and_decay(self, steps, lambda progress: 1.0 - progress)


@dataclass(frozen=True)
class StepDecay:
    """`peak` for `hold_steps`, then multiplied by `decay_factor`, and again every `decay_every` steps.

    Zaremba et al. 2014, section 4.1: 1.0 for 6 epochs, then divided by 1.2 after each epoch (the medium LSTM).
    """

    peak: float = 1.0
    hold_steps: int = 1000
    decay_every: int = 1000
    decay_factor: float = 0.5

    def build(self, steps: int) -> ScheduleFn:
        def rate(step: Array) -> Array:
            decays = jnp.maximum((step - self.hold_steps) // self.decay_every + 1, 0)
            return self.peak * self.decay_factor**decays

        return rate


Schedule = Constant | InverseSqrt | CosineDecay | LinearDecay | StepDecay


@dataclass(frozen=True)
class AdamW:
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
      schedule: the learning rate.
      b1, b2, eps: decay rates of the first and second moments of the gradient, and epsilon, of Adam.
      weight_decay: coefficient of weight decay, for matrices only (not for biases and norms).
      clip: maximum global norm of the gradient; larger gradients are scaled down to it; 0: no clipping.
    """

    schedule: Schedule = Constant()
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip: float = 0.0

    def build(self, steps: int) -> "optax.GradientTransformation":
        import optax

        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return _chain(self, steps, adam, *_weight_decay(self.weight_decay))


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum (Polyak 1964) and L2 regularization.

    Attributes:
      schedule: the learning rate, for gradients of the mean loss per token.
      momentum: momentum coefficient of the update.
      weight_decay: coefficient of L2 regularization, added to the gradient, for matrices only.
      clip: maximum global norm of the gradient; larger gradients are scaled down to it; 0: no clipping.
    """

    schedule: Schedule = Constant(1.0)
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0

    def build(self, steps: int) -> "optax.GradientTransformation":
        import optax

        momentum = [optax.trace(self.momentum)] if self.momentum else []
        return _chain(self, steps, *_weight_decay(self.weight_decay), *momentum)


def _chain(config: AdamW | SGD, steps: int, *transformations: Any) -> "optax.GradientTransformation":
    """Gradient clipping, the transformations, and the learning rate."""
    import optax

    clipping = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    return optax.chain(*clipping, *transformations, optax.scale_by_learning_rate(config.schedule.build(steps)))


def _weight_decay(weight_decay: float) -> list:
    """Weight decay of matrices; those of a stack of layers have one axis more."""
    import optax

    def is_matrix(path: str, leaf: Array) -> bool:
        return leaf.ndim - ("layers" in path.split("/")) >= 2

    return [optax.add_decayed_weights(weight_decay, partial(map_named, is_matrix))] if weight_decay else []


def _warmup_factor(step: Array, warmup: int) -> Array:
    return jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def _warmup_and_decay(config: CosineDecay | LinearDecay, steps: int, decay: Callable[[Array], Array]) -> ScheduleFn:
    """The schedule of a `decay` from 1 to 0; its argument is the finished share of the steps after the warm-up."""

    def rate(step: Array) -> Array:
        progress = jnp.clip((step - config.warmup) / max(steps - config.warmup, 1), 0.0, 1.0)
        factor = config.min_lr_ratio + (1.0 - config.min_lr_ratio) * decay(progress)
        return config.peak * _warmup_factor(step, config.warmup) * factor

    return rate

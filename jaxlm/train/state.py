"""Everything that a training run must remember between two steps, and nothing that it can recompute."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.streams import stream
from jaxlm.types import Array, Batch, Params


@struct.dataclass
class TrainState:
    """One pytree: what a checkpoint stores and what the train step donates.

    Attributes:
      step: updates done, int32.
      params: float32 parameters, a plain nested dict.
      opt_state: of the optax transformation.
      ema: exponential moving average of the parameters, or None.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None = None


def create(model: Any, optimizer: optax.GradientTransformation, batch: Batch, seed: int, ema: bool) -> TrainState:
    """A fresh state, a pure function of the seed; `batch` gives shapes only."""
    params = model.init(stream(seed, "init"), batch)["params"]
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)

"""Everything that a training run must remember between two steps, and nothing that it can recompute."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.leaves import part
from jaxlm.streams import stream
from jaxlm.tuning import Tuning
from jaxlm.types import Array, Batch, Params, State

ALL = Tuning()
"""From nothing, everything."""


@struct.dataclass
class TrainState:
    """One pytree: what a checkpoint stores and what the train step donates.

    Attributes:
      step: updates done, int32.
      params: float32 parameters, a plain nested dict.
      opt_state: of the optax transformation.
      ema: moving average of the parameters that are trained (None in the places of the others), or None.
      averaged: updates whose parameters are in `ema`, where it is a plain mean since some step (int32; 0: not begun).
      carry: the model's state after the last batch, where streams go on from batch to batch, or None.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None = None
    averaged: Array | None = None
    carry: State | None = None


def create(
    model: Any,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    seed: int,
    averages: str = "",
    carry: int = 0,
    tuning: Tuning = ALL,
) -> TrainState:
    """A fresh state, a pure function of the seed; `batch` gives shapes only.

    averages: "ema" (a moving average of the parameters), "mean" (a plain one, which begins later) or "" (none).
    carry: rows whose model state is carried from batch to batch.
    tuning: what is added to the parameters, and which of them are trained.
    """
    params = tuning.add(model.init(stream(seed, "init"), batch)["params"], stream(seed, "tuning"))
    learnt, _ = part(params, tuning.trains)
    average = jax.tree.map(jnp.copy, learnt) if averages else None
    averaged = jnp.zeros((), jnp.int32) if averages == "mean" else None
    rows = jax.tree.map(lambda x: jnp.zeros((carry, *x.shape[1:]), x.dtype), batch)
    state = blank_state(model, params, rows) if carry else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(learnt), average, averaged, state)


def blank_state(model: Any, params: Params, batch: Batch) -> State:
    """The model's state for the rows of `batch`, in zeros: where a stream begins it is not looked at."""
    start = jax.eval_shape(lambda params: model.apply({"params": params}, batch, 0, method="start"), params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)

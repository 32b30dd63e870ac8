"""Everything that a training run must remember between two steps, and nothing that it can recompute.

Randomness with an address: a key is named by what it is for and by the step, never by how many were drawn before.
"""

from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.finetuning import FineTuning
from jaxlm.models.properties import zero_model_state
from jaxlm.pytree import partition
from jaxlm.types import Array, Batch, Params, State


def rng_key(seed: int, purpose: str, step: int | Array = 0) -> Array:
    """The key for one purpose at one step. A new purpose never moves an old one's numbers."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), crc32(purpose.encode())), step)


TRAIN_ALL = FineTuning()
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
    averaged_updates: Array | None = None
    carry: State | None = None


def create_train_state(
    model: Any,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    seed: int,
    averages: str = "",
    carry_rows: int = 0,
    tuning: FineTuning = TRAIN_ALL,
) -> TrainState:
    """A fresh state, a pure function of the seed; `batch` gives shapes only.

    averages: "ema" (a moving average of the parameters), "mean" (a plain one, which begins later) or "" (none).
    carry: rows whose model state is carried from batch to batch.
    tuning: what is added to the parameters, and which of them are trained.
    """
    params = tuning.add_adapters(model.init(rng_key(seed, "init"), batch)["params"], rng_key(seed, "tuning"))
    learnt, _ = partition(params, tuning.is_trainable)
    average = jax.tree.map(jnp.copy, learnt) if averages else None
    averaged = jnp.zeros((), jnp.int32) if averages == "mean" else None
    rows = jax.tree.map(lambda x: jnp.zeros((carry_rows, *x.shape[1:]), x.dtype), batch)
    state = zero_model_state(model, params, rows) if carry_rows else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(learnt), average, averaged, state)

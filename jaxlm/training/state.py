"""The training state, all that a run must remember between two steps; and its random keys, by purpose and step."""

from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.finetuning import FineTuning
from jaxlm.models.properties import forward_method, init_params, zero_model_state
from jaxlm.pytree import partition
from jaxlm.types import Array, Batch, Params, State

TRAIN_ALL = FineTuning()
"""Random initialization, all parameters trained."""


def rng_key(seed: int, purpose: str, step: int | Array = 0) -> Array:
    """The random key of one purpose at one step. A new purpose never changes the numbers of an old one."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), crc32(purpose.encode())), step)


@struct.dataclass
class TrainState:
    """One pytree: stored by a checkpoint, donated by the train step.

    Attributes:
      step: number of updates done, int32.
      params: float32 parameters, a plain nested dict.
      opt_state: state of the optax transformation.
      ema: average of the trained parameters (None in the places of the others), or None.
      averaged_updates: number of updates in `ema` if it is a plain mean (int32; 0: not begun), or None.
      carry: the model's state after the last batch if texts continue from batch to batch, or None.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None = None
    averaged_updates: Array | None = None
    carry: State | None = None


def create_train_state(
    model: Any, optimizer: optax.GradientTransformation, batch: Batch, seed: int, averaging: str = "",
    carry_rows: int = 0, finetuning: FineTuning = TRAIN_ALL,
) -> TrainState:  # fmt: skip
    """The state before the first step, a pure function of the seed.

    Args:
      batch: gives shapes only.
      averaging: "ema" (moving average of the parameters), "mean" (plain mean that begins later) or "" (none).
      carry_rows: number of rows whose model state is carried from batch to batch.
      finetuning: adapters to add, and the parameters to train.
    """
    params = init_params(model, rng_key(seed, "init"), batch)
    finetuning.check_targets(
        params, lambda params: model.apply({"params": params}, batch, method=forward_method(model))
    )
    params = finetuning.add_adapters(params, rng_key(seed, "tuning"))
    trained, _ = partition(params, finetuning.is_trainable)
    ema = jax.tree.map(jnp.copy, trained) if averaging else None
    averaged_updates = jnp.zeros((), jnp.int32) if averaging == "mean" else None
    rows = jax.tree.map(lambda x: jnp.zeros((carry_rows, *x.shape[1:]), x.dtype), batch)
    carry = zero_model_state(model, params, rows) if carry_rows else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema, averaged_updates, carry)

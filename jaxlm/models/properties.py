"""How long a row a model can read: tables of positions end."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.special_ids import numbered
from jaxlm.types import Batch, Params, State


def max_input_positions(model: Any) -> int | None:
    """Positions of a row, marks included, that a model with or without a head can read; None where there is no end."""
    while isinstance(model, FineTunable):
        model = model.model
    inner = numbered(model)
    if isinstance(inner, Encoder):
        return inner.max_length - inner.position_offset
    return inner.max_length if getattr(inner, "position", "") == "learned" else None


def zero_model_state(model: Any, params: Params, batch: Batch) -> State:
    """The model's state for the rows of `batch`, in zeros: where a stream begins it is not looked at."""
    start = jax.eval_shape(lambda params: model.apply({"params": params}, batch, 0, method="start"), params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)

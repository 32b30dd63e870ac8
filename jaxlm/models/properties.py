"""Facts about a model that do not need its parameters: longest input, empty state, shapes of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.batching.collate import MAX_WORD_CHARACTERS
from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.special_ids import numbered
from jaxlm.types import Batch, Params, State


def max_input_positions(model: Any) -> int | None:
    """Return the longest row, special tokens included, that a model can read; None: unlimited."""
    while isinstance(model, FineTunable):
        model = model.model
    inner = numbered(model)
    if isinstance(inner, Encoder):
        return inner.max_length - inner.position_offset
    return inner.max_length if getattr(inner, "position", "") == "learned" else None


def zero_model_state(model: Any, params: Params, batch: Batch) -> State:
    """Return zeros in the shapes of the model's state for `batch`: ignored in rows where a stream begins."""
    start = jax.eval_shape(lambda params: model.apply({"params": params}, batch, 0, method="start"), params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)


def dummy_batch(rows: int = 1, length: int = 8) -> Batch:
    """A batch with every field that a model may read; it gives shapes to `init`."""
    ids, valid = np.full((rows, length), 4, np.int32), np.ones((rows, length), bool)
    return Batch(
        source_BS=ids, source_valid_BS=valid, target_BT=ids, target_valid_BT=valid, label_BT=ids,
        token_label_BS=0 * ids, class_B=np.zeros(rows, np.int32),
        character_BSW=np.full((rows, length, MAX_WORD_CHARACTERS), 4, np.int32),
    )  # fmt: skip


def abstract_params(model: Any) -> Params:
    """Shapes and dtypes of the parameters, without computing anything."""
    return jax.eval_shape(model.init, jax.random.key(0), dummy_batch())["params"]

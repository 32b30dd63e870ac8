"""Properties of a model that do not depend on its parameters: longest input, empty state, special ids, shapes."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.data.tokenizers.simple import MAX_WORD_CHARS
from jaxlm.distributed.platforms import resolve_dtype
from jaxlm.errors import UserError
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.ensemble import Ensemble
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.prefix_lm import PrefixLM
from jaxlm.types import Batch, Params, SequenceModel, State

RUN_FIELDS = ("dropout", "attention_dropout", "activation_dropout", "init_std", "dtype", "scan", "remat")
"""The fields of a model that change how it is trained or run, and not the function that it computes."""


def model_dtype(model: Any) -> str:
    """Return the dtype of the products of a model, or of the model that it wraps, on this or the planned platform."""
    while not hasattr(model, "dtype") and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model
    return resolve_dtype(getattr(model, "dtype", "float32"))


def max_input_positions(model: Any) -> int | None:
    """Return the most tokens of a source, special ones included, that a model can read; None: any number."""
    while isinstance(model, FineTunable):
        model = model.model
    if isinstance(model, Encoder):
        return model.max_length - model.position_offset
    if isinstance(model, Ensemble):
        return min((limit for limit in map(max_input_positions, model.members) if limit is not None), default=None)
    return max_target_positions(model, int(isinstance(model, PrefixLM)))  # a target has one token at least


def max_target_positions(model: Any, source_tokens: Any = 0) -> Any:
    """Return the most target tokens after sources of these lengths (a number or an array); None: any number."""
    return model.max_target_tokens(source_tokens) if hasattr(model, "max_target_tokens") else None


def check_positions(model: Any, longest: Mapping[str, int]) -> None:
    """Raise UserError if the longest examples have more tokens than the model has positions.

    longest: tokens of each side and of both, as from `jaxlm.data.batching.batches.Batches.longest_example`.
    """
    limits = {"source": max_input_positions(model), "target": max_target_positions(model)}
    if isinstance(model, PrefixLM):
        limits = {"both": max_target_positions(model)}
    if isinstance(model, Decoder):
        del limits["source"]  # it ignores a source
    for side, limit in limits.items():
        if limit is not None and longest.get(side, 0) > limit:
            text = "source and target together" if side == "both" else f"a {side}"
            raise UserError(
                f"{text} of {longest[side]} tokens, but the model has {limit} positions: shorten the input (in "
                f"training --batching.max-length {limit}, of running text --batching.length {limit}) or train with a "
                "larger model.max_length"
            )


def with_special_ids(model: Any, special: SpecialIds) -> Any:
    """Return the model with the special ids of its tokenizer, which no experiment records, in every module."""
    fields = {"special": special} if getattr(model, "special", special) != special else {}
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.Module) and (changed := with_special_ids(inner, special)) is not inner:
        fields["model"] = changed
    return model.clone(**fields, parent=None) if fields else model


def zero_model_state(model: Any, params: Params, batch: Batch) -> State:
    """Return zeros in the shapes of the model's state for `batch`: ignored in rows where a stream begins."""
    start = jax.eval_shape(lambda params: model.apply({"params": params}, batch, 0, method="start"), params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)


def dummy_batch(rows: int = 1, length: int = 8) -> Batch:
    """Return a batch with every field that a model may read, for the shapes of `init`."""
    ids, valid = np.full((rows, length), 4, np.int32), np.ones((rows, length), bool)
    return Batch(
        source_BS=ids, source_valid_BS=valid, target_BT=ids, target_valid_BT=valid, label_BT=ids,
        token_label_BS=0 * ids, class_B=np.zeros(rows, np.int32),
        character_BSW=np.full((rows, length, MAX_WORD_CHARS), 4, np.int32),
    )  # fmt: skip


def forward_method(model: Any) -> Any:
    """Return the `method` of `init` and `apply` that maps a batch to all outputs: None for the model's own `__call__`.

    Without one, a module with the three methods of the contract is called as every `SequenceModel` is.
    """
    return None if any("__call__" in vars(base) for base in type(model).__mro__) else SequenceModel.__call__


@functools.partial(jax.jit, static_argnames="model", inline=True)  # traced once, by training and by loading
def init_params(model: Any, key: jax.Array, batch: Batch) -> Params:
    """Return new parameters. Raises UserError if the model has other variables, or no parameters."""
    variables = model.init(key, batch, method=forward_method(model))
    if variables.keys() != {"params"}:
        raise UserError(
            f"{type(model).__name__} has the variables {', '.join(sorted(variables)) or 'of no kind'}, expected params "
            "alone: further variables, such as the means of nn.BatchNorm, are neither saved nor used in decoding"
        )
    return variables["params"]


def abstract_params(model: Any) -> Params:
    """Return the shapes and dtypes of the parameters, without computing them."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0), dummy_batch()))

"""Vectors of texts: what a model has made of each position, or one vector for all of them, after a chosen layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, ProgressCallback, TrainedModel, eval_batches_with_progress
from jaxlm.models.finetune_heads import FineTunable, is_encoder, sequence_markers
from jaxlm.models.properties import max_input_positions
from jaxlm.models.rnn_classifier import Pooling
from jaxlm.types import Array, Batch, Params

PoolingMode = Literal["token", "first", "mean", "max", "last"]

POOLING_MODES = ("token", "first", "mean", "max", "last")

UNLIMITED = 1 << 30
"""Tokens of a row that has no end."""


@dataclass(frozen=True)
class TextEmbedder:
    """How texts become vectors.

    pool: "token": a vector for each position; "first", "last", "mean" or "max" of all positions, marks included.
    layer: the number of layers that the text goes through; None: all. A last norm is part of any.
    tokens: positions of a batch.
    """

    pooling: PoolingMode = "mean"
    layer: int | None = None
    batch_tokens: int = EVAL_BATCH_TOKENS

    def __call__(
        self, trained: TrainedModel, texts: Sequence[str], progress: ProgressCallback = None
    ) -> list[np.ndarray]:
        """float32 (D,) of each text, or (positions, D) where `pool` is "token". Raises UserError."""
        if self.pooling not in POOLING_MODES:
            raise UserError(f"pool {self.pooling!r}: expected one of {', '.join(POOLING_MODES)}")
        trunk = truncate_layers(unwrap_trunk(trained), self.layer)
        column = encode_rows(trunk, texts)
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        special = trained.tokenizer.special
        told = _jitted_pooling(trunk.model, self.pooling, special)
        for row_B, batch in eval_batches_with_progress(
            {"source": column}, self.batch_tokens, progress, max_input_positions(trunk.model), special
        ):
            vectors = np.asarray(told(trunk.params, _drop_final_eos(trunk.model, batch)))
            for at in np.flatnonzero(row_B >= 0):
                length = int(column.lengths[row_B[at]]) + is_encoder(trunk.model)
                found[row_B[at]] = vectors[at, :length] if self.pooling == "token" else vectors[at]
        return found


def token_strings(trained: TrainedModel, text: str) -> list[str]:
    """What stands at each position of a text."""
    trunk = unwrap_trunk(trained)
    special = trained.tokenizer.special
    names = {special.unk: "<unk>", special.eos: "</s>", special.start: "<s>"}
    ids = encode_rows(trunk, [text])[0].tolist() + [special.eos] * is_encoder(trunk.model)
    return [names.get(i) or trained.tokenizer.decode([[i]])[0] for i in ids]


def unwrap_trunk(trained: TrainedModel) -> TrainedModel:
    """The model without the head of a task. Raises UserError for one that gives no vectors of a text alone."""
    model, params = trained.model, trained.params
    while isinstance(model, FineTunable):
        model, params = model.model, params["model"]
    if not is_encoder(model) and (not hasattr(type(model), "extend") or not hasattr(model, "layers")):
        raise UserError(f"a {type(model).__name__} gives no vectors: expected an encoder or a decoder-only Transformer")
    return replace(trained, model=model, params=params)


def truncate_layers(trained: TrainedModel, num_layers: int | None) -> TrainedModel:
    """The first layers of a model of `jaxlm.nn.transformer.layer_stack.Stack` as a model (None: all of them).

    Raises UserError if the model has fewer layers.
    """
    if num_layers is None:
        return trained
    model, params = trained.model, trained.params
    if not 0 <= num_layers <= model.layers:
        raise UserError(f"layer {num_layers}: the model has {model.layers}, and 0 is the embeddings")
    stack = params.get("stack", {})
    layers = stack.get("layers", ())
    below = layers[:num_layers] if isinstance(layers, tuple) else jax.tree.map(lambda leaf: leaf[:num_layers], layers)
    first = {**stack, "layers": below}
    return replace(trained, model=model.clone(layers=num_layers, parent=None), params={**params, "stack": first})


def encode_rows(trained: TrainedModel, texts: Sequence[str]) -> Ragged:
    """BOS and the ids of each text; the parts of one between TABs stand apart where the model reads marks.

    A text is cut where the model's positions end, with the EOS that every row has.
    """
    most = max_input_positions(trained.model)
    if is_encoder(trained.model):
        return Ragged.from_rows(SequenceFormat(max_length=most or UNLIMITED).encode_rows(trained.tokenizer, texts))
    ids = trained.tokenizer.encode([text.replace("\t", " ") for text in texts])
    start = [trained.tokenizer.special.start]
    return Ragged.from_rows([np.concatenate([start, row[: most and most - 2]]) for row in ids])


def apply_encoder(
    model: Any,
    params: Params,
    batch: Batch,
    special: SpecialIds,
    method: Literal["features", "self_attention_weights"],
) -> Array:
    """What a reader makes of a source: its features (B, S, D), or its self-attention (B, L, N, S, S)."""
    if is_encoder(model):
        batch = replace(batch, token_type_BS=sequence_markers(batch, special)[2])
        return model.apply({"params": params}, batch, method=method)

    def read(module: Any) -> Any:
        asked = Batch(target_BT=batch.source_BS, target_valid_BT=batch.source_valid_BS)
        arguments = batch.source_BS, module.start(asked, 0), batch.source_valid_BS
        return module.extend(*arguments)[0] if method == "features" else module.self_attention_weights(*arguments)

    return model.apply({"params": params}, method=read)


def attention_maps(trained: TrainedModel, text: str) -> tuple[list[str], np.ndarray]:
    """The pieces of a text, and how much each looks at each, by layer and head: (L, N, S, S). Raises UserError."""
    trained = unwrap_trunk(trained)
    names, special = token_strings(trained, text), trained.tokenizer.special
    ((_, batch),) = eval_batches_with_progress(
        {"source": encode_rows(trained, [text])}, 1, max_length=max_input_positions(trained.model), special=special
    )
    batch = _drop_final_eos(trained.model, batch)
    weight_BLNSS = np.asarray(apply_encoder(trained.model, trained.params, batch, special, "self_attention_weights"))
    return names, weight_BLNSS[0, :, :, : len(names), : len(names)]


def _drop_final_eos(model: Any, batch: Batch) -> Batch:
    """Without the EOS that every row ends with, where the model is no reader of marks: it comes after the text."""
    if is_encoder(model):
        return batch
    valid_BS = batch.source_valid_BS & (np.cumsum(batch.source_valid_BS[:, ::-1], 1)[:, ::-1] > 1)
    return Batch(source_BS=batch.source_BS, source_valid_BS=valid_BS)


@lru_cache(maxsize=8)
def _jitted_pooling(model: Any, pooling: PoolingMode, special: SpecialIds) -> Any:
    def told(params: Params, batch: Batch) -> Array:
        features_BSD = apply_encoder(model, params, batch, special, "features").astype(np.float32)
        if pooling == "token":
            return features_BSD
        return jnp.asarray(Pooling(pooling, False).apply({}, features_BSD, batch.source_valid_BS))

    return jax.jit(told)

"""Embeddings of texts: the hidden states of each position, or one pooled vector, after a chosen layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, ProgressCallback, TrainedModel, apply_to_rows, batches_for_model
from jaxlm.models.finetune_heads import FineTunable, is_encoder, sequence_markers
from jaxlm.models.properties import dummy_batch, max_input_positions
from jaxlm.models.rnn_classifier import Pooling
from jaxlm.types import Array, Batch, Params

PoolingMode = Literal["token", "first", "mean", "max", "last"]

POOLING_MODES = ("token", "first", "mean", "max", "last")

UNLIMITED = 1 << 30
"""Tokens of a row if the model's positions have no end."""


@dataclass(frozen=True)
class TextEmbedder:
    """Vectors of texts.

    Attributes:
      pooling: "token": a vector for each position; "first", "last", "mean" or "max" of all positions, special tokens
        included.
      layer: the number of layers that the text passes; None: all. The final norm follows in any case.
      batch_tokens: positions of a batch.
    """

    pooling: PoolingMode = "mean"
    layer: int | None = None
    batch_tokens: int = EVAL_BATCH_TOKENS

    def __call__(
        self, trained: TrainedModel, texts: Sequence[str], progress: ProgressCallback = None
    ) -> list[np.ndarray]:
        """float32 (D,) of each text, or (positions, D) with "token". Raises UserError if the model has no vectors."""
        if self.pooling not in POOLING_MODES:
            raise UserError(f"pooling {self.pooling!r}: expected one of {', '.join(POOLING_MODES)}")
        trunk = truncate_layers(unwrap_trunk(trained), self.layer)
        column = encode_rows(trunk, texts)
        pool = _jitted_pooling(trunk.model, self.pooling, trunk.tokenizer.special)

        def pooled(batch: Batch) -> Array:
            return pool(trunk.params, _drop_final_eos(trunk.model, batch))

        vectors = apply_to_rows(pooled, trunk, {"source": column}, self.batch_tokens, progress)
        if self.pooling != "token":
            return vectors
        lengths = column.lengths + is_encoder(trunk.model)
        return [vector[:length] for vector, length in zip(vectors, lengths.tolist(), strict=True)]


def token_strings(trained: TrainedModel, text: str) -> list[str]:
    """The token at each position of a text, special tokens included."""
    trunk, special = unwrap_trunk(trained), trained.tokenizer.special
    names = {special.unk: "<unk>", special.eos: "</s>", special.start: "<s>"}
    ids = encode_rows(trunk, [text])[0].tolist() + [special.eos] * is_encoder(trunk.model)
    return [names.get(token) or trained.tokenizer.decode([[token]])[0] for token in ids]


def unwrap_trunk(trained: TrainedModel) -> TrainedModel:
    """The model without the head of a task. Raises UserError for a model without vectors."""
    model, params = trained.model, trained.params
    while isinstance(model, FineTunable):
        model, params = model.model, params["model"]
    if not is_encoder(model) and not _has_features(model, params):
        raise UserError(f"a {type(model).__name__} gives no vectors: expected an encoder or a language model")
    return replace(trained, model=model, params=params)


def _has_features(model: Any, params: Params) -> bool:
    """True if a model reads texts without a source, and `extend` gives a vector of each token."""
    batch = dummy_batch()
    batch = Batch(source_BS=batch.source_BS, source_valid_BS=batch.source_valid_BS)
    try:
        features = jax.eval_shape(
            lambda params: apply_encoder(model, params, batch, OWN_SPECIAL_IDS, "features"), params
        )
    except Exception:  # of a model that needs a source, or has no `extend`
        return False
    return features.ndim == 3 and jnp.issubdtype(features.dtype, jnp.floating)


def truncate_layers(trained: TrainedModel, num_layers: int | None) -> TrainedModel:
    """The first layers of a model with a `Stack` as a model (None: all). Raises UserError if it has fewer."""
    if num_layers is None:
        return trained
    model, params = trained.model, trained.params
    if not isinstance(getattr(model, "layers", None), int):
        raise UserError(f"layer {num_layers}: a {type(model).__name__} has no stack of layers, leave the layer out")
    if not 0 <= num_layers <= model.layers:
        raise UserError(f"layer {num_layers}: the model has {model.layers}, and 0 is the embeddings")
    stack = params.get("stack", {})
    layers = stack.get("layers", ())
    below = layers[:num_layers] if isinstance(layers, tuple) else jax.tree.map(lambda leaf: leaf[:num_layers], layers)
    first = {**stack, "layers": below}
    return replace(trained, model=model.clone(layers=num_layers, parent=None), params={**params, "stack": first})


def encode_rows(trained: TrainedModel, texts: Sequence[str]) -> Ragged:
    """The start id and the ids of each text, cut at the model's positions; for an encoder, TABs separate segments."""
    max_length, tokenizer = max_input_positions(trained.model), trained.tokenizer
    if is_encoder(trained.model):
        return Ragged.from_rows(SequenceFormat(max_length=max_length or UNLIMITED).encode_rows(tokenizer, texts))
    ids = tokenizer.encode([text.replace("\t", " ") for text in texts])
    start = [tokenizer.special.start]
    return Ragged.from_rows([np.concatenate([start, row[: max_length and max_length - 1]]) for row in ids])


def apply_encoder(model: Any, params: Params, batch: Batch, special: SpecialIds, method: str) -> Array:
    """The "features" (B, S, D) of a source, or its "self_attention_weights" (B, L, N, S, S), by `method`."""
    if is_encoder(model):
        batch = replace(batch, token_type_BS=sequence_markers(batch, special)[2])
        return model.apply({"params": params}, batch, method=method)

    def apply_decoder(module: Any) -> Any:
        target = Batch(target_BT=batch.source_BS, target_valid_BT=batch.source_valid_BS)
        arguments = batch.source_BS, module.start(target, 0), batch.source_valid_BS
        return module.extend(*arguments)[0] if method == "features" else module.self_attention_weights(*arguments)

    return model.apply({"params": params}, method=apply_decoder)


def attention_maps(trained: TrainedModel, text: str) -> tuple[list[str], np.ndarray]:
    """The tokens of a text, and the self-attention weights by layer and head: (L, N, S, S). Raises UserError."""
    trunk = unwrap_trunk(trained)
    if not hasattr(type(trunk.model), "self_attention_weights"):
        raise UserError(f"a {type(trunk.model).__name__} has no self-attention weights: expected a Transformer")
    names = token_strings(trunk, text)
    ((_, batch),) = batches_for_model(trunk, {"source": encode_rows(trunk, [text])}, 1)
    batch, special = _drop_final_eos(trunk.model, batch), trunk.tokenizer.special
    weight_BLNSS = np.asarray(apply_encoder(trunk.model, trunk.params, batch, special, "self_attention_weights"))
    return names, weight_BLNSS[0, :, :, : len(names), : len(names)]


def _drop_final_eos(model: Any, batch: Batch) -> Batch:
    """The batch of a decoder without the EOS that every row ends with: it comes after the text."""
    if is_encoder(model):
        return batch
    valid_BS = batch.source_valid_BS & (np.cumsum(batch.source_valid_BS[:, ::-1], 1)[:, ::-1] > 1)
    return Batch(source_BS=batch.source_BS, source_valid_BS=valid_BS)


@lru_cache(maxsize=8)
def _jitted_pooling(model: Any, pooling: PoolingMode, special: SpecialIds) -> Any:
    def pool(params: Params, batch: Batch) -> Array:
        features_BSD = apply_encoder(model, params, batch, special, "features").astype(np.float32)
        if pooling == "token":
            return features_BSD
        return jnp.asarray(Pooling(pooling, False).apply({}, features_BSD, batch.source_valid_BS))

    return jax.jit(pool)

"""A tiny instance of every model, the examples they are tried on, and the few jitted functions that the tests share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxlm.data.ragged import Ragged
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.feedforward_lm import FeedForwardLM
from jaxlm.models.joined import Joined
from jaxlm.models.ngram import NGram
from jaxlm.models.recurrent_lm import RecurrentLM
from jaxlm.models.seq2seq import Seq2Seq
from jaxlm.nn.cell import GRU, LSTM, Elman
from jaxlm.nn.recurrent import Recurrent
from jaxlm.nn.rotary import Llama3Scaling, Rotary
from jaxlm.types import Array, Batch, Params

VOCAB = 23


@dataclass(frozen=True)
class Animal:
    """A model, whether it knows sources and packed segments, and how exactly its numbers repeat."""

    model: nn.Module
    source: bool = True
    segments: bool = True
    tolerance: float = 1e-5


TRANSFORMER = EncoderDecoder(VOCAB, 8, 2, 12, 1, 1, dropout=0.0, max_length=24)
T5 = replace(
    TRANSFORMER, position="relative", norm="pre", norm_kind="rms", activation="geglu", bias=False, scaled=False,
    head_width=3, buckets=6, distance=4, logit_scale=0.35, tie="input",
)  # fmt: skip
GPT2 = Decoder(VOCAB, 8, 2, 12, 2, max_length=24)
LLAMA = Decoder(
    VOCAB, 8, 4, 12, 2, kv_heads=2, position="rotary", norm_kind="rms", activation="swiglu", qkv_bias=False,
    out_bias=False, ffn_bias=False, tie=False,
)  # fmt: skip
SEQ2SEQ = Seq2Seq(VOCAB, 8, Recurrent(LSTM(6)), Recurrent(LSTM(6)))
BOTH_WAYS = Recurrent(GRU(4), layers=2, bidirectional=True)

ZOO = {
    "transformer": Animal(TRANSFORMER),
    "pre": Animal(
        replace(
            TRANSFORMER,
            norm="pre",
            position="learned",
            tie="none",
            activation="gelu",
            decoder_layers=2,
            scan=True,
            remat=True,
        )
    ),
    "bfloat16": Animal(
        replace(TRANSFORMER, dtype="bfloat16", position="none", tie="target", norm="pre"), tolerance=0.04
    ),
    "t5": Animal(T5),
    "gpt2": Animal(GPT2, source=False),
    "llama": Animal(replace(LLAMA, scan=True, rotary=Rotary(500.0, Llama3Scaling(original=8))), source=False),
    "mistral": Animal(
        replace(LLAMA, window=2, head_width=6, logit_cap=30.0, qkv_bias=True, qk_norm=True, tie=True, kv_heads=1),
        source=False,
    ),
    "ngram": Animal(NGram(VOCAB, 4), source=False),
    "ngram_stream": Animal(NGram(VOCAB, 2, stream=True), source=False),
    "feedforward_lm": Animal(FeedForwardLM(VOCAB, 4, 6, 10, dropout=0.1), source=False),
    "elman_lm": Animal(RecurrentLM(VOCAB, 8, Recurrent(Elman(8)), tie=False), source=False),
    "lstm_lm": Animal(RecurrentLM(VOCAB, 8, Recurrent(LSTM(8), layers=2)), source=False),
    "gru_lm": Animal(RecurrentLM(VOCAB, 6, Recurrent(GRU(8), 2, residual=True, layer_norm=True)), source=False),
    "seq2seq_first": Animal(replace(SEQ2SEQ, context="first", tie="none"), segments=False),
    "seq2seq_every": Animal(replace(SEQ2SEQ, context="every", decoder=Recurrent(Elman(6), 2)), segments=False),
    "seq2seq_dot": Animal(replace(SEQ2SEQ, score="dot", tie="target"), segments=False),
    "seq2seq_additive_feeding": Animal(
        replace(SEQ2SEQ, encoder=BOTH_WAYS, score="additive", attend="before", input_feeding=True, coverage=True),
        segments=False,
    ),
    "joined": Animal(Joined(RecurrentLM(VOCAB, 8, Recurrent(LSTM(8)))), segments=False),
    "prefix_lm": Animal(Joined(replace(GPT2, position="rotary"), bidirectional=True), segments=False),
}


@lru_cache
def params_of(model: nn.Module) -> Params:
    """Random parameters from NumPy (compiling `init` takes seconds); no bias is 0 and no gain 1, so that none hides.

    A model that is fitted in closed form is fitted to random text.
    """
    rng = np.random.default_rng(1)
    if hasattr(model, "fit"):
        return model.fit({"target": Ragged.of([rng.integers(4, VOCAB, length) for length in range(60)])})
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of(examples(2), 8, 8))["params"]

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        gain = path[-1].key == "scale"
        return np.asarray(gain + (0.2 if gain else 0.4) * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def sharpened(params: Params, by: float) -> Params:
    """The parameters of a model that is surer of itself, so that it says several things: its table of outputs grows.

    Only that one: larger weights everywhere magnify a rounding 50 times more, which scores then differ by.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    table = "output" if any(path[-1].key == "output" for path in paths) else "embedding"
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * (by if path[-1].key == table else 1), params)


@dataclass(frozen=True)
class Example:
    source: np.ndarray
    target: np.ndarray
    label: np.ndarray


def examples(count: int, low: int = 2, high: int = 5, seed: int = 0) -> list[Example]:
    """Random sequences of `low` to `high` tokens, the first ones as long as can be."""
    rng = np.random.default_rng(seed)
    ids = partial(rng.integers, 4, VOCAB, dtype=np.int32)
    sizes = rng.integers(low, high + 1, (count, 2))
    sizes[0] = high
    return [Example(ids(source), ids(target), ids(target)) for source, target in sizes]


def batch_of(
    rows: Sequence[Example], source: int, target: int, source_layout: str = "right", target_layout: str = "right"
) -> Batch:
    """Each example in a row of its own: padding on the right, on the left, or in "holes", with junk in the padding."""
    rng = np.random.default_rng(3)
    source_at = [_places(len(row.source), source, source_layout, rng) for row in rows]
    target_at = [_places(len(row.target), target, target_layout, rng) for row in rows]
    return Batch(
        source_BS=_lay([row.source for row in rows], source_at, source, rng),
        source_valid_BS=_valid(source_at, source),
        target_BT=_lay([row.target for row in rows], target_at, target, rng),
        target_valid_BT=_valid(target_at, target),
        label_BT=_lay([row.label for row in rows], target_at, target, rng),
    )


def packed(bins: Sequence[Sequence[Example]], length: int) -> Batch:
    """Several examples a row, one after the other, numbered from 1."""
    joined = [Example(*(np.concatenate([getattr(e, name) for e in row]) for name in ("source", "target", "label")))
              for row in bins]  # fmt: skip
    batch = batch_of(joined, length, length)
    return batch.replace(
        source_segment_BS=_segments([[len(e.source) for e in row] for row in bins], length),
        target_segment_BT=_segments([[len(e.target) for e in row] for row in bins], length),
    )


def _segments(sizes: Iterable[Sequence[int]], length: int) -> np.ndarray:
    rows = [np.repeat(np.arange(1, len(row) + 1), row) for row in sizes]
    return np.stack([np.pad(row, (0, length - len(row))) for row in rows]).astype(np.int32)


def _places(size: int, length: int, layout: str, rng: np.random.Generator) -> np.ndarray:
    if layout == "holes":
        return np.sort(rng.choice(length, size, replace=False))
    return np.arange(size) + (length - size if layout == "left" else 0)


def _lay(rows: Sequence[np.ndarray], at: Sequence[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    laid = rng.integers(0, VOCAB, (len(rows), length), dtype=np.int32)
    for row, ids, places in zip(laid, rows, at, strict=True):
        row[places] = ids
    return laid


def _valid(at: Sequence[np.ndarray], length: int) -> np.ndarray:
    return np.stack([np.isin(np.arange(length), places) for places in at])


@partial(jax.jit, static_argnums=0)
def logits(model: Any, params: Params, batch: Batch) -> Array:
    """(B, T, V), read at once and without a cache: what training sees."""
    return model.apply({"params": params}, batch)


@partial(jax.jit, static_argnums=(0, 3))
def start(model: Any, params: Params, batch: Batch, capacity: int) -> Any:
    return model.apply({"params": params}, batch, capacity, method="start")


@partial(jax.jit, static_argnums=0)
def extend(model: Any, params: Params, state: Any, tokens_BT: Array, valid_BT: Array) -> tuple[Array, Any]:
    """Logits instead of features, and the new state."""
    features, state = model.apply({"params": params}, tokens_BT, state, valid_BT, method="extend")
    return model.apply({"params": params}, features, method="readout"), state


def one_by_one(model: Any, params: Params, batch: Batch) -> np.ndarray:
    """(B, T, V), a token at a time, as decoding does it."""
    state, found = start(model, params, batch, batch.target_BT.shape[1]), []
    for t in range(batch.target_BT.shape[1]):
        now, state = extend(model, params, state, batch.target_BT[:, t : t + 1], batch.target_valid_BT[:, t : t + 1])
        found.append(np.asarray(now))
    return np.concatenate(found, 1)


def by_example(values_BT: Array, valid_BT: Array) -> np.ndarray:
    """The values at the valid positions, row after row: what must not depend on the padding."""
    return np.asarray(values_BT)[np.asarray(valid_BT)]

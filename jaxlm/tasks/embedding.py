"""Vectors of texts: what a model has made of each position, or one vector for all of them, after a chosen layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.layout import Marked
from jaxlm.data.ragged import Ragged
from jaxlm.data.vocabulary import BOS, EOS, UNK, Tokenizer
from jaxlm.errors import UserError
from jaxlm.models.classifier import Pooling
from jaxlm.models.headed import Headed, marks, reads_both_ways
from jaxlm.models.reach import reach
from jaxlm.models.renumbered import Renumbered, numbered
from jaxlm.tasks.labelling import TOKENS, batches
from jaxlm.tasks.task import Progress, Task
from jaxlm.types import Array, Batch, Params

Pool = Literal["token", "first", "mean", "max", "last"]
POOLS = ("token", "first", "mean", "max", "last")
LONG = 1 << 30
"""Tokens of a row that has no end."""
MARKS = {UNK: "<unk>", BOS: "<s>", EOS: "</s>"}


@dataclass(frozen=True)
class Reading(Task):
    """The task of a model that only reads, as an imported BERT: `embed` and `train --tuning.init` have a use for it."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UserError(
            "this workdir holds a model that reads and was given no task: `jaxlm embed` gives its vectors, and "
            "`jaxlm train EXPERIMENT --tuning.init` starts from it"
        )

    check = texts = describe = count = columns = validate = evaluate = samples = predict = _refuse


@dataclass(frozen=True)
class Embedding:
    """How texts become vectors.

    pool: "token": a vector for each position; "first", "last", "mean" or "max" of all positions, marks included.
    layer: the number of layers that the text goes through; None: all. A last norm is part of any.
    tokens: positions of a batch.
    """

    pool: Pool = "mean"
    layer: int | None = None
    tokens: int = TOKENS

    def __call__(
        self, model: Any, params: Params, tokenizer: Tokenizer, texts: Sequence[str], progress: Progress = None
    ) -> list[np.ndarray]:
        """float32 (D,) of each text, or (positions, D) where `pool` is "token". Raises UserError."""
        if self.pool not in POOLS:
            raise UserError(f"pool {self.pool!r}: expected one of {', '.join(POOLS)}")
        model, params = shallow(*reader(model, params), self.layer)
        column = rows(model, tokenizer, texts)
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        told = _told(model, self.pool)
        for row_B, batch in batches({"source": column}, self.tokens, progress, reach(model)):
            vectors = np.asarray(told(params, _cut(model, batch)))
            for at in np.flatnonzero(row_B >= 0):
                length = int(column.lengths[row_B[at]]) + reads_both_ways(model)
                found[row_B[at]] = vectors[at, :length] if self.pool == "token" else vectors[at]
        return found


def pieces(model: Any, params: Params, tokenizer: Tokenizer, text: str) -> list[str]:
    """What stands at each position of a text."""
    model, _ = reader(model, params)
    ids = rows(model, tokenizer, [text])[0].tolist() + [EOS] * reads_both_ways(model)
    return [MARKS.get(i) or tokenizer.decode([[i]])[0] for i in ids]


def reader(model: Any, params: Params) -> tuple[Any, Params]:
    """The model that reads, without a head. Raises UserError for one that gives no vectors of a text alone."""
    while isinstance(model, Headed):
        model, params = model.model, params["model"]
    inner = numbered(model)
    if not reads_both_ways(model) and (not hasattr(type(inner), "extend") or not hasattr(inner, "layers")):
        raise UserError(f"a {type(inner).__name__} gives no vectors: expected an encoder or a decoder-only Transformer")
    return model, params


def shallow(model: Any, params: Params, layer: int | None) -> tuple[Any, Params]:
    """The first layers of a model of `jaxlm.nn.stack.Stack` as a model. Raises UserError beyond what there are."""
    if layer is None:
        return model, params
    if isinstance(model, Renumbered):
        inner, below = shallow(model.model, params["model"], layer)
        return model.clone(model=inner, parent=None), {**params, "model": below}
    if not 0 <= layer <= model.layers:
        raise UserError(f"layer {layer}: the model has {model.layers}, and 0 is the embeddings")
    stack = params.get("stack", {})
    layers = stack.get("layers", ())
    below = layers[:layer] if isinstance(layers, tuple) else jax.tree.map(lambda leaf: leaf[:layer], layers)
    first = {**stack, "layers": below}
    return model.clone(layers=layer, parent=None), {**params, "stack": first}


def rows(model: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """BOS and the ids of each text; the parts of one between TABs stand apart where the model reads marks.

    A text is cut where the model's positions end, with the EOS that every row has.
    """
    most = reach(model)
    if reads_both_ways(model):
        return Ragged.of(Marked(max_length=most or LONG).rows(tokenizer, texts))
    ids = tokenizer.encode([text.replace("\t", " ") for text in texts])
    return Ragged.of([np.concatenate([[BOS], row[: most and most - 2]]) for row in ids])


def look(model: Any, params: Params, batch: Batch, method: Literal["features", "self_attention"]) -> Array:
    """What a reader makes of a source: its features (B, S, D), or its self-attention (B, L, N, S, S)."""
    if reads_both_ways(model):
        batch = replace(batch, source_type_BS=marks(batch)[2])
        return model.apply({"params": params}, batch, method=method)

    def read(module: Any) -> Any:
        asked = Batch(target_BT=batch.source_BS, target_valid_BT=batch.source_valid_BS)
        arguments = batch.source_BS, module.start(asked, 0), batch.source_valid_BS
        return module.extend(*arguments)[0] if method == "features" else module.self_attention(*arguments)

    return model.apply({"params": params}, method=read)


def self_attention(model: Any, params: Params, tokenizer: Tokenizer, text: str) -> tuple[list[str], np.ndarray]:
    """The pieces of a text, and how much each looks at each, by layer and head: (L, N, S, S). Raises UserError."""
    model, params = reader(model, params)
    names = pieces(model, params, tokenizer, text)
    ((_, batch),) = batches({"source": rows(model, tokenizer, [text])}, 1, longest=reach(model))
    weight_BLNSS = np.asarray(look(model, params, _cut(model, batch), "self_attention"))
    return names, weight_BLNSS[0, :, :, : len(names), : len(names)]


def _cut(model: Any, batch: Batch) -> Batch:
    """Without the EOS that every row ends with, where the model is no reader of marks: it comes after the text."""
    if reads_both_ways(model):
        return batch
    valid_BS = batch.source_valid_BS & (np.cumsum(batch.source_valid_BS[:, ::-1], 1)[:, ::-1] > 1)
    return Batch(source_BS=batch.source_BS, source_valid_BS=valid_BS)


@lru_cache(maxsize=8)
def _told(model: Any, pool: Pool) -> Any:
    def told(params: Params, batch: Batch) -> Array:
        features_BSD = look(model, params, batch, "features").astype(np.float32)
        if pool == "token":
            return features_BSD
        return jnp.asarray(Pooling(pool, False).apply({}, features_BSD, batch.source_valid_BS))

    return jax.jit(told)

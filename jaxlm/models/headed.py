"""A few parameters on top of a model that reads: one that was trained before, or one that is trained with them.

Rows come from `jaxlm.data.layout.Marked`: BOS begins a sequence, EOS ends a part of it.

- An encoder (Devlin et al. 2019, section 4) reads them as they are, the parts as kinds of text 0, 1, ...; the vector of
  a sequence is that of its first position, through tanh(W x + b).
- A language model (Radford et al. 2018, section 3.3) reads a delimiter in the place of each EOS and, in that of the
  last, an extract token, whose vector is that of the sequence. Both have new rows in its table.
"""

from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.data.vocabulary import BOS, EOS
from jaxlm.errors import UserError
from jaxlm.label_loss import label_loss
from jaxlm.losses import Loss
from jaxlm.models.classifier import Pooling
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.recurrent_lm import RecurrentLM
from jaxlm.models.renumbered import Renumbered, numbered
from jaxlm.nn.dropout import Dropout
from jaxlm.nn.linear import Linear
from jaxlm.nn.words import check_unpacked
from jaxlm.types import Array, Batch

NEVER = -1e9
"""The logit of a choice that is not there."""


class Headed(nn.Module):
    """Base: `model`, which reads; None until a run takes that of another (`jaxlm.tuning.Tuning`)."""

    model: nn.Module | None = None

    @property
    def form(self) -> str:
        """The form of the rows (`jaxlm.data.layout.Marked`)."""
        return "once"

    @property
    def sequences(self) -> int:
        """Sequences of a row."""
        return 1

    @property
    def new_ids(self) -> int:
        """Ids that the model must embed beside those of the tokenizer: delimiter and extract token, the last two."""
        return 0 if reads_both_ways(self.model) else 2

    @property
    def vocab(self) -> int:
        """Ids of the tokenizer."""
        return 0 if self.model is None else self.model.vocab - self.new_ids

    def check(self) -> None:
        """Raises UserError where there is no model."""
        if self.model is None:
            raise UserError(f"{type(self).__name__} has nothing to read with: train it with --tuning.init WORKDIR")

    def around(self, trunk: Any) -> "Headed":
        """The same head on another model. Raises UserError for one that cannot be read from."""
        if reads_both_ways(trunk):
            alone = {"head": False, "pairs": False, "pooled": False}  # U of an encoder becomes the head's own
            changed = _changed(trunk, **alone) if isinstance(numbered(trunk), Encoder) else trunk
        elif isinstance(numbered(trunk), Decoder | RecurrentLM):
            changed = _changed(trunk, vocab=numbered(trunk).vocab + 2)
        else:
            raise UserError(
                f"a {type(numbered(trunk)).__name__} cannot have a head: expected an encoder or a language model"
            )
        return self.clone(model=changed, parent=None)

    def read(self, batch: Batch) -> tuple[Array, Array]:
        """Features (B, S, D), float32, and for each position its sequence, from 1 on: 0 on padding (B, S)."""
        check_unpacked(batch)
        valid_BS, sequence_BS, part_BS = marks(batch)
        several_BS = sequence_BS if self.sequences > 1 else None
        if reads_both_ways(self.model):
            features_BSD = self.model.features(replace(batch, source_segment_BS=several_BS, source_type_BS=part_BS))
        else:
            tokens_BS = self.told(batch)
            asked = Batch(target_BT=tokens_BS, target_valid_BT=valid_BS, target_segment_BT=several_BS)
            features_BSD, _ = self.model.extend(tokens_BS, self.model.start(asked, 0), valid_BS)
        return features_BSD.astype(jnp.float32), sequence_BS

    def told(self, batch: Batch) -> Array:
        """(B, S): the ids with the delimiter and the extract token of a language model in the places of EOS."""
        valid_BS, sequence_BS, part_BS = marks(batch)
        member_BKS = _members(sequence_BS, self.sequences)
        last_BK = jnp.where(member_BKS & (batch.source_BS == EOS)[:, None], part_BS[:, None], 0).max(-1)
        last_BS = jnp.take_along_axis(last_BK, jnp.clip(sequence_BS - 1, 0, self.sequences - 1), 1)
        mark_BS = jnp.where(part_BS == last_BS, self.vocab + 1, self.vocab)
        return jnp.where(valid_BS & (batch.source_BS == EOS), mark_BS, jnp.asarray(batch.source_BS))


class OnSequences(Headed):
    """Base of the heads that see one vector a sequence.

    Attributes:
      labels: classes, or choices.
      pooling: "first", "last", "mean" or "max" of the positions of a sequence; for a language model "last".
      squash: whether it goes through tanh(W x + b), as in BERT.
      dropout: of it.
      deviation: of the normal that the head starts from.
    """

    labels: int = 2
    pooling: Literal["first", "last", "mean", "max"] = "first"
    squash: bool = True
    dropout: float = 0.1
    deviation: float = 0.02

    def setup(self) -> None:
        self.check()
        self.pool, self.drop = Pooling(self.pooling, False), Dropout(self.dropout)
        if self.squash:
            self.pooler = Linear(numbered(self.model).width, deviation=self.deviation)
        self.head = Linear(self.outputs, deviation=self.deviation)

    @property
    def outputs(self) -> int:
        """What the head says of a vector."""
        return self.labels

    def vectors(self, batch: Batch) -> tuple[Array, Array, Array]:
        """(B, K, D), which of the K sequences are there (B, K), and the features (B, S, D)."""
        features_BSD, sequence_BS = self.read(batch)
        member_BKS = _members(sequence_BS, self.sequences)
        rows, count, length = member_BKS.shape
        each = jnp.repeat(features_BSD, count, 0) if count > 1 else features_BSD
        pooled = self.pool(each, member_BKS.reshape(-1, length))
        there_BK = member_BKS.any(-1)
        pooled = jnp.where(there_BK.reshape(-1, 1), pooled, 0.0)
        if self.squash:
            pooled = jnp.tanh(self.pooler(pooled))
        return self.drop(pooled).reshape(rows, count, -1), there_BK, features_BSD

    def judged(self, batch: Batch) -> tuple[Array, Array]:
        """Logits (B, labels) and the features (B, S, D)."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Array:
        """(B, labels) logits; (B, 1) where a number is told."""
        return self.judged(batch)[0]

    def with_language(self, batch: Batch) -> tuple[Array, Array]:
        """Logits, and for each row the mean of -log p(next token) (B,): the auxiliary loss of Radford et al. 2018."""
        if reads_both_ways(self.model):
            raise UserError("an encoder says no next token: train it with auxiliary = 0")
        logits_BC, features_BSD = self.judged(batch)
        valid_BS, sequence_BS, _ = marks(batch)
        tokens_BS = self.told(batch)
        same_BS = (sequence_BS[:, 1:] == sequence_BS[:, :-1]) & valid_BS[:, 1:] & valid_BS[:, :-1]
        readout = self.model.readout

        def row(some: tuple[Array, Array, Array]) -> Array:
            features_SD, label_S, asked_S = some
            log_p_SV = jax.nn.log_softmax(readout(features_SD))
            nll_S = -jnp.take_along_axis(log_p_SV, label_S[:, None], 1)[:, 0]
            return jnp.where(asked_S, nll_S, 0.0).sum() / jnp.maximum(asked_S.sum(), 1)

        # One row at a time, computed anew in the backward pass: the logits of a batch may not fit.
        nll_B = jax.lax.map(jax.checkpoint(row), (features_BSD[:, :-1], tokens_BS[:, 1:], same_BS))
        return logits_BC, nll_B


class TextClassifier(OnSequences):
    """p(class | text or pair), or with one label a number, as how alike two texts are.

    With `orders` = 2 a pair is read in both orders and the two vectors are added (Radford et al. 2018, section 3.3).
    """

    orders: Literal[1, 2] = 1

    @property
    def form(self) -> str:
        """The form of the rows."""
        return "once" if self.orders == 1 else "both"

    @property
    def sequences(self) -> int:
        """Sequences of a row."""
        return self.orders

    def judged(self, batch: Batch) -> tuple[Array, Array]:
        """Logits (B, labels) and the features (B, S, D)."""
        pooled_BKD, _, features_BSD = self.vectors(batch)
        return self.head(pooled_BKD.sum(1)), features_BSD


class Chooser(OnSequences):
    """p(choice | context): each of `labels` sequences gets a logit; those that a row lacks get none."""

    @property
    def form(self) -> str:
        """The form of the rows."""
        return "choices"

    @property
    def outputs(self) -> int:
        """What the head says of a vector."""
        return 1

    @property
    def sequences(self) -> int:
        """Sequences of a row."""
        return self.labels

    def judged(self, batch: Batch) -> tuple[Array, Array]:
        """Logits (B, labels) and the features (B, S, D)."""
        pooled_BKD, there_BK, features_BSD = self.vectors(batch)
        logits_BK = self.head(pooled_BKD)[..., 0]
        return jnp.where(there_BK, logits_BK, NEVER), features_BSD


class TokenClassifier(Headed):
    """p(label | text) for each position of the source: of a word, at its first piece.

    Attributes:
      labels: classes.
      dropout: of the features.
      deviation: of the normal that the head starts from.
    """

    labels: int = 2
    dropout: float = 0.1
    deviation: float = 0.02

    def setup(self) -> None:
        self.check()
        self.drop, self.head = Dropout(self.dropout), Linear(self.labels, deviation=self.deviation)

    def __call__(self, batch: Batch) -> Array:
        """(B, S, C) logits."""
        return self.head(self.drop(self.read(batch)[0]))

    def loss(self, batch: Batch, smoothing: float = 0.0) -> Loss:
        """-log p of `label_BS`, where it is not -1."""
        return label_loss(self(batch), batch.label_BS, smoothing)


def marks(batch: Batch) -> tuple[Array, Array, Array]:
    """Valid positions; the sequence of each, from 1 on, 0 on padding; its part in the sequence, from 0 on (B, S)."""
    ids_BS, valid_BS = jnp.asarray(batch.source_BS), jnp.asarray(batch.source_valid_BS)
    begins_BS, ends_BS = valid_BS & (ids_BS == BOS), valid_BS & (ids_BS == EOS)
    sequence_BS = jnp.where(valid_BS, jnp.cumsum(begins_BS, 1, dtype=jnp.int32), 0)
    ended_BS = jnp.cumsum(ends_BS, 1, dtype=jnp.int32) - ends_BS
    before_BS = jax.lax.cummax(jnp.where(begins_BS, ended_BS, 0), axis=1)
    return valid_BS, sequence_BS, ended_BS - before_BS


def reads_both_ways(model: Any) -> bool:
    """Whether a position sees those after it: an encoder."""
    return hasattr(type(numbered(model)), "features")


def _members(sequence_BS: Array, count: int) -> Array:
    """(B, K, S): which positions belong to sequence k."""
    return sequence_BS[:, None] == jnp.arange(1, count + 1)[None, :, None]


def _changed(model: Any, **fields: Any) -> Any:
    """The model with other fields, under its numbering if it has one."""
    if isinstance(model, Renumbered):
        return model.clone(model=_changed(model.model, **fields), parent=None)
    return model.clone(**fields, parent=None)

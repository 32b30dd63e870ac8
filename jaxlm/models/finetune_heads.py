"""A few parameters on top of a model that reads: one that was trained before, or one that is trained with them.

Rows come from `jaxlm.data.batching.sequence_format.Marked`: BOS begins a sequence, EOS ends a part of it.

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

from jaxlm.data.tokenizers.base import BOS, EOS
from jaxlm.errors import UserError
from jaxlm.losses import Loss, classification_loss
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.rnn_classifier import Pooling
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.models.special_ids import Renumbered, numbered
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.layers.word_embedding import require_unpacked
from jaxlm.types import Array, Batch

MISSING_CHOICE_LOGIT = -1e9
"""The logit of a choice that is not there."""


class FineTunable(nn.Module):
    """Base: `model`, which reads; None until a run takes that of another (`jaxlm.finetuning.Tuning`)."""

    model: nn.Module | None = None

    @property
    def input_format(self) -> str:
        """The form of the rows (`jaxlm.data.batching.sequence_format.Marked`)."""
        return "single"

    @property
    def num_sequences(self) -> int:
        """Sequences of a row."""
        return 1

    @property
    def num_extra_ids(self) -> int:
        """Ids that the model must embed beside those of the tokenizer: delimiter and extract token, the last two."""
        return 0 if is_encoder(self.model) else 2

    @property
    def vocab(self) -> int:
        """Ids of the tokenizer."""
        return 0 if self.model is None else self.model.vocab - self.num_extra_ids

    def require_trunk(self) -> None:
        """Raises UserError where there is no model."""
        if self.model is None:
            raise UserError(f"{type(self).__name__} has nothing to read with: train it with --finetuning.init WORKDIR")

    def with_trunk(self, trunk: Any) -> "FineTunable":
        """The same head on another model. Raises UserError for one that cannot be read from."""
        if is_encoder(trunk):
            alone = {
                "mlm_head": False,
                "nsp_head": False,
                "add_pooling_layer": False,
            }  # U of an encoder becomes the head's own
            changed = _clone_trunk(trunk, **alone) if isinstance(numbered(trunk), Encoder) else trunk
        elif isinstance(numbered(trunk), Decoder | RecurrentLM):
            changed = _clone_trunk(trunk, vocab=numbered(trunk).vocab + 2)
        else:
            raise UserError(
                f"a {type(numbered(trunk)).__name__} cannot have a head: expected an encoder or a language model"
            )
        return self.clone(model=changed, parent=None)

    def encode(self, batch: Batch) -> tuple[Array, Array]:
        """Features (B, S, D), float32, and for each position its sequence, from 1 on: 0 on padding (B, S)."""
        require_unpacked(batch)
        valid_BS, sequence_BS, part_BS = sequence_markers(batch)
        several_BS = sequence_BS if self.num_sequences > 1 else None
        if is_encoder(self.model):
            features_BSD = self.model.features(replace(batch, source_segment_BS=several_BS, token_type_BS=part_BS))
        else:
            tokens_BS = self.with_marker_ids(batch)
            asked = Batch(target_BT=tokens_BS, target_valid_BT=valid_BS, target_segment_BT=several_BS)
            features_BSD, _ = self.model.extend(tokens_BS, self.model.start(asked, 0), valid_BS)
        return features_BSD.astype(jnp.float32), sequence_BS

    def with_marker_ids(self, batch: Batch) -> Array:
        """(B, S): the ids with the delimiter and the extract token of a language model in the places of EOS."""
        valid_BS, sequence_BS, part_BS = sequence_markers(batch)
        member_BKS = _sequence_masks(sequence_BS, self.num_sequences)
        last_BK = jnp.where(member_BKS & (batch.source_BS == EOS)[:, None], part_BS[:, None], 0).max(-1)
        last_BS = jnp.take_along_axis(last_BK, jnp.clip(sequence_BS - 1, 0, self.num_sequences - 1), 1)
        mark_BS = jnp.where(part_BS == last_BS, self.vocab + 1, self.vocab)
        return jnp.where(valid_BS & (batch.source_BS == EOS), mark_BS, jnp.asarray(batch.source_BS))


class SequenceHead(FineTunable):
    """Base of the heads that see one vector a sequence.

    Attributes:
      labels: classes, or choices.
      pooling: "first", "last", "mean" or "max" of the positions of a sequence; for a language model "last".
      squash: whether it goes through tanh(W x + b), as in BERT.
      dropout: of it.
      deviation: of the normal that the head starts from.
    """

    num_labels: int = 2
    pooling: Literal["first", "last", "mean", "max"] = "first"
    use_pooler: bool = True
    dropout: float = 0.1
    init_std: float = 0.02

    def setup(self) -> None:
        self.require_trunk()
        self.pool, self.drop = Pooling(self.pooling, False), Dropout(self.dropout)
        if self.use_pooler:
            self.pooler = Linear(numbered(self.model).width, init_std=self.init_std)
        self.head = Linear(self.num_outputs, init_std=self.init_std)

    @property
    def num_outputs(self) -> int:
        """What the head says of a vector."""
        return self.num_labels

    def pool_sequences(self, batch: Batch) -> tuple[Array, Array, Array]:
        """(B, K, D), which of the K sequences are there (B, K), and the features (B, S, D)."""
        features_BSD, sequence_BS = self.encode(batch)
        member_BKS = _sequence_masks(sequence_BS, self.num_sequences)
        rows, count, length = member_BKS.shape
        each = jnp.repeat(features_BSD, count, 0) if count > 1 else features_BSD
        pooled = self.pool(each, member_BKS.reshape(-1, length))
        there_BK = member_BKS.any(-1)
        pooled = jnp.where(there_BK.reshape(-1, 1), pooled, 0.0)
        if self.use_pooler:
            pooled = jnp.tanh(self.pooler(pooled))
        return self.drop(pooled).reshape(rows, count, -1), there_BK, features_BSD

    def logits_and_features(self, batch: Batch) -> tuple[Array, Array]:
        """Logits (B, labels) and the features (B, S, D)."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Array:
        """(B, labels) logits; (B, 1) where a number is told."""
        return self.logits_and_features(batch)[0]

    def logits_and_lm_loss(self, batch: Batch) -> tuple[Array, Array]:
        """Logits, and for each row the mean of -log p(next token) (B,): the auxiliary loss of Radford et al. 2018."""
        if is_encoder(self.model):
            raise UserError("an encoder says no next token: train it with auxiliary = 0")
        logits_BC, features_BSD = self.logits_and_features(batch)
        valid_BS, sequence_BS, _ = sequence_markers(batch)
        tokens_BS = self.with_marker_ids(batch)
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


class TextClassifier(SequenceHead):
    """p(class | text or pair), or with one label a number, as how alike two texts are.

    With `orders` = 2 a pair is read in both orders and the two vectors are added (Radford et al. 2018, section 3.3).
    """

    num_orders: Literal[1, 2] = 1

    @property
    def input_format(self) -> str:
        """The form of the rows."""
        return "single" if self.num_orders == 1 else "both_orders"

    @property
    def num_sequences(self) -> int:
        """Sequences of a row."""
        return self.num_orders

    def logits_and_features(self, batch: Batch) -> tuple[Array, Array]:
        """Logits (B, labels) and the features (B, S, D)."""
        pooled_BKD, _, features_BSD = self.pool_sequences(batch)
        return self.head(pooled_BKD.sum(1)), features_BSD


class MultipleChoice(SequenceHead):
    """p(choice | context): each of `labels` sequences gets a logit; those that a row lacks get none."""

    @property
    def input_format(self) -> str:
        """The form of the rows."""
        return "choices"

    @property
    def num_outputs(self) -> int:
        """What the head says of a vector."""
        return 1

    @property
    def num_sequences(self) -> int:
        """Sequences of a row."""
        return self.num_labels

    def logits_and_features(self, batch: Batch) -> tuple[Array, Array]:
        """Logits (B, labels) and the features (B, S, D)."""
        pooled_BKD, there_BK, features_BSD = self.pool_sequences(batch)
        logits_BK = self.head(pooled_BKD)[..., 0]
        return jnp.where(there_BK, logits_BK, MISSING_CHOICE_LOGIT), features_BSD


class TokenClassifier(FineTunable):
    """p(label | text) for each position of the source: of a word, at its first piece.

    Attributes:
      labels: classes.
      dropout: of the features.
      deviation: of the normal that the head starts from.
    """

    num_labels: int = 2
    dropout: float = 0.1
    init_std: float = 0.02

    def setup(self) -> None:
        self.require_trunk()
        self.drop, self.head = Dropout(self.dropout), Linear(self.num_labels, init_std=self.init_std)

    def __call__(self, batch: Batch) -> Array:
        """(B, S, C) logits."""
        return self.head(self.drop(self.encode(batch)[0]))

    def loss(self, batch: Batch, smoothing: float = 0.0) -> Loss:
        """-log p of `token_label_BS`, where it is not -1."""
        return classification_loss(self(batch), batch.token_label_BS, smoothing)


def sequence_markers(batch: Batch) -> tuple[Array, Array, Array]:
    """Valid positions; the sequence of each, from 1 on, 0 on padding; its part in the sequence, from 0 on (B, S)."""
    ids_BS, valid_BS = jnp.asarray(batch.source_BS), jnp.asarray(batch.source_valid_BS)
    begins_BS, ends_BS = valid_BS & (ids_BS == BOS), valid_BS & (ids_BS == EOS)
    sequence_BS = jnp.where(valid_BS, jnp.cumsum(begins_BS, 1, dtype=jnp.int32), 0)
    ended_BS = jnp.cumsum(ends_BS, 1, dtype=jnp.int32) - ends_BS
    before_BS = jax.lax.cummax(jnp.where(begins_BS, ended_BS, 0), axis=1)
    return valid_BS, sequence_BS, ended_BS - before_BS


def is_encoder(model: Any) -> bool:
    """Whether a position sees those after it: an encoder."""
    return hasattr(type(numbered(model)), "features")


def _sequence_masks(sequence_BS: Array, num_sequences: int) -> Array:
    """(B, K, S): which positions belong to sequence k."""
    return sequence_BS[:, None] == jnp.arange(1, num_sequences + 1)[None, :, None]


def _clone_trunk(model: Any, **fields: Any) -> Any:
    """The model with other fields, under its numbering if it has one."""
    if isinstance(model, Renumbered):
        return model.clone(model=_clone_trunk(model.model, **fields), parent=None)
    return model.clone(**fields, parent=None)

"""Task heads on a pre-trained encoder or language model.

Rows come from `jaxlm.data.batching.sequence_format.SequenceFormat`: BOS begins a sequence, EOS ends a part of it.

- An encoder (Devlin et al. 2019, section 4) reads them as they are, the parts with token types 0, 1, ...; the vector
  of a sequence is that of its first position, through tanh(W x + b).
- A language model (Radford et al. 2018, section 3.3) reads a delimiter token in place of each EOS and an extract token
  in place of the last one; the vector of a sequence is that of its extract token. Both are new rows of its table.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.losses import NEVER_LOGIT
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.rnn_classifier import Pooling
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.layers.word_embedding import require_unpacked
from jaxlm.types import Array, Batch


class FineTunable(nn.Module):
    """Base of all heads.

    Attributes:
      model: the trunk, an encoder or a language model; None until a run loads a pre-trained one (`jaxlm.finetuning`).
      special: the special ids of the tokenizer.
      num_labels: number of classes or choices.
      dropout: dropout rate of the features that the head reads.
      init_std: standard deviation of the normal initialization of the head.
      input_format: of the rows, see `jaxlm.data.batching.sequence_format.SequenceFormat`.
      num_sequences: sequences per row, K.
    """

    model: nn.Module | None = None
    special: SpecialIds = OWN_SPECIAL_IDS
    num_labels: int = 2
    dropout: float = 0.1
    init_std: float = 0.02

    input_format: ClassVar[str] = "single"
    num_sequences: ClassVar[int] = 1

    @property
    def num_extra_ids(self) -> int:
        """Ids beyond those of the tokenizer: the delimiter and the extract token of a language model."""
        return 0 if is_encoder(self.model) else 2

    @property
    def vocab(self) -> int:
        """Size of the tokenizer's vocabulary; 0 without a trunk."""
        return 0 if self.model is None else self.model.vocab - self.num_extra_ids

    @property
    def num_outputs(self) -> int:
        """Outputs of the head per vector."""
        return self.num_labels

    def setup(self) -> None:
        """Raises UserError without a trunk."""
        if self.model is None:
            raise UserError(f"{type(self).__name__} has nothing to read with: train it with --finetuning.init WORKDIR")
        self.drop, self.head = Dropout(self.dropout), Linear(self.num_outputs, init_std=self.init_std)

    def with_trunk(self, trunk: Any) -> "FineTunable":
        """Return this head on another trunk. Raises UserError if that is neither an encoder nor a language model."""
        if isinstance(trunk, Encoder):
            # The encoder's pooler is replaced by that of the head, and its own heads are not trained.
            trunk = trunk.clone(mlm_head=False, nsp_head=False, add_pooling_layer=False, parent=None)
        elif isinstance(trunk, Decoder | RecurrentLM):
            trunk = trunk.clone(vocab=trunk.vocab + 2, parent=None)
        elif not is_encoder(trunk):
            raise UserError(f"a {type(trunk).__name__} cannot have a head: expected an encoder or a language model")
        return self.clone(model=trunk, parent=None)

    def encode(self, batch: Batch) -> tuple[Array, Array]:
        """Return float32 features (B, S, D) and the sequence of each position, from 1; 0 on padding (B, S)."""
        require_unpacked(batch)
        valid_BS, sequence_BS, part_BS = sequence_markers(batch, self.special)
        segment_BS = sequence_BS if self.num_sequences > 1 else None
        if is_encoder(self.model):
            features_BSD = self.model.features(replace(batch, source_segment_BS=segment_BS, token_type_BS=part_BS))
        else:
            tokens_BS = self.with_marker_ids(batch)
            target = Batch(target_BT=tokens_BS, target_valid_BT=valid_BS, target_segment_BT=segment_BS)
            features_BSD, _ = self.model.extend(tokens_BS, self.model.start(target, 0), valid_BS)
        return features_BSD.astype(jnp.float32), sequence_BS

    def with_marker_ids(self, batch: Batch) -> Array:
        """Return the ids (B, S) with EOS replaced by the delimiter or, at the end of a sequence, the extract token."""
        valid_BS, sequence_BS, part_BS = sequence_markers(batch, self.special)
        is_eos_BS = jnp.asarray(batch.source_BS) == self.special.eos
        member_BKS = _sequence_masks(sequence_BS, self.num_sequences)
        last_part_BK = jnp.where(member_BKS & is_eos_BS[:, None], part_BS[:, None], 0).max(-1)
        # (B, K) -> (B, S): the last part of the sequence that each position belongs to.
        last_part_BS = jnp.take_along_axis(last_part_BK, jnp.clip(sequence_BS - 1, 0, self.num_sequences - 1), 1)
        marker_BS = jnp.where(part_BS == last_part_BS, self.vocab + 1, self.vocab)
        return jnp.where(valid_BS & is_eos_BS, marker_BS, jnp.asarray(batch.source_BS))


class SequenceHead(FineTunable):
    """Base of the heads that read one vector per sequence.

    Attributes:
      pooling: "first", "last", "mean" or "max" of the positions of a sequence; for a language model "last".
      use_pooler: whether the vector goes through tanh(W x + b), as in BERT.
    """

    pooling: Literal["first", "last", "mean", "max"] = "first"
    use_pooler: bool = True

    def setup(self) -> None:
        super().setup()
        self.pool = Pooling(self.pooling, False)
        if self.use_pooler:
            self.pooler = Linear(self.model.width, init_std=self.init_std)

    def pool_sequences(self, batch: Batch) -> tuple[Array, Array, Array]:
        """Return the vectors (B, K, D), which of the K sequences exist (B, K), and the features (B, S, D)."""
        features_BSD, sequence_BS = self.encode(batch)
        member_BKS = _sequence_masks(sequence_BS, self.num_sequences)
        rows, count, length = member_BKS.shape
        # `Pooling` reads one mask per row: a row of K sequences becomes K rows, (B * K, S, D).
        pooled = self.pool(jnp.repeat(features_BSD, count, 0), member_BKS.reshape(-1, length))
        exists_BK = member_BKS.any(-1)
        pooled = jnp.where(exists_BK.reshape(-1, 1), pooled, 0.0)
        if self.use_pooler:
            pooled = jnp.tanh(self.pooler(pooled))
        return self.drop(pooled).reshape(rows, count, -1), exists_BK, features_BSD

    def sequence_logits(self, pooled_BKD: Array, exists_BK: Array) -> Array:
        """Return the logits (B, C) of the vectors of the K sequences of a row."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Array:
        """Return logits (B, C); of a regression the value, (B, 1)."""
        return self.sequence_logits(*self.pool_sequences(batch)[:2])

    def logits_and_lm_loss(self, batch: Batch) -> tuple[Array, Array]:
        """Return logits and the mean -log p(next token) of each row (B,), an auxiliary loss (Radford et al. 2018)."""
        if is_encoder(self.model):
            raise UserError("an encoder predicts no next token: train it with lm_weight = 0")
        *pooled, features_BSD = self.pool_sequences(batch)
        logits_BC = self.sequence_logits(*pooled)
        tokens_BS, sequence_BS = self.with_marker_ids(batch), sequence_markers(batch, self.special)[1]
        # A position predicts the next one if both are valid and of one sequence.
        predicts_BS = (sequence_BS[:, 1:] == sequence_BS[:, :-1]) & (sequence_BS[:, 1:] > 0)

        def row_loss(row: tuple[Array, Array, Array]) -> Array:
            features_SD, label_S, predicts_S = row
            log_p_SV = jax.nn.log_softmax(self.model.readout(features_SD))
            nll_S = -jnp.take_along_axis(log_p_SV, label_S[:, None], 1)[:, 0]
            return jnp.where(predicts_S, nll_S, 0.0).sum() / jnp.maximum(predicts_S.sum(), 1)

        # One row at a time, recomputed in the backward pass: the logits of a batch may not fit.
        nll_B = jax.lax.map(jax.checkpoint(row_loss), (features_BSD[:, :-1], tokens_BS[:, 1:], predicts_BS))
        return logits_BC, nll_B


class TextClassifier(SequenceHead):
    """p(class | text or pair), or with one label a regression, such as semantic similarity.

    num_orders: with 2, a pair is read in both orders and the two vectors are added (Radford et al. 2018, section 3.3).
    """

    num_orders: Literal[1, 2] = 1

    @property
    def input_format(self) -> str:
        return "single" if self.num_orders == 1 else "both_orders"

    @property
    def num_sequences(self) -> int:
        return self.num_orders

    def sequence_logits(self, pooled_BKD: Array, exists_BK: Array) -> Array:
        return self.head(pooled_BKD.sum(1))


class MultipleChoice(SequenceHead):
    """p(choice | context): one logit for each of `num_labels` sequences; a row may have fewer."""

    input_format: ClassVar[str] = "choices"
    num_outputs: ClassVar[int] = 1

    @property
    def num_sequences(self) -> int:
        return self.num_labels

    def sequence_logits(self, pooled_BKD: Array, exists_BK: Array) -> Array:
        return jnp.where(exists_BK, self.head(pooled_BKD)[..., 0], NEVER_LOGIT)


class TokenClassifier(FineTunable):
    """p(label | text) of each source position; a word has its label at its first piece."""

    def __call__(self, batch: Batch) -> Array:
        """Return logits (B, S, C)."""
        return self.head(self.drop(self.encode(batch)[0]))


def sequence_markers(batch: Batch, special: SpecialIds) -> tuple[Array, Array, Array]:
    """Return valid positions, the sequence of each (from 1; 0 on padding), and its part (from 0), all (B, S)."""
    ids_BS, valid_BS = jnp.asarray(batch.source_BS), jnp.asarray(batch.source_valid_BS)
    is_bos_BS, is_eos_BS = valid_BS & (ids_BS == special.start), valid_BS & (ids_BS == special.eos)
    sequence_BS = jnp.where(valid_BS, jnp.cumsum(is_bos_BS, 1, dtype=jnp.int32), 0)
    ended_BS = jnp.cumsum(is_eos_BS, 1, dtype=jnp.int32) - is_eos_BS  # parts of the row that end before each position
    ended_at_bos_BS = jax.lax.cummax(jnp.where(is_bos_BS, ended_BS, 0), axis=1)
    return valid_BS, sequence_BS, ended_BS - ended_at_bos_BS


def is_encoder(model: Any) -> bool:
    """Return whether the model is an encoder: its positions attend in both directions."""
    return hasattr(type(model), "features")


def _sequence_masks(sequence_BS: Array, num_sequences: int) -> Array:
    """(B, K, S): True at the positions of sequence k."""
    return sequence_BS[:, None] == jnp.arange(1, num_sequences + 1)[None, :, None]

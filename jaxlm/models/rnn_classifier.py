"""Recurrent classifiers of a text, whose hidden states are pooled into one vector, and of each of its tokens.

first      h_1
last       h_S of the forward network and h_1 of the backward network                   (Sutskever et al. 2014, 2)
mean, max  over the positions, feature by feature                                       (Conneau et al. 2017, 3.2)
attention  a = softmax(v . tanh(W h_t + b)),  sum_t a_t h_t                             (Yang et al. 2016, 2.2)
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.losses import Loss, classification_loss
from jaxlm.metrics.classification import forbidden_transitions
from jaxlm.nn.layers.crf import CRF
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.layers.word_embedding import CharacterCNN, WordEmbedding, require_unpacked, word_mask
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.types import Array, Batch


class Pooling(nn.Module):
    """Pool (B, S, D) -> (B, D) over the valid positions, of which every row has one; see the module.

    bidirectional: the second half of the features comes from a network that reads backwards.
    """

    kind: str
    bidirectional: bool

    @nn.compact
    def __call__(self, hidden_BSD: Array, valid_BS: Array) -> Array:
        valid_BS1 = valid_BS[..., None]
        if self.kind == "mean":
            return jnp.where(valid_BS1, hidden_BSD, 0.0).sum(1) / jnp.maximum(valid_BS.sum(1, keepdims=True), 1)
        if self.kind == "max":
            return jnp.where(valid_BS1, hidden_BSD, jnp.finfo(hidden_BSD.dtype).min).max(1)
        if self.kind == "attention":
            width = hidden_BSD.shape[-1]
            score_BS1 = Linear(1, bias=False, name="score")(jnp.tanh(Linear(width, name="attend")(hidden_BSD)))
            weight_BS1 = jax.nn.softmax(jnp.where(valid_BS1, score_BS1, jnp.finfo(score_BS1.dtype).min), 1)
            return (weight_BS1 * hidden_BSD).sum(1)
        if self.kind not in ("first", "last"):
            raise UserError(f"pooling {self.kind!r}: expected one of first, last, mean, max, attention")
        first_B = valid_BS.argmax(1)
        last_B = valid_BS.shape[1] - 1 - valid_BS[:, ::-1].argmax(1)
        first_BD, last_BD = (
            jnp.take_along_axis(hidden_BSD, position_B[:, None, None], 1)[:, 0] for position_B in (first_B, last_B)
        )
        if self.kind == "first":
            return first_BD
        if not self.bidirectional:
            return last_BD
        half = hidden_BSD.shape[-1] // 2
        return jnp.concatenate([last_BD[:, :half], first_BD[:, half:]], -1)


class RecurrentReader(nn.Module):
    """Base of classifiers and taggers: word vectors, a recurrent network, and an output layer.

    Attributes:
      vocab, num_labels: number of word ids and of labels.
      recurrent: the network that reads the text.
      word_width: width of a word embedding.
      characters: character CNN for the spelling of words; None: no characters.
      dropout: dropout rate before and after the recurrent network.
      word_dropout: rate at which words are read as UNK in training.
      special: the special ids of the tokenizer.
    """

    vocab: int
    num_labels: int
    recurrent: Recurrent = Recurrent(LSTM(128), layers=1, bidirectional=True)
    word_width: int = 100
    characters: CharacterCNN | None = None
    dropout: float = 0.0
    word_dropout: float = 0.0
    special: SpecialIds = OWN_SPECIAL_IDS

    def setup(self) -> None:
        self.words = WordEmbedding(
            self.vocab, self.word_width, characters=self.characters, dropout=self.dropout,
            word_dropout=self.word_dropout, unk_id=self.special.unk,
        )  # fmt: skip
        self.drop = Dropout(self.dropout)
        self.output = Linear(self.num_labels)

    def encode(self, batch: Batch) -> Array:
        """Return the hidden states (B, S, D)."""
        x_BSD, valid_BS, segment_BS = self.words(batch), batch.source_valid_BS, batch.source_segment_BS
        return self.recurrent(x_BSD, self.recurrent.start(batch.num_rows), valid_BS, segment_BT=segment_BS)[0]


class RecurrentClassifier(RecurrentReader):
    """p(class | source). pooling: see the module."""

    pooling: Literal["last", "mean", "max", "attention"] = "last"

    def setup(self) -> None:
        super().setup()
        self.pool = Pooling(self.pooling, self.recurrent.bidirectional)

    def __call__(self, batch: Batch) -> Array:
        """Return logits (B, C). EOS is read like a word, so that a row without words has a position to pool."""
        require_unpacked(batch)
        return self.output(self.drop(self.pool(self.encode(batch), batch.source_valid_BS)))


class RecurrentTagger(RecurrentReader):
    """A label for each source token (Huang et al. 2015; Ma and Hovy 2016).

    emission_t = W dropout(h_t) + b; p(y_t) = softmax(emission_t), or with a CRF p(y_1 ... y_S) of its chain
    (`jaxlm.nn.layers.crf`).

    Attributes:
      crf: score whole label sequences.
      tag_names: names of the labels if they are IOB2; the CRF then forbids an I- tag that continues no span.
    """

    crf: bool = False
    tag_names: tuple[str, ...] = ()

    def setup(self) -> None:
        super().setup()
        if self.crf:
            self.chain = CRF(self.num_labels, forbidden_transitions(self.tag_names))

    def __call__(self, batch: Batch) -> Array:
        """Return logits (B, S, C), which are the emissions of the CRF."""
        if self.crf:
            require_unpacked(batch)  # the chain would continue from text to text
        logits_BSC = self.output(self.drop(self.encode(batch)))
        if self.crf and self.is_initializing():
            self.chain.viterbi(logits_BSC, batch.source_valid_BS)  # creates the parameters of the chain
        return logits_BSC

    def loss(self, batch: Batch, smoothing: float = 0.0) -> Loss:
        """Return -log p of `token_label_BS`, a label of -1 summed over all labels by a CRF; counts labels."""
        logits_BSC = self(batch)
        if not self.crf:
            return classification_loss(logits_BSC, batch.token_label_BS, smoothing)
        if smoothing:
            raise UserError(f"label smoothing {smoothing} with a CRF: expected 0, or a tagger with crf=False")
        total = self.chain(logits_BSC, batch.token_label_BS, word_mask(batch)).sum()
        return Loss(total=total, nll=total, count=(batch.token_label_BS >= 0).sum(dtype=jnp.float32))

    def predict_labels(self, batch: Batch) -> Array:
        """Return the best label of each word, or with a CRF the best label sequence, (B, S) int32; -1 elsewhere."""
        logits_BSC, word_BS = self(batch), word_mask(batch)
        if self.crf:
            return self.chain.viterbi(logits_BSC, word_BS)
        return jnp.where(word_BS, logits_BSC.argmax(-1), -1).astype(jnp.int32)

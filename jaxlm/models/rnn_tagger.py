"""A bidirectional recurrent tagger (Huang et al. 2015; Ma and Hovy 2016): a label for each token of the source.

h_1 ... h_S = birnn(dropout([e_t; characters_t])),   emission_t = W dropout(h_t) + b

p(y_t) = softmax(emission_t), or, with `crf`, p(y_1 ... y_S) of the chain in `jaxlm.nn.layers.crf`.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.losses import Loss, classification_loss
from jaxlm.metrics.spans import forbidden_transitions
from jaxlm.nn.layers.crf import CRF
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.layers.word_embedding import CharacterCNN, WordEmbedding, require_unpacked, word_mask
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.types import Array, Batch


class RecurrentTagger(nn.Module):
    """A label for each source token.

    Attributes:
      vocab, labels: ids of words, labels.
      recurrent: the layers that read the sentence.
      word_width: of a word's own vector.
      characters: the net that reads the spelling of words; None reads none.
      dropout: before and after the recurrent layers.
      word_dropout: the share of words read as UNK in training.
      crf: score whole sequences of labels.
      tags: the names of the labels where they are IOB2; the CRF then never says an I- that continues nothing.
    """

    vocab: int
    num_labels: int
    recurrent: Recurrent = Recurrent(LSTM(128), layers=1, bidirectional=True)
    word_width: int = 100
    characters: CharacterCNN | None = None
    dropout: float = 0.0
    word_dropout: float = 0.0
    crf: bool = False
    tag_names: tuple[str, ...] = ()

    def setup(self) -> None:
        self.words = WordEmbedding(self.vocab, self.word_width, self.characters, self.dropout, self.word_dropout)
        self.drop = Dropout(self.dropout)
        self.output = Linear(self.num_labels)
        if self.crf:
            self.chain = CRF(self.num_labels, forbidden_transitions(self.tag_names))

    def __call__(self, batch: Batch) -> Array:
        """(B, S, C) logits, or emissions of the CRF."""
        if self.crf:
            require_unpacked(batch)  # the chain would go on from text to text
        x_BSD = self.words(batch)
        hidden_BSD, _ = self.recurrent(
            x_BSD, self.recurrent.start(x_BSD.shape[0]), batch.source_valid_BS, segment_BT=batch.source_segment_BS
        )
        logits_BSC = self.output(self.drop(hidden_BSD))
        if self.crf and self.is_initializing():
            self.chain.viterbi(logits_BSC, batch.source_valid_BS)
        return logits_BSC

    def loss(self, batch: Batch, smoothing: float = 0.0) -> Loss:
        """-log p of `token_label_BS`; with the CRF of each row's chain of words, where -1 is any label.
        Counts labels.
        """
        logits_BSC = self(batch)
        if not self.crf:
            return classification_loss(logits_BSC, batch.token_label_BS, smoothing)
        if smoothing:
            raise UserError(f"label smoothing {smoothing} with a CRF: expected 0, or a tagger with crf=False")
        total = self.chain(logits_BSC, batch.token_label_BS, word_mask(batch)).sum()
        return Loss(total, total, (batch.token_label_BS >= 0).sum(dtype=jnp.float32))

    def predict_labels(self, batch: Batch) -> Array:
        """(B, S) int32: the likeliest label of each word, or the likeliest labels together; -1 where no word is."""
        logits_BSC, word_BS = self(batch), word_mask(batch)
        if self.crf:
            return self.chain.viterbi(logits_BSC, word_BS)
        return jnp.where(word_BS, logits_BSC.argmax(-1), -1).astype(jnp.int32)

"""The bidirectional recurrent tagger (Huang et al. 2015; Ma and Hovy 2016): a label for each token of the source.

h_1 ... h_S = birnn(dropout([e_t; characters_t])),   emission_t = W dropout(h_t) + b

p(y_t) = softmax(emission_t), or with a CRF p(y_1 ... y_S) of the chain in `jaxlm.nn.layers.crf`.
"""

import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.losses import Loss, classification_loss
from jaxlm.metrics.classification import forbidden_transitions
from jaxlm.models.rnn_classifier import RecurrentReader
from jaxlm.nn.layers.crf import CRF
from jaxlm.nn.layers.word_embedding import require_unpacked, word_mask
from jaxlm.types import Array, Batch


class RecurrentTagger(RecurrentReader):
    """A label for each source token.

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

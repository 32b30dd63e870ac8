"""A classifier that knows which words there are and not where: the mean of their vectors, then a feed-forward net.

z_0 = mean_t dropout(e_t),   z_{i+1} = relu(W_i z_i + b_i),   logits = W z_n + b          (Iyyer et al. 2015, "DAN")
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn.dropout import Dropout, keep_mask
from jaxlm.nn.linear import Linear
from jaxlm.nn.words import CharacterCNN, WordEmbedding, check_unpacked, words_of
from jaxlm.types import Array, Batch


class BagOfWords(nn.Module):
    """p(class | the words of the source, in any order).

    Attributes:
      vocab, labels: ids of words, classes.
      width: of a word's vector.
      hidden: widths of the hidden layers; none is logistic regression on the mean vector.
      characters: also reads the spelling of words.
      dropout: of the mean and the hidden layers.
      word_dropout: the share of words left out of the mean (Iyyer et al. 2015, section 3.1).
    """

    vocab: int
    labels: int
    width: int = 100
    hidden: tuple[int, ...] = (100,)
    characters: CharacterCNN | None = None
    dropout: float = 0.0
    word_dropout: float = 0.0

    def setup(self) -> None:
        self.words = WordEmbedding(self.vocab, self.width, self.characters)
        self.layers = [Linear(width) for width in self.hidden]
        self.output = Linear(self.labels)
        self.drop = Dropout(self.dropout)

    def __call__(self, batch: Batch) -> Array:
        """(B, C) logits. A row without a word has the mean 0."""
        check_unpacked(batch)
        x_BSD, counted_BS = self.words(batch), words_of(batch)
        if self.word_dropout and self.has_rng("dropout"):
            counted_BS &= keep_mask(self.make_rng("dropout"), self.word_dropout, counted_BS.shape)
        count_B1 = jnp.maximum(counted_BS.sum(1, keepdims=True), 1)
        z_BD = self.drop(jnp.where(counted_BS[..., None], x_BSD, 0.0).sum(1) / count_B1)
        for layer in self.layers:
            z_BD = self.drop(jax.nn.relu(layer(z_BD)))
        return self.output(z_BD)

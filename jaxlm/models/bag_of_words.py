"""A classifier that knows which words there are and not where: the mean of their vectors, then a feed-forward net.

z_0 = mean_t dropout(e_t),   z_{i+1} = relu(W_i z_i + b_i),   logits = W z_n + b          (Iyyer et al. 2015, "DAN")

With `pairs` the mean also takes a vector for each two neighbouring words, found by a hash (Joulin et al. 2017, section
2.2, "fastText"): "not good" is then more than "not" and "good".
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn.layers.dropout import Dropout, keep_mask
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.layers.word_embedding import CharacterCNN, WordEmbedding, require_unpacked, word_mask
from jaxlm.types import Array, Batch


class BagOfWords(nn.Module):
    """p(class | the words of the source, in any order).

    Attributes:
      vocab, labels: ids of words, classes.
      width: of a word's vector.
      hidden: widths of the hidden layers; none is logistic regression on the mean vector.
      characters: also reads the spelling of words.
      dropout: of the mean and the hidden layers.
      word_dropout: the share of words left out of the mean (Iyyer et al. 2015, section 3.1), and of pairs.
      pairs: vectors that pairs of neighbours share; 0 has none, and knows no order at all.
    """

    vocab: int
    num_labels: int
    width: int = 100
    hidden: tuple[int, ...] = (100,)
    characters: CharacterCNN | None = None
    dropout: float = 0.0
    word_dropout: float = 0.0
    bigram_buckets: int = 0

    def setup(self) -> None:
        self.words = WordEmbedding(self.vocab, self.width, self.characters)
        self.layers = [Linear(width) for width in self.hidden]
        self.output = Linear(self.num_labels)
        self.drop = Dropout(self.dropout)
        if self.bigram_buckets:
            width = self.width + (self.characters.filters if self.characters else 0)
            self.pair_embedding = self.param(
                "pair_embedding", nn.initializers.normal(0.1), (self.bigram_buckets, width)
            )

    def __call__(self, batch: Batch) -> Array:
        """(B, C) logits. A row without a word has the mean 0."""
        require_unpacked(batch)
        x_BSD, there_BS = self.words(batch), word_mask(batch)
        if self.bigram_buckets:
            pair_BS, both_BS = hash_bigrams(batch.source_BS, there_BS)
            x_BSD = jnp.concatenate([x_BSD, self.pair_embedding[pair_BS % self.bigram_buckets]], 1)
            there_BS = jnp.concatenate([there_BS, both_BS], 1)
        if self.word_dropout and self.has_rng("dropout"):
            there_BS &= keep_mask(self.make_rng("dropout"), self.word_dropout, there_BS.shape)
        count_B1 = jnp.maximum(there_BS.sum(1, keepdims=True), 1)
        z_BD = self.drop(jnp.where(there_BS[..., None], x_BSD, 0.0).sum(1) / count_B1)
        for layer in self.layers:
            z_BD = self.drop(jax.nn.relu(layer(z_BD)))
        return self.output(z_BD)


def hash_bigrams(id_BS: Array, word_BS: Array) -> tuple[Array, Array]:
    """A hash (uint32) of each word and the word before it, and where there are both; gaps are not looked at."""
    place_S = jnp.arange(id_BS.shape[1])[None]
    last_BS = jax.lax.cummax(jnp.where(word_BS, place_S, -1), axis=1)
    before_BS = jnp.pad(last_BS, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    other_BS = jnp.take_along_axis(id_BS, jnp.maximum(before_BS, 0), axis=1)
    hash_BS = id_BS.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + other_BS.astype(jnp.uint32) * jnp.uint32(0x85EBCA77)
    return hash_BS ^ (hash_BS >> 15), word_BS & (before_BS >= 0)

"""The bag-of-words classifier: the mean of the word embeddings, then a feed-forward network.

z_0 = mean_t dropout(e_t),   z_{i+1} = relu(W_i z_i + b_i),   logits = W z_n + b          (Iyyer et al. 2015, "DAN")

With `bigram_buckets` the mean includes hashed bigram embeddings (Joulin et al. 2017, section 2.2, "fastText"), so
that "not good" differs from "not" and "good".
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn.layers.dropout import Dropout, keep_mask
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.layers.word_embedding import CharacterCNN, WordEmbedding, require_unpacked, word_mask
from jaxlm.types import Array, Batch


class BagOfWords(nn.Module):
    """p(class | the words of the source in any order).

    Attributes:
      vocab, num_labels: number of word ids, and of classes.
      width: width of a word embedding.
      hidden: widths of the hidden layers; none: logistic regression on the mean embedding.
      characters: character CNN for the spelling of words; None: no characters.
      dropout: dropout rate of the mean embedding and the hidden layers.
      word_dropout: rate at which words and bigrams are left out of the mean (Iyyer et al. 2015, section 3.1).
      bigram_buckets: embeddings shared by all hashed bigrams; 0: no bigrams.
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
        self.words = WordEmbedding(self.vocab, self.width, characters=self.characters)
        self.layers = [Linear(width) for width in self.hidden]
        self.output = Linear(self.num_labels)
        self.drop = Dropout(self.dropout)
        if self.bigram_buckets:
            shape = (self.bigram_buckets, self.width + (self.characters.filters if self.characters else 0))
            self.pair_embedding = self.param("pair_embedding", nn.initializers.normal(0.1), shape)

    def __call__(self, batch: Batch) -> Array:
        """Return logits (B, C). A row without words has the mean 0."""
        require_unpacked(batch)
        x_BSD, is_word_BS = self.words(batch), word_mask(batch)
        if self.bigram_buckets:
            hash_BS, is_bigram_BS = hash_bigrams(batch.source_BS, is_word_BS)
            # Bigrams are appended to the words along S: (B, 2 S, D).
            x_BSD = jnp.concatenate([x_BSD, self.pair_embedding[hash_BS % self.bigram_buckets]], 1)
            is_word_BS = jnp.concatenate([is_word_BS, is_bigram_BS], 1)
        if self.word_dropout and self.has_rng("dropout"):
            is_word_BS &= keep_mask(self.make_rng("dropout"), self.word_dropout, is_word_BS.shape)
        count_B1 = jnp.maximum(is_word_BS.sum(1, keepdims=True), 1)
        z_BD = self.drop(jnp.where(is_word_BS[..., None], x_BSD, 0.0).sum(1) / count_B1)
        for layer in self.layers:
            z_BD = self.drop(jax.nn.relu(layer(z_BD)))
        return self.output(z_BD)


def hash_bigrams(id_BS: Array, word_BS: Array) -> tuple[Array, Array]:
    """Return a uint32 hash of each word and the previous word, and whether both exist; gaps are skipped."""
    position_S = jnp.arange(id_BS.shape[1])[None]
    last_BS = jax.lax.cummax(jnp.where(word_BS, position_S, -1), axis=1)  # the last word at or before each position
    previous_BS = jnp.pad(last_BS, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    previous_id_BS = jnp.take_along_axis(id_BS, jnp.maximum(previous_BS, 0), axis=1)
    # Two odd constants of xxHash, then a shift to mix the high bits into the low ones, which the modulus keeps.
    hash_BS = id_BS.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    hash_BS += previous_id_BS.astype(jnp.uint32) * jnp.uint32(0x85EBCA77)
    return hash_BS ^ (hash_BS >> 15), word_BS & (previous_BS >= 0)

"""Word representation of taggers and classifiers: a word embedding concatenated with a character-CNN vector.

characters c_1 ... c_W  ->  y_j = V [c_{j-1}; c_j; c_{j+1}] + b,   max_j y_j   (dos Santos and Zadrozny 2014; Ma and
Hovy 2016, section 2.1). Word dropout replaces words by UNK, so that UNK is trained and the characters are used
(Kiperwasser and Goldberg 2016).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.data.tokenizers.base import UNK
from jaxlm.errors import UserError
from jaxlm.nn.layers.dropout import Dropout, keep_mask
from jaxlm.nn.layers.embedding import embed_ids
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch


def word_mask(batch: Batch) -> Array:
    """Return (B, S), True on the words of the source, False on EOS, the last token of every text, and on padding."""
    valid_BS = jnp.asarray(batch.source_valid_BS)
    text_BS = valid_BS.astype(jnp.int32) if batch.source_segment_BS is None else jnp.asarray(batch.source_segment_BS)
    none = jnp.iinfo(jnp.int32).max
    # The text of the next valid token: padding may lie between two tokens of a text.
    next_BS = jax.lax.cummin(jnp.where(valid_BS, text_BS, none), axis=1, reverse=True)
    next_BS = jnp.pad(next_BS[:, 1:], ((0, 0), (0, 1)), constant_values=none)
    return valid_BS & (next_BS == text_BS)


def require_unpacked(batch: Batch) -> None:
    """Raises UserError if several texts share a row."""
    if batch.source_segment_BS is not None:
        raise UserError("several texts packed in a row: this model reads one text a row, use Buckets, not Packing")


class CharacterCNN(nn.Module):
    """The characters of a word -> `filters` features, each the maximum over the positions in the word.

    vocab: number of character ids; id 0 is padding. kernel_size: characters per filter, odd.
    """

    vocab: int
    width: int = 30
    filters: int = 50
    kernel_size: int = 3
    dropout: float = 0.0

    @nn.compact
    def __call__(self, character_BSW: Array) -> Array:
        """(B, S, W) -> (B, S, filters); 0 for a word without characters."""
        table = param_or_quantized(self, "embedding", _init_table, (self.vocab, self.width))
        character_RW = character_BSW.reshape(-1, character_BSW.shape[-1])  # R = B S words
        is_real_RW1 = (character_RW > 0)[..., None]
        x_RWD = Dropout(self.dropout)(jnp.where(is_real_RW1, embed_ids(table, character_RW), 0.0))
        side = self.kernel_size // 2
        padded = jnp.pad(x_RWD, ((0, 0), (side, side), (0, 0)))
        # The convolution as one product: each position with its neighbors, (R, W, kernel_size * D).
        neighbors = [padded[:, i : i + character_RW.shape[1]] for i in range(2 * side + 1)]
        y_RWF = Linear(self.filters, name="filters")(jnp.concatenate(neighbors, -1))
        y_RF = jnp.where(is_real_RW1, y_RWF, jnp.finfo(y_RWF.dtype).min).max(1)
        y_RF = jnp.where(is_real_RW1.any(1), y_RF, 0.0)
        return y_RF.reshape(*character_BSW.shape[:2], self.filters)


class WordEmbedding(nn.Module):
    """Source ids, and characters if there is a `characters` network -> (B, S, width + filters).

    dropout: of the vectors. word_dropout: rate at which words are read as `unk_id` in training.
    """

    vocab: int
    width: int = 100
    characters: CharacterCNN | None = None
    dropout: float = 0.0
    word_dropout: float = 0.0
    unk_id: int | None = UNK

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        """Raises UserError if the model reads characters and the batch has none."""
        id_BS = batch.source_BS
        if self.word_dropout and self.has_rng("dropout"):
            keep_BS = keep_mask(self.make_rng("dropout"), self.word_dropout, id_BS.shape)
            if self.unk_id is None:
                raise UserError("word dropout needs an unknown token, which the tokenizer lacks: set word_dropout = 0")
            id_BS = jnp.where(keep_BS | ~word_mask(batch), id_BS, self.unk_id)
        table = param_or_quantized(self, "embedding", _init_table, (self.vocab, self.width))
        x_BSD = embed_ids(table, id_BS)
        if self.characters is not None:
            if batch.character_BSW is None:
                raise UserError(
                    "the model reads the characters of words, and the batch has none: use the tokenizer WordsWithChars"
                )
            x_BSD = jnp.concatenate([x_BSD, self.characters(batch.character_BSW)], -1)
        return Dropout(self.dropout)(x_BSD)


def _init_table(key: Array, shape: tuple[int, int]) -> Array:
    """Variance 1 / width: uniform in +- sqrt(3 / width) (Ma and Hovy 2016, section 3.1)."""
    limit = (3.0 / shape[1]) ** 0.5
    return nn.initializers.uniform(2.0 * limit)(key, shape) - limit

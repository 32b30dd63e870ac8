"""What a word is at the entrance of a tagger or a classifier: a vector of its own, and one made of its characters.

characters c_1 ... c_W  ->  y_j = V [c_{j-1}; c_j; c_{j+1}] + b,   max_j y_j   (dos Santos and Zadrozny 2014; Ma and
Hovy 2016, section 2.1), beside the word's embedding. Word dropout puts UNK for a word, so that UNK is trained and the
characters are listened to (Kiperwasser and Goldberg 2016).
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
    """(B, S): True on the words of the source, False on EOS, the last token of every text, and on padding."""
    valid_BS = jnp.asarray(batch.source_valid_BS)
    text_BS = valid_BS.astype(jnp.int32) if batch.source_segment_BS is None else jnp.asarray(batch.source_segment_BS)
    none = jnp.iinfo(jnp.int32).max
    # The text of the next valid token: padding may lie between two tokens of a text.
    next_BS = jax.lax.cummin(jnp.where(valid_BS, text_BS, none), axis=1, reverse=True)
    next_BS = jnp.pad(next_BS[:, 1:], ((0, 0), (0, 1)), constant_values=none)
    return valid_BS & (next_BS == text_BS)


def require_unpacked(batch: Batch) -> None:
    """Raises UserError where several texts share a row."""
    if batch.source_segment_BS is not None:
        raise UserError("several texts packed in a row: this model reads one text a row, use Buckets, not Packing")


class CharacterCNN(nn.Module):
    """The characters of a word -> `filters` features, each the largest over the places in the word.

    vocab: ids of characters; id 0 is no character. kernel_size: characters that a filter sees, odd.
    """

    vocab: int
    width: int = 30
    filters: int = 50
    kernel_size: int = 3
    dropout: float = 0.0

    @nn.compact
    def __call__(self, character_BSW: Array) -> Array:
        """(B, S, W) -> (B, S, filters); 0 for a word without characters."""
        embedding = param_or_quantized(self, "embedding", _uniform_init(self.width), (self.vocab, self.width))
        letters_MW = character_BSW.reshape(-1, character_BSW.shape[-1])
        there_MW1 = (letters_MW > 0)[..., None]
        x_MWE = Dropout(self.dropout)(jnp.where(there_MW1, embed_ids(embedding, letters_MW), 0.0))
        side = self.kernel_size // 2
        padded = jnp.pad(x_MWE, ((0, 0), (side, side), (0, 0)))
        seen = [padded[:, i : i + letters_MW.shape[1]] for i in range(2 * side + 1)]
        y_MWF = Linear(self.filters, name="filters")(jnp.concatenate(seen, -1))
        y_MF = jnp.where(there_MW1, y_MWF, jnp.finfo(y_MWF.dtype).min).max(1)
        y_MF = jnp.where(there_MW1.any(1), y_MF, 0.0)
        return y_MF.reshape(*character_BSW.shape[:2], self.filters)


class WordEmbedding(nn.Module):
    """Source ids, and characters if `characters` is there -> (B, S, width + filters).

    dropout: of the vectors; word_dropout: the share of words that are read as `unk_id` if there is a dropout key.
    """

    vocab: int
    width: int = 100
    characters: CharacterCNN | None = None
    dropout: float = 0.0
    word_dropout: float = 0.0
    unk_id: int | None = UNK

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        """Raises UserError where characters are wanted and the batch has none."""
        id_BS = batch.source_BS
        if self.word_dropout and self.has_rng("dropout"):
            keep_BS = keep_mask(self.make_rng("dropout"), self.word_dropout, id_BS.shape)
            if self.unk_id is None:
                raise UserError("word dropout needs an unknown token, which the tokenizer lacks: set word_dropout = 0")
            id_BS = jnp.where(keep_BS | ~word_mask(batch), id_BS, self.unk_id)
        x_BSD = embed_ids(
            param_or_quantized(self, "embedding", _uniform_init(self.width), (self.vocab, self.width)), id_BS
        )
        if self.characters is not None:
            if batch.character_BSW is None:
                raise UserError(
                    "the model reads the characters of words, and the batch has none: use the tokenizer WordsWithChars"
                )
            spelled_BSF = self.characters(batch.character_BSW)
            x_BSD = jnp.concatenate([x_BSD, spelled_BSF], -1)
        return Dropout(self.dropout)(x_BSD)


def _uniform_init(width: int) -> nn.initializers.Initializer:
    """Variance 1 / width: uniform in +- sqrt(3 / width) (Ma and Hovy 2016, section 3.1)."""
    limit = (3.0 / width) ** 0.5

    def draw(key, shape, dtype=jnp.float32):
        return nn.initializers.uniform(2.0 * limit)(key, shape, dtype) - limit

    return draw

"""Dropout that is on if and only if a dropout key is passed.

Srivastava et al. 2014. The mask is a counter-based hash of (element index, key): two multiply-xor-shift rounds of the
MurmurHash3 finaliser instead of the twenty of threefry. It fuses into the surrounding element-wise work, depends on
the global index only (so a sharded run draws the same mask) and costs several times less on a CPU.

Masks that are drawn once a call and hold for all its positions: what keeps a recurrent net regular.

As in `jaxlm.nn.layers.dropout`, they are on if and only if a dropout key is passed.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.types import Array


def keep_mask(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """Boolean array of `shape`: True with probability 1 - rate, a pure function of the key and the index.

    Raises UserError unless 0 <= rate < 1.
    """
    if not 0.0 <= rate < 1.0:
        raise UserError(f"a dropout rate of {rate}: expected 0 <= rate < 1 (the model's dropout fields)")
    index = jax.lax.iota(jnp.uint32, _size(shape))
    return (random_uint32(key, index) >= jnp.uint32(round(rate * 2**32) & 0xFFFFFFFF)).reshape(shape)


def random_uint32(key: Array, index: Array) -> Array:
    """Random uint32, each a pure function of the key and of an index (uint32)."""
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
    return _murmur_round(_murmur_round(index ^ words[0]) ^ words[-1])


def _murmur_round(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


class Dropout(nn.Module):
    """Where a "dropout" key is given: zero each element with probability `rate`, scale the rest by 1 / (1 - rate)."""

    rate: float

    def __call__(self, x: Array) -> Array:
        """Any shape in, the same shape out."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        keep = keep_mask(self.make_rng("dropout"), self.rate, x.shape)
        return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - self.rate), x.dtype), jnp.zeros((), x.dtype))


class LockedDropout(nn.Module):
    """Dropout with one mask a row, the same at every position (variational: Gal and Ghahramani 2016, section 4)."""

    rate: float

    def __call__(self, x_BTD: Array) -> Array:
        """(B, T, D) -> (B, T, D)."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x_BTD
        keep_B1D = keep_mask(self.make_rng("dropout"), self.rate, (x_BTD.shape[0], 1, x_BTD.shape[2]))
        scale_B1D = jnp.where(keep_B1D, 1.0 / (1.0 - self.rate), 0.0).astype(x_BTD.dtype)
        return x_BTD * jnp.broadcast_to(scale_B1D, x_BTD.shape)


class EmbeddingDropout(nn.Module):
    """Drops whole word types: each with probability `rate`, at all its places (Gal and Ghahramani 2016, section 4.2).

    The mask is over the vocabulary, the work over the tokens: a row of the table is scaled where it is looked up.
    """

    rate: float
    vocab: int

    def __call__(self, x_BTD: Array, tokens_BT: Array) -> Array:
        """Embeddings (B, T, D) of `tokens_BT` -> the same, those of dropped types zero."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x_BTD
        keep_V = keep_mask(self.make_rng("dropout"), self.rate, (self.vocab,))
        scale_BT = jnp.where(keep_V[tokens_BT], 1.0 / (1.0 - self.rate), 0.0).astype(x_BTD.dtype)
        return x_BTD * jnp.broadcast_to(scale_BT[..., None], x_BTD.shape)


class DropConnect(nn.Module):
    """Zeroes each weight of a matrix with probability `rate` and scales the rest (Wan et al. 2013; Merity et al. 2018).

    On the recurrent matrix of an LSTM it is the weight drop of the AWD-LSTM: it acts on h_{t-1} without a mask that
    changes from position to position.
    """

    rate: float

    def __call__(self, W: Array) -> Array:
        """Any shape in, the same shape out."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return W
        keep = keep_mask(self.make_rng("dropout"), self.rate, W.shape)
        return jnp.where(keep, W * (1.0 / (1.0 - self.rate)), 0.0)

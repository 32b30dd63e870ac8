"""Dropout and its variants for recurrent networks, active if and only if there is a "dropout" key.

Srivastava et al. 2014. The mask is a counter-based hash of (element index, key): two multiply-xor-shift rounds of the
MurmurHash3 finalizer instead of the twenty rounds of threefry. It fuses into the surrounding element-wise operations,
depends on the global index only (a sharded run draws the same mask), and is several times faster on a CPU.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.types import Array


def keep_mask(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """Return a Boolean array, True with probability 1 - rate: a pure function of the key and the index."""
    if not 0.0 <= rate < 1.0:
        raise UserError(f"a dropout rate of {rate}: expected 0 <= rate < 1 (the model's dropout fields)")
    index = jax.lax.iota(jnp.uint32, math.prod(shape))
    return (random_uint32(key, index) >= jnp.uint32(round(rate * 2**32) & 0xFFFFFFFF)).reshape(shape)


def random_uint32(key: Array, index: Array) -> Array:
    """Return random uint32, each a pure function of the key and of an index (uint32)."""
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
    return _murmur_round(_murmur_round(index ^ words[0]) ^ words[-1])


def _murmur_round(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def drop_elements(x: Array, key: Array, rate: float) -> Array:
    """Return x with each element zeroed with probability `rate` and the others divided by 1 - rate."""
    return jnp.where(keep_mask(key, rate, x.shape), x / (1.0 - rate), 0.0)


class Dropout(nn.Module):
    """With a "dropout" key, zero each element with probability `rate` and scale the others by 1 / (1 - rate)."""

    rate: float

    def __call__(self, x: Array) -> Array:
        keep = self.draw_mask(x.shape)
        if keep is None:
            return x
        return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - self.rate), x.dtype), jnp.zeros((), x.dtype))

    def draw_mask(self, shape: tuple[int, ...]) -> Array | None:
        """Return the elements to keep, or None if nothing is dropped."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return None
        return keep_mask(self.make_rng("dropout"), self.rate, shape)

    def scale_kept(self, x_BTD: Array, keep: Array) -> Array:
        """Return x with the elements to keep divided by 1 - rate, and zeros; `keep` is broadcast to (B, T, D)."""
        scale = jnp.where(keep, 1.0 / (1.0 - self.rate), 0.0).astype(x_BTD.dtype)
        return x_BTD * jnp.broadcast_to(scale, x_BTD.shape)


class LockedDropout(Dropout):
    """Variational dropout: one mask per row for all positions (Gal and Ghahramani 2016, section 4)."""

    def __call__(self, x_BTD: Array) -> Array:
        keep_B1D = self.draw_mask((x_BTD.shape[0], 1, x_BTD.shape[2]))
        return x_BTD if keep_B1D is None else self.scale_kept(x_BTD, keep_B1D)


class EmbeddingDropout(Dropout):
    """Drop word types: each with probability `rate`, at all its positions (Gal and Ghahramani 2016, section 4.2)."""

    vocab: int

    def __call__(self, x_BTD: Array, tokens_BT: Array) -> Array:
        """Embeddings (B, T, D) of `tokens_BT` -> the same, zero for dropped types."""
        keep_V = self.draw_mask((self.vocab,))
        return x_BTD if keep_V is None else self.scale_kept(x_BTD, keep_V[tokens_BT][..., None])


class DropConnect(Dropout):
    """Dropout of the weights of a matrix (Wan et al. 2013), the weight drop of AWD-LSTM (Merity et al. 2018)."""

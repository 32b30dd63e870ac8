"""Dropout that is on if and only if a dropout key is passed.

Srivastava et al. 2014. The mask is a counter-based hash of (element index, key): two multiply-xor-shift rounds of the
MurmurHash3 finaliser instead of the twenty of threefry. It fuses into the surrounding element-wise work, depends on
the global index only (so a sharded run draws the same mask) and costs several times less on a CPU.
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
    return (hashed(key, index) >= jnp.uint32(round(rate * 2**32) & 0xFFFFFFFF)).reshape(shape)


def hashed(key: Array, index: Array) -> Array:
    """Random uint32, each a pure function of the key and of an index (uint32)."""
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
    return _mix(_mix(index ^ words[0]) ^ words[-1])


def _mix(bits: Array) -> Array:
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

"""A checksum of the bits of an array, computed where the array lives.

Storage can give back wrong bytes without an error. Two 32-bit words per leaf, stored beside the data and compared
after reading, tell. Word w_i is the i-th element's bits (an element wider than 32 bits is several words); with
p, q odd constants and `mix` the finaliser of MurmurHash3 (a bijection on 32 bits):

    t_i = mix(w_i xor p i)        first = sum_i t_i        second = sum_i (2 i + 1) t_i        (all modulo 2^32)

For a fixed position w -> t is a bijection and the factors are odd, so any change within one word changes both sums;
moved elements change them too. Sums modulo 2^32 have no order, so the value does not depend on how the array is
sharded. It reads each byte once; bits are compared, so NaN equals itself and 0.0 differs from -0.0.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INDEX_FACTOR = 0x9E3779B1


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """The checksum of each leaf as 16 hexadecimal digits; leaves: arrays, PRNG keys, numbers.

    One after the other: many programs with collectives under way at once are a deadlock on a CPU that stands for
    several devices, since each holds some of its threads while it waits for the others.
    """
    return {name: _to_hex(jax.device_get(_checksum(_to_jax_compatible(leaf)))) for name, leaf in leaves.items()}


def _to_hex(words: Any) -> str:
    return "".join(f"{int(word):08x}" for word in words)


def _to_jax_compatible(leaf: Any) -> Any:
    """Numbers and NumPy arrays as arrays that JAX takes without narrowing them; JAX arrays as they are."""
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.itemsize > 4:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    return array


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    words = _to_uint32_words(leaf)
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = _fmix32(words ^ (index * jnp.uint32(INDEX_FACTOR)))
    zero = jnp.uint32(0)
    both = (mixed, mixed * (2 * index + 1))  # one reduction of a pair reads the array once: 3 to 5 times a pair of sums
    return jnp.stack(jax.lax.reduce(both, (zero, zero), _add_pairs, tuple(range(words.ndim))))


def _add_pairs(left, right):
    return left[0] + right[0], left[1] + right[1]


def _fmix32(h: jax.Array) -> jax.Array:
    """fmix32 of MurmurHash3 (Appleby, 2008)."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _to_uint32_words(leaf: jax.Array) -> jax.Array:
    """The bits of each element as uint32; two words (a new last axis) for an element of 64 bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype.itemsize > 4:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jax.lax.bitcast_convert_type(leaf, f"uint{jnp.finfo(leaf.dtype).bits}")
    return leaf.astype(jnp.uint32)

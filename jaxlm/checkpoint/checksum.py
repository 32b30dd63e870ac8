"""A checksum of the bits of an array, computed on the devices of the array.

Storage can return wrong bytes without an error. Two 32-bit words per leaf, stored with the data and compared after
reading, detect this. Word w_i holds the bits of the i-th element (an element wider than 32 bits is several words);
with an odd constant p and `mix` the finalizer of MurmurHash3 (a bijection on 32 bits):

    t_i = mix(w_i xor p i)        first = sum_i t_i        second = sum_i (2 i + 1) t_i        (all modulo 2^32)

For a fixed position w -> t is a bijection and the factors are odd, so any change within one word changes both sums;
moved elements change them too. Sums modulo 2^32 do not depend on the order, so the value does not depend on the
sharding of the array. Each byte is read once. Bits are compared: NaN equals itself and 0.0 differs from -0.0.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INDEX_FACTOR = 0x9E3779B1


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """The checksum of each leaf (array, PRNG key or number) as 16 hexadecimal digits."""
    # device_get waits for each leaf in turn: on a CPU that simulates several devices, programs with collectives that
    # run at the same time deadlock, since each holds some of the threads while it waits for the others.
    words = {name: jax.device_get(_checksum(_to_jax_compatible(leaf))) for name, leaf in leaves.items()}
    return {name: "".join(f"{int(word):08x}" for word in pair) for name, pair in words.items()}


def _to_jax_compatible(leaf: Any) -> Any:
    """A leaf as an array that JAX accepts without narrowing it to 32 bits."""
    if isinstance(leaf, jax.Array) or (array := np.asarray(leaf)).dtype.itemsize <= 4:
        return leaf
    return np.ascontiguousarray(array).reshape(-1).view(np.uint32)


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    words = _to_uint32_words(leaf)
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    h = words ^ (index * jnp.uint32(INDEX_FACTOR))  # fmix32 of MurmurHash3 (Appleby, 2008):
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h = h ^ (h >> 16)
    zeros, axes = (jnp.uint32(0), jnp.uint32(0)), tuple(range(words.ndim))
    # One reduction of pairs reads the array once; it is 3 to 5 times as fast as two sums.
    return jnp.stack(jax.lax.reduce((h, h * (2 * index + 1)), zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), axes))


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

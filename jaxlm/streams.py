"""Randomness with an address: a key is named by what it is for and by the step, never by how many were drawn before."""

from zlib import crc32

import jax

from jaxlm.types import Array


def stream(seed: int, purpose: str, step: int | Array = 0) -> Array:
    """The key for one purpose at one step. A new purpose never moves an old one's numbers."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), crc32(purpose.encode())), step)

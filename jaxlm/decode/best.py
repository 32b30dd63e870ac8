"""The best few of very many scores, with exact tie-breaking and without a sort.

Shape letters, on top of those of `jaxlm.types`: X an axis of many scores, G its chunks, A the few that are taken.
"""

import jax.numpy as jnp
from jax import lax

from jaxlm.types import Array

CHUNK = 32
"""Scores a chunk. Measured on two AVX512 cores for [64, 5 * 10000] and 10 wanted: 3.9 ms; 8.2 ms with one `top_k`."""
SMALL = 4096
"""Below this many scores one `top_k` is as fast."""


def best(score_BX: Array, count: int) -> tuple[Array, Array]:
    """The `count` best scores of each row, best first, and their indices: equal scores in the order of their indices.

    Returns score_BA and index_BA (int32). If there are fewer than `count` scores, the rest is -inf (and index 0).
    """
    width = score_BX.shape[1]
    take = min(count, width)
    if width < SMALL or 4 * take * CHUNK > width:
        score_BA, index_BA = lax.top_k(score_BX, take)
    else:
        score_BA, index_BA = _best_by_chunks(score_BX, take)
    padding = ((0, 0), (0, count - take))
    return jnp.pad(score_BA, padding, constant_values=-jnp.inf), jnp.pad(index_BA, padding)


def divisor(width: int) -> int:
    """The size of equal chunks of a row, near CHUNK; 1, which is none, where the row is short or nothing divides it."""
    near = [size for size in range(CHUNK // 2, 2 * CHUNK + 1) if width % size == 0]
    return min(near, key=lambda size: abs(size - CHUNK)) if near and width >= SMALL else 1


def _best_by_chunks(score_BX: Array, count: int) -> tuple[Array, Array]:
    """`lax.top_k` over the `count` chunks with the greatest maximum, and over the remainder of the last chunk.

    No winner is lost: had a chunk outside the chosen ones a winner, each of the `count` chosen would hold a score that
    is greater, or equal and earlier. The chosen chunks are put in order, so that ties still fall to the lower index.
    """
    batch, width = score_BX.shape
    whole = width // CHUNK * CHUNK
    peak_BG = score_BX[:, :whole].reshape(batch, whole // CHUNK, CHUNK).max(axis=-1)
    chunk_BA = jnp.sort(lax.top_k(peak_BG, count)[1], axis=-1)
    inside = jnp.arange(CHUNK, dtype=jnp.int32)
    index_BX = (chunk_BA[:, :, None] * CHUNK + inside[None, None, :]).reshape(batch, count * CHUNK)
    rest = jnp.broadcast_to(jnp.arange(whole, width, dtype=jnp.int32)[None, :], (batch, width - whole))
    index_BX = jnp.concatenate([index_BX, rest], axis=1)
    score_BA, place_BA = lax.top_k(jnp.take_along_axis(score_BX, index_BX, axis=1, mode="clip"), count)
    return score_BA, jnp.take_along_axis(index_BX, place_BA, axis=1, mode="clip")

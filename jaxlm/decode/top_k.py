"""Top-k of many scores, with exact tie-breaking and without sorting all of them.

Shape letters, on top of those of `jaxlm.types`: X an axis of many scores, G its chunks, A the few that are taken.
"""

import jax.numpy as jnp
from jax import lax

from jaxlm.types import Array

SCORES_PER_CHUNK = 32
"""Scores a chunk. On two AVX512 cores, the best 10 of [64, 5 * 10000] take 3.9 ms; one `top_k` takes 8.2 ms."""

MIN_CHUNKED_SIZE = 4096
"""Below this many scores one `top_k` is as fast."""


def chunked_top_k(score_BX: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` best scores of each row, score_BA, and their int32 index_BA, best first.

    Equal scores are in the order of their indices. If there are fewer than `count` scores, the others are -inf with
    index 0.
    """
    width = score_BX.shape[1]
    if width >= MIN_CHUNKED_SIZE and 4 * count * SCORES_PER_CHUNK <= width:
        return _top_k_by_chunks(score_BX, count)
    score_BA, index_BA = lax.top_k(score_BX, min(count, width))
    padding = ((0, 0), (0, max(0, count - width)))
    return jnp.pad(score_BA, padding, constant_values=-jnp.inf), jnp.pad(index_BA, padding)


def chunk_size(width: int) -> int:
    """Return the size of equal chunks of a row, near SCORES_PER_CHUNK; 1 if the row is short or no size divides it."""
    near = [size for size in range(SCORES_PER_CHUNK // 2, 2 * SCORES_PER_CHUNK + 1) if width % size == 0]
    return min(near, key=lambda size: abs(size - SCORES_PER_CHUNK)) if near and width >= MIN_CHUNKED_SIZE else 1


def _top_k_by_chunks(score_BX: Array, count: int) -> tuple[Array, Array]:
    """Apply `lax.top_k` to the `count` chunks with the greatest maximum, and to the remainder after the last chunk."""
    # No winner is lost: if another chunk had one, each of the `count` chosen chunks would hold a score that is greater,
    # or equal and earlier. The chosen chunks are sorted, so that ties still fall to the lower index.
    batch, width = score_BX.shape
    whole = width // SCORES_PER_CHUNK * SCORES_PER_CHUNK
    peak_BG = score_BX[:, :whole].reshape(batch, whole // SCORES_PER_CHUNK, SCORES_PER_CHUNK).max(axis=-1)
    chunk_BA = jnp.sort(lax.top_k(peak_BG, count)[1], axis=-1)
    inside_C = jnp.arange(SCORES_PER_CHUNK, dtype=jnp.int32)
    # (B, A, C) -> (B, A * C), then the columns after the last whole chunk
    index_BX = (chunk_BA[:, :, None] * SCORES_PER_CHUNK + inside_C[None, None, :]).reshape(batch, -1)
    remainder_BX = jnp.broadcast_to(jnp.arange(whole, width, dtype=jnp.int32)[None, :], (batch, width - whole))
    index_BX = jnp.concatenate([index_BX, remainder_BX], axis=1)
    score_BA, rank_BA = lax.top_k(jnp.take_along_axis(score_BX, index_BX, axis=1, mode="clip"), count)
    return score_BA, jnp.take_along_axis(index_BX, rank_BA, axis=1, mode="clip")

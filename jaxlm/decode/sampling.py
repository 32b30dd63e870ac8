"""Sampling: temperature, top-k, top-p and min-p filters, and the Gumbel-max choice of a token.

argmax(logprob + Gumbel noise) is a sample of softmax(logprob). The noise of a token is a hash of (seed, line number,
step, id), so that the sample of a line depends neither on its batch nor on its row. The three filters judge the same
temperature-scaled distribution, and a token must pass all of them; tokens of equal probability are kept or removed
together.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.errors import UserError
from jaxlm.nn.layers.dropout import random_uint32
from jaxlm.types import Array

BITS_OF_ONE = 0x3F800000  # 1.0 as a float32


@dataclass(frozen=True)
class Sampler:
    """The options of sampling.

    temperature: divides the logits; 0 is greedy search, and the filters then have no effect.
    top_k: keep the k most probable tokens; 0 keeps all.
    top_p: keep the fewest most probable tokens that reach this probability together; 1 keeps all.
    min_p: keep the tokens with at least this share of the greatest probability; 0 keeps all.
    repetition_penalty: penalty on ids that the prompt or the continuation contains (see `apply_repetition_penalty`);
        1 is off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature={self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} must be between 0 (off) and 1")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise UserError(
                f"repetition_penalty={self.repetition_penalty} must be a positive number: 1 (off), or above 1 to "
                "repeat less"
            )

    @property
    def greedy(self) -> bool:
        """True if the sampler takes the most probable token."""
        return self.temperature == 0


def apply_repetition_penalty(logits_BV: Array, seen_BV: Array, repetition_penalty: float) -> Array:
    """Divide the logits of seen ids by the penalty if positive, multiply them if negative (Keskar et al. 2019)."""
    penalized_BV = jnp.where(logits_BV > 0, logits_BV / repetition_penalty, logits_BV * repetition_penalty)
    return jnp.where(seen_BV, penalized_BV, logits_BV)


def filter_top_k(logprob_BV: Array, top_k: int) -> tuple[Array, Array]:
    """Keep the `top_k` greatest and their equals; also the ids (B, A) of the A = `top_k` (off: 1) greatest."""
    if not 0 < top_k < logprob_BV.shape[1]:
        return logprob_BV, chunked_top_k(logprob_BV, 1)[1]
    score_BA, id_BA = chunked_top_k(logprob_BV, top_k)
    kth_B1 = score_BA.min(1, keepdims=True)  # not a slice of the last column, for which XLA would sort
    return jnp.where(logprob_BV >= kth_B1, logprob_BV, -jnp.inf), id_BA


def filter_top_p(logprob_BV: Array, top_p: float) -> Array:
    """Keep the tokens with p >= c for the greatest c at which they reach `top_p` (Holtzman et al. 2020).

    Bisection over the bits of a float32 finds c, because non-negative floats are ordered like their bits: 31 sums, a
    tenth of the time of sorting 10,000 ids on a CPU.
    """
    if top_p >= 1:
        return logprob_BV
    p_BV = jax.nn.softmax(logprob_BV, axis=-1)
    bits_BV = lax.bitcast_convert_type(p_BV, jnp.int32)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        mass_B = jnp.sum(jnp.where(bits_BV >= middle_B[:, None], p_BV, 0.0), axis=1)
        enough_B = mass_B >= top_p
        return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)

    low_B = jnp.zeros(p_BV.shape[0], jnp.int32)
    low_B, _ = lax.fori_loop(0, 31, halve, (low_B, jnp.full_like(low_B, BITS_OF_ONE + 1)))
    return jnp.where(bits_BV >= low_B[:, None], logprob_BV, -jnp.inf)


def filter_min_p(logprob_BV: Array, min_p: float) -> Array:
    """Keep the tokens with p >= min_p * max p (Nguyen et al. 2024)."""
    if min_p <= 0:
        return logprob_BV
    floor_B1 = jnp.max(logprob_BV, axis=1, keepdims=True) + math.log(min_p)
    return jnp.where(logprob_BV >= floor_B1, logprob_BV, -jnp.inf)


def apply_filters(logprob_BV: Array, sampler: Sampler) -> tuple[Array, Array]:
    """Set the temperature-scaled log-probabilities_BV of the tokens that any filter removes to -inf.

    The best token is always kept. XLA may compute a score twice and round the last bit differently, so the greatest
    score of `filter_top_k` may exceed all scores that it is compared with; no barrier prevents that. Also returns the
    ids of `filter_top_k`.
    """
    kept_BV, id_BA = filter_top_k(logprob_BV, sampler.top_k)
    kept_BV = jnp.where(filter_top_p(logprob_BV, sampler.top_p) > -jnp.inf, kept_BV, -jnp.inf)
    kept_BV = jnp.where(filter_min_p(logprob_BV, sampler.min_p) > -jnp.inf, kept_BV, -jnp.inf)
    return jnp.where(id_BA[:, :1] == jnp.arange(logprob_BV.shape[1])[None, :], logprob_BV, kept_BV), id_BA


def line_rng_keys(seed: Array | int, line_B: Array) -> Array:
    """Return one random key a line: fold_in(key(seed), line number)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), line_B)


def sample(logprob_BV: Array, key_B: Array, step: Array | int, sampler: Sampler) -> Array:
    """Sample one int32 token_B a row from the filtered, temperature-scaled distribution; `key_B`: `line_rng_keys`.

    Noise is computed for the ids that top-k keeps, or for all ids if ties let the filter keep more than k.
    """
    kept_BV, id_BA = apply_filters(logprob_BV, sampler)

    def noise(key: Array, id_X: Array) -> Array:
        bits_X = random_uint32(jax.random.fold_in(key, step), id_X.astype(jnp.uint32))
        uniform_X = ((bits_X >> 9).astype(jnp.float32) + 0.5) * 2.0**-23  # never 0, never 1
        return -jnp.log(-jnp.log(uniform_X))

    def sample_from_all() -> Array:
        return row_argmax(kept_BV + jax.vmap(noise, (0, None))(key_B, jnp.arange(kept_BV.shape[1])))

    def sample_from_top_k() -> Array:
        score_BA = top_BA + jax.vmap(noise)(key_B, id_BA)
        best_BA = score_BA == score_BA.max(1, keepdims=True)
        return jnp.where(best_BA, id_BA, kept_BV.shape[1]).min(1).astype(jnp.int32)  # ties to the lower id

    if id_BA.shape[1] == 1:
        return sample_from_all()
    top_BA = jnp.take_along_axis(kept_BV, id_BA, axis=1, mode="clip")
    no_ties = jnp.all((kept_BV > -jnp.inf).sum(1) == (top_BA > -jnp.inf).sum(1))
    return lax.cond(no_ties, sample_from_top_k, sample_from_all)


def row_argmax(score_BV: Array) -> Array:
    """Return the id of the greatest score of each row, ties to the lower id; on a CPU much faster than argmax."""
    return chunked_top_k(score_BV, 1)[1][:, 0]


SCORES_PER_CHUNK = 32
"""Scores a chunk. On two AVX512 cores, the best 10 of [64, 5 * 10000] take 3.9 ms; one `top_k` takes 8.2 ms."""

MIN_CHUNKED_SIZE = 4096
"""Below this many scores one `top_k` is as fast."""


def chunked_top_k(score_BX: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` best scores of each row, score_BA, and their int32 index_BA, best first, without sorting all.

    Equal scores are in the order of their indices. If there are fewer than `count` scores, the others are -inf with
    index 0. Shape letters: X an axis of many scores, G its chunks, A the few that are taken.
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

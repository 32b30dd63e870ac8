"""Choose one token from a distribution: greedily, or by sampling from what the filters leave.

Sampling is Gumbel-max: argmax(logprob + noise) is a sample of softmax(logprob). The noise of a token has an address,
(seed, line number, step, id), so that the sample of a line depends neither on its batch mates nor on its row.
The three filters judge one and the same distribution, the temperature-scaled one, and a token must pass all of them;
tokens of equal probability stay or go together.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.decode.top_k import chunked_top_k
from jaxlm.errors import UserError
from jaxlm.nn.layers.dropout import random_uint32
from jaxlm.types import Array

BITS_OF_ONE = 0x3F800000


@dataclass(frozen=True)
class Sampler:
    """How to choose the next token.

    temperature: divides the logits; 0 is greedy search exactly, whatever the filters.
    top_k: keep the k most probable tokens; 0 keeps all.
    top_p: keep the fewest most probable tokens that reach this probability together; 1 keeps all.
    min_p: keep the tokens with at least this share of the greatest probability; 0 keeps all.
    repetition: penalty on ids that the prompt or the text already has (see `penalised`); 1 is none.
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
        return self.temperature == 0


def apply_repetition_penalty(logits_BV: Array, seen_BV: Array, repetition_penalty: float) -> Array:
    """Logits of seen ids divided by `repetition` where positive, multiplied where negative (Keskar et al. 2019)."""
    less_BV = jnp.where(logits_BV > 0, logits_BV / repetition_penalty, logits_BV * repetition_penalty)
    return jnp.where(seen_BV, less_BV, logits_BV)


def filter_top_k(logprob_BV: Array, top_k: int) -> Array:
    """-inf on all but the `top_k` greatest; those equal to the last one stay."""
    return _filter_top_k_with_ids(logprob_BV, top_k)[0]


def _filter_top_k_with_ids(logprob_BV: Array, top_k: int) -> tuple[Array, Array]:
    """`filter_top_k`, and the `top_k` ids, greatest first, of equal ones the lowest: (B, A); one, where it is off."""
    some = 0 < top_k < logprob_BV.shape[1]
    score_BA, id_BA = chunked_top_k(logprob_BV, top_k if some else 1)
    kth_B1 = score_BA.min(1, keepdims=True)  # of a slice of the last one XLA would make a sort
    return jnp.where(logprob_BV >= kth_B1, logprob_BV, -jnp.inf) if some else logprob_BV, id_BA


def filter_top_p(logprob_BV: Array, top_p: float) -> Array:
    """-inf on all but the tokens with p >= c, for the greatest c at which they reach `top_p` (Holtzman et al., 2020).

    c is found by bisection over the bits of a float32 (non-negative floats are ordered as their bits are): 31 sums,
    a tenth of the time of a sort of 10,000 ids on a CPU.
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
    """-inf on the tokens with p < min_p * max p (Nguyen et al., 2024)."""
    if min_p <= 0:
        return logprob_BV
    floor_B1 = jnp.max(logprob_BV, axis=1, keepdims=True) + math.log(min_p)
    return jnp.where(logprob_BV >= floor_B1, logprob_BV, -jnp.inf)


def apply_filters(logprob_BV: Array, sampler: Sampler) -> Array:
    """The temperature-scaled log-probabilities_BV with -inf on what any of the sampler's filters removes.

    The best token always stays: XLA may compute a score twice, with the last bit rounded otherwise, and the greatest
    score that `filter_top_k` found would then be above all that it compares it with. No barrier keeps it from that.
    """
    return _apply_filters_with_ids(logprob_BV, sampler)[0]


def _apply_filters_with_ids(logprob_BV: Array, sampler: Sampler) -> tuple[Array, Array]:
    """`filtered`, and the ids that `top_k` keeps, of those equal to the last one the lowest: (B, A)."""
    kept_BV, id_BA = _filter_top_k_with_ids(logprob_BV, sampler.top_k)
    kept_BV = jnp.where(filter_top_p(logprob_BV, sampler.top_p) > -jnp.inf, kept_BV, -jnp.inf)
    kept_BV = jnp.where(filter_min_p(logprob_BV, sampler.min_p) > -jnp.inf, kept_BV, -jnp.inf)
    return jnp.where(id_BA[:, :1] == jnp.arange(logprob_BV.shape[1])[None, :], logprob_BV, kept_BV), id_BA


def line_rng_keys(seed: Array | int, line_B: Array) -> Array:
    """One random key a line: fold_in(key(seed), line number)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), line_B)


def sample(logprob_BV: Array, key_B: Array, step: Array | int, sampler: Sampler) -> Array:
    """One token_B (int32) a row from the filtered, temperature-scaled distribution; `key_B` from `line_keys`.

    Noise is made for the ids that top-k keeps, unless there are more of them: of equal probability.
    """
    kept_BV, id_BA = _apply_filters_with_ids(logprob_BV, sampler)

    def noise(key: Array, id_X: Array) -> Array:
        bits_X = random_uint32(jax.random.fold_in(key, step), id_X.astype(jnp.uint32))
        uniform_X = ((bits_X >> 9).astype(jnp.float32) + 0.5) * 2.0**-23  # never 0, never 1
        return -jnp.log(-jnp.log(uniform_X))

    def of_all() -> Array:
        every_V = jnp.arange(kept_BV.shape[1])
        return row_argmax(kept_BV + jax.vmap(noise, (0, None))(key_B, every_V))

    def of_few() -> Array:
        score_BA = few_BA + jax.vmap(noise)(key_B, id_BA)
        first_BA = score_BA == score_BA.max(1, keepdims=True)
        return jnp.where(first_BA, id_BA, kept_BV.shape[1]).min(1).astype(jnp.int32)

    if id_BA.shape[1] == 1:
        return of_all()
    few_BA = jnp.take_along_axis(kept_BV, id_BA, axis=1, mode="clip")
    return lax.cond(jnp.all((kept_BV > -jnp.inf).sum(1) == (few_BA > -jnp.inf).sum(1)), of_few, of_all)


def row_argmax(score_BV: Array) -> Array:
    """The id of the greatest score of each row, the lowest among equals; on a CPU several times faster than argmax."""
    return chunked_top_k(score_BV, 1)[1][:, 0]

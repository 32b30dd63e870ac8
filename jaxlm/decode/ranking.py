"""How hypotheses of different lengths compare, and when a row need not go on.

S = s / lp(L) + reward * L. lp is a table over lengths that goes into the compiled search as an argument: a sweep over
alpha compiles once, and the values are NumPy's on every device.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.decode.options import Beam
from jaxlm.types import Array


@struct.dataclass
class Ranking:
    """penalty_T: lp(L) at index L = 0 .. length, float32; reward and coverage: gamma and beta, float32 scalars."""

    penalty_T: Array
    reward: Array
    coverage: Array


def ranking(beam: Beam, length: int) -> Ranking:
    """The table of a beam's length penalty (gnmt: Wu et al., 2016, equation 14)."""
    lengths = np.arange(length + 1, dtype=np.float64)
    base = {"none": np.ones_like(lengths), "power": np.maximum(lengths, 1), "gnmt": (5 + lengths) / 6}[beam.penalty]
    numbers: list[Any] = [np.asarray(x, np.float32) for x in (base**beam.alpha, beam.reward, beam.coverage)]
    return Ranking(*numbers)


def final_score(logprob: Array, length: Array, rank: Ranking, uncounted: Array | int = 0) -> Array:
    """S of hypotheses (any shape) without coverage; lp is taken at length - uncounted."""
    penalty = jnp.take(rank.penalty_T, jnp.maximum(length - uncounted, 0), mode="clip")
    return logprob / penalty + rank.reward * length.astype(jnp.float32)


def uncovered(covered_RS: Array, slots: int) -> Array:
    """sum_j log min(c_j, 1) of each slot_BK, at most 0; a position that nothing looked at counts as the least float."""
    clipped_RS = jnp.clip(covered_RS.astype(jnp.float32), jnp.finfo(jnp.float32).tiny, 1.0)
    return jnp.log(clipped_RS).sum(-1).reshape(-1, slots)


def can_stop(
    beam: Beam, rank: Ranking, length_B: Array, limit_B: Array, live_BK: Array, score_BK: Array, first_B: Array
) -> Array:
    """True_B where the rule `beam.stop` ends a row after the step that made hypotheses of `length_B` tokens.

    live_BK: s of the live hypotheses, best first; score_BK: S of the finished ones, best first, -inf where there is
    none; first_B: the best candidate of some step so far was finished.
    """
    full_B = score_BK[:, -1] > -jnp.inf
    if beam.size == 1 or beam.stop == "full":
        return full_B
    if beam.stop == "first":
        return first_B & (score_BK[:, beam.returns - 1] > -jnp.inf)
    if beam.stop == "heuristic":
        return full_B & (score_BK[:, -1] >= final_score(live_BK[:, 0], length_B, rank))
    if beam.stop == "exact":
        reachable_B = _reachable(live_BK[:, 0], length_B, limit_B, rank, beam.count_stop)
        return (score_BK[:, beam.returns - 1] >= reachable_B) & (rank.reward <= 0)
    return jnp.zeros(full_B.shape, bool)


def _reachable(logprob_B: Array, length_B: Array, limit_B: Array, rank: Ranking, count_stop: bool) -> Array:
    """The best S that a live hypothesis with score s can reach, if the reward is not positive. Coverage adds <= 0.

    Step scores are <= 0, so s can only fall; lp is monotone in L, so that s / lp(L) is greatest at an end of
    [length + 1, limit]: at the limit for alpha > 0, at the next token for alpha < 0, and anywhere for alpha = 0.
    """
    soon_B = jnp.take(rank.penalty_T, length_B + count_stop, mode="clip")
    penalty_B = jnp.maximum(soon_B, jnp.take(rank.penalty_T, limit_B, mode="clip"))
    return logprob_B / penalty_B + rank.reward * (length_B + 1).astype(jnp.float32)

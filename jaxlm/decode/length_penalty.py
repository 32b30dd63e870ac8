"""How hypotheses of different lengths compare, and when a row need not go on.

S = s / lp(L) + reward * L. lp is a table over lengths that goes into the compiled search as an argument: a sweep over
alpha compiles once, and the values are NumPy's on every device.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.decode.beam_config import Beam
from jaxlm.types import Array


@struct.dataclass
class ScoreParams:
    """penalty_T: lp(L) at index L = 0 .. length, float32; reward and coverage: gamma and beta, float32 scalars."""

    penalty_T: Array
    length_reward: Array
    coverage_penalty: Array


def make_score_params(beam: Beam, length: int) -> ScoreParams:
    """The table of a beam's length penalty (gnmt: Wu et al., 2016, equation 14)."""
    lengths = np.arange(length + 1, dtype=np.float64)
    base = {"none": np.ones_like(lengths), "power": np.maximum(lengths, 1), "gnmt": (5 + lengths) / 6}[
        beam.length_penalty_kind
    ]
    numbers: list[Any] = [
        np.asarray(x, np.float32) for x in (base**beam.length_penalty, beam.length_reward, beam.coverage_penalty)
    ]
    return ScoreParams(*numbers)


def final_score(logprob: Array, length: Array, score_params: ScoreParams, uncounted: Array | int = 0) -> Array:
    """S of hypotheses (any shape) without coverage; lp is taken at length - uncounted."""
    penalty = jnp.take(score_params.penalty_T, jnp.maximum(length - uncounted, 0), mode="clip")
    return logprob / penalty + score_params.length_reward * length.astype(jnp.float32)


def log_coverage(coverage_RS: Array, slots: int) -> Array:
    """sum_j log min(c_j, 1) of each slot_BK, at most 0; a position that nothing looked at counts as the least float."""
    clipped_RS = jnp.clip(coverage_RS.astype(jnp.float32), jnp.finfo(jnp.float32).tiny, 1.0)
    return jnp.log(clipped_RS).sum(-1).reshape(-1, slots)


def can_stop(
    beam: Beam,
    score_params: ScoreParams,
    length_B: Array,
    limit_B: Array,
    live_BK: Array,
    score_BK: Array,
    top_stopped_B: Array,
) -> Array:
    """True_B where the rule `beam.stopping_rule` ends a row after the step that made hypotheses of `length_B` tokens.

    live_BK: s of the live hypotheses, best first; score_BK: S of the finished ones, best first, -inf where there is
    none; first_B: the best candidate of some step so far was finished.
    """
    full_B = score_BK[:, -1] > -jnp.inf
    if beam.num_beams == 1 or beam.stopping_rule == "full":
        return full_B
    if beam.stopping_rule == "first":
        return top_stopped_B & (score_BK[:, beam.num_return_sequences - 1] > -jnp.inf)
    if beam.stopping_rule == "heuristic":
        return full_B & (score_BK[:, -1] >= final_score(live_BK[:, 0], length_B, score_params))
    if beam.stopping_rule == "exact":
        reachable_B = _max_reachable_score(live_BK[:, 0], length_B, limit_B, score_params, beam.count_eos)
        return (score_BK[:, beam.num_return_sequences - 1] >= reachable_B) & (score_params.length_reward <= 0)
    return jnp.zeros(full_B.shape, bool)


def _max_reachable_score(
    logprob_B: Array, length_B: Array, limit_B: Array, score_params: ScoreParams, count_eos: bool
) -> Array:
    """The best S that a live hypothesis with score s can reach, if the reward is not positive. Coverage adds <= 0.

    Step scores are <= 0, so s can only fall; lp is monotone in L, so that s / lp(L) is greatest at an end of
    [length + 1, limit]: at the limit for alpha > 0, at the next token for alpha < 0, and anywhere for alpha = 0.
    """
    soon_B = jnp.take(score_params.penalty_T, length_B + count_eos, mode="clip")
    penalty_B = jnp.maximum(soon_B, jnp.take(score_params.penalty_T, limit_B, mode="clip"))
    return logprob_B / penalty_B + score_params.length_reward * (length_B + 1).astype(jnp.float32)

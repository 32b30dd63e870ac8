"""The score S of hypotheses of different lengths, and the rules that stop the search of a row.

S = s / lp(L) + length_reward * L. lp is a table over lengths, computed in NumPy, that is an argument of the compiled
search: a sweep over alpha compiles once, and the values are the same on every device.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.decode.beam_config import Beam
from jaxlm.types import Array


@struct.dataclass
class ScoreParams:
    """penalty_T: lp(L) at index L = 0 .. length; the length reward and the coverage penalty are scalars. Float32."""

    penalty_T: Array
    length_reward: Array
    coverage_penalty: Array


def make_score_params(beam: Beam, length: int) -> ScoreParams:
    """Return the table of a beam's length penalty (gnmt: Wu et al., 2016, equation 14) and its scalars."""
    lengths = np.arange(length + 1, dtype=np.float64)
    bases = {"none": np.ones_like(lengths), "power": np.maximum(lengths, 1), "gnmt": (5 + lengths) / 6}
    penalty = bases[beam.length_penalty_kind] ** beam.length_penalty
    numbers: Any = (np.asarray(x, np.float32) for x in (penalty, beam.length_reward, beam.coverage_penalty))
    return ScoreParams(*numbers)


def final_score(logprob: Array, length: Array, score_params: ScoreParams, uncounted: Array | int = 0) -> Array:
    """Return S of hypotheses (any shape) without the coverage penalty; lp is taken at length - uncounted."""
    penalty = jnp.take(score_params.penalty_T, jnp.maximum(length - uncounted, 0), mode="clip")
    return logprob / penalty + score_params.length_reward * length.astype(jnp.float32)


def log_coverage(coverage_RS: Array, slots: int) -> Array:
    """Return sum_j log min(c_j, 1) of each slot_BK; a position without attention counts as the least float, not 0."""
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
    """Apply `beam.stopping_rule` after a step: True_B on the rows that are done.

    length_B: the tokens of the live hypotheses. live_BK: their s, best first. score_BK: S of the finished ones, best
    first, -inf in empty slots. top_stopped_B: the best candidate of some step so far was finished.
    """
    full_B = score_BK[:, -1] > -jnp.inf
    if beam.num_beams == 1 or beam.stopping_rule == "full":
        return full_B
    if beam.stopping_rule == "first":
        return top_stopped_B & (score_BK[:, beam.num_return_sequences - 1] > -jnp.inf)
    if beam.stopping_rule == "heuristic":
        return full_B & (score_BK[:, -1] >= final_score(live_BK[:, 0], length_B, score_params))
    if beam.stopping_rule == "never":
        return jnp.zeros(full_B.shape, bool)
    # The exact rule: the best S that a live hypothesis can reach, for a length reward that is not positive. Step scores
    # are <= 0, so s can only fall, and the coverage penalty adds at most 0. lp is monotone in L, so s / lp(L) is
    # greatest at an end of [length + 1, limit]: at the limit for alpha > 0, at the next token for alpha < 0.
    penalty_B = jnp.take(score_params.penalty_T, length_B + beam.count_eos, mode="clip")
    penalty_B = jnp.maximum(penalty_B, jnp.take(score_params.penalty_T, limit_B, mode="clip"))
    reachable_B = live_BK[:, 0] / penalty_B + score_params.length_reward * (length_B + 1).astype(jnp.float32)
    return (score_BK[:, beam.num_return_sequences - 1] >= reachable_B) & (score_params.length_reward <= 0)

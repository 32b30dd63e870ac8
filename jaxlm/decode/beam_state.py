"""The sets of a beam search: the candidates of a step, the live hypotheses and the finished ones.

Shape letters, on top of those of `jaxlm.types`: A candidates (arrivals) of a step, best first.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxlm.decode.beam_config import Beam, ScoreParams, final_score
from jaxlm.decode.logit_masks import is_in_ids
from jaxlm.decode.results import FINISH_LENGTH, FINISH_NONE, FINISH_STOP, Hypotheses
from jaxlm.decode.sampling import chunk_size, chunked_top_k
from jaxlm.types import Array


@struct.dataclass
class Candidates:
    """Live hypotheses plus one token: s (-inf: no such candidate), parent slot, the token and its step score."""

    logprob_BA: Array
    parent_BA: Array
    token_BA: Array
    step_logprob_BA: Array


@struct.dataclass
class LiveBeams:
    """Unfinished hypotheses, best first: s (-inf: the slot is empty), tokens and their log-probabilities."""

    logprob_BK: Array
    tokens_BKT: Array
    token_logprob_BKT: Array


def top_candidates(live: LiveBeams, logits_BKV: Array, allowed_BKV: Array, count: int) -> tuple[Candidates, Array]:
    """Return the best `count` of all (hypothesis, token), and the log-sum-exp of the logits, norm_BK1.

    Step scores are allowed_BKV (the logits, -inf where forbidden) less norm_BK1. Ties fall to the lower slot, then to
    the lower id. The vocabulary is split into chunks: it is read once for their maxima and once for the log-sum-exp,
    and no array of its size is written.
    """
    batch, slots, size = logits_BKV.shape
    chunk = chunk_size(size)
    peak_BKG = allowed_BKV.reshape(batch, slots, size // chunk, chunk).max(-1)  # G chunks of C ids a slot
    peak_BK1 = (peak_BKG if allowed_BKV is logits_BKV else logits_BKV).max(-1, keepdims=True)
    peak_BK1 = jnp.maximum(peak_BK1, jnp.finfo(jnp.float32).min)  # all -inf: -inf - -inf would be NaN
    norm_BK1 = jnp.log(jnp.exp(logits_BKV - peak_BK1).sum(-1, keepdims=True)) + peak_BK1

    def add_live_score(logit_BX: Array, slot_BX: Array) -> tuple[Array, Array]:
        live_BX = jnp.take_along_axis(live.logprob_BK, slot_BX, axis=1, mode="clip")
        step_BX = logit_BX - jnp.take_along_axis(norm_BK1[..., 0], slot_BX, axis=1, mode="clip")
        return live_BX + step_BX, step_BX

    # No winner is lost: each chosen chunk holds a score greater than any of a chunk not chosen, or equal and earlier.
    chunks = slots * size // chunk
    chunk_BX = jnp.broadcast_to(jnp.arange(chunks, dtype=jnp.int32)[None], (batch, chunks))
    peak_score_BX, _ = add_live_score(peak_BKG.reshape(batch, chunks), chunk_BX // (size // chunk))
    # In ascending order, so that ties still fall to the lower index.
    chunk_BA = jnp.sort(lax.top_k(peak_score_BX, min(count, chunks))[1], axis=-1)
    logit_BAC = jnp.take_along_axis(allowed_BKV.reshape(batch, chunks, chunk), chunk_BA[..., None], axis=1, mode="clip")
    # (B, A, C) -> (B, X), X = A * C: the index of each score in (K * V)
    index_BX = (chunk_BA[..., None] * chunk + jnp.arange(chunk, dtype=jnp.int32)[None, None]).reshape(batch, -1)
    score_BX, step_BX = add_live_score(logit_BAC.reshape(batch, -1), index_BX // size)
    logprob_BA, rank_BA = chunked_top_k(score_BX, count)
    index_BA, step_BA = (jnp.take_along_axis(x, rank_BA, axis=1, mode="clip") for x in (index_BX, step_BX))
    return Candidates(logprob_BA, index_BA // size, index_BA % size, step_BA), norm_BK1


def stop_candidates(live: LiveBeams, allowed_BKV: Array, norm_BK1: Array, stop: tuple[int, ...]) -> Candidates:
    """Return every (hypothesis, stop id) as a candidate: K * M of them, M being the number of stop ids."""
    batch, slots, _ = allowed_BKV.shape
    step_BKM = jnp.take(allowed_BKV, jnp.asarray(stop, jnp.int32), axis=2, mode="clip") - norm_BK1
    logprob_BKM = live.logprob_BK[:, :, None] + step_BKM
    slot_BKM = jnp.broadcast_to(jnp.arange(slots)[None, :, None], step_BKM.shape)
    token_BKM = jnp.broadcast_to(jnp.asarray(stop, jnp.int32)[None, None, :], step_BKM.shape)
    return Candidates(*(x.reshape(batch, -1) for x in (logprob_BKM, slot_BKM, token_BKM, step_BKM)))


def merge_candidates(first: Candidates, second: Candidates) -> Candidates:
    """Return both in order of rank: by score, then slot, then id."""
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), first, second)
    columns = (-both.logprob_BA, both.parent_BA, both.token_BA, both.step_logprob_BA)
    minus_BA, parent_BA, token_BA, step_BA = lax.sort(columns, dimension=1, num_keys=3)
    return Candidates(-minus_BA, parent_BA, token_BA, step_BA)


def mask_stop_candidates(candidates: Candidates, stop: tuple[int, ...]) -> Candidates:
    """Set s = -inf in the candidates that end in a stop id."""
    stops_BA = is_in_ids(candidates.token_BA, stop)
    return dataclasses.replace(candidates, logprob_BA=jnp.where(stops_BA, -jnp.inf, candidates.logprob_BA))


def advance_live_beams(
    live: LiveBeams, candidates: Candidates, stop: tuple[int, ...], step_B: Array
) -> tuple[LiveBeams, Array, Array]:
    """The live rule: return the best k candidates that did not stop, their last token_BK and their parent_BK."""
    logprob_BK, rank_BK = lax.top_k(mask_stop_candidates(candidates, stop).logprob_BA, live.logprob_BK.shape[1])
    columns = (candidates.parent_BA, candidates.token_BA, candidates.step_logprob_BA)
    parent_BK, token_BK, step_BK = (jnp.take_along_axis(x, rank_BK, axis=1, mode="clip") for x in columns)
    tokens_BKT = _write_step(_take_slots(live.tokens_BKT, parent_BK), token_BK, step_B)
    token_logprob_BKT = _write_step(_take_slots(live.token_logprob_BKT, parent_BK), step_BK, step_B)
    return LiveBeams(logprob_BK, tokens_BKT, token_logprob_BKT), token_BK, parent_BK


def finish_reasons(
    candidates: Candidates, beam: Beam, stop: tuple[int, ...], at_limit_B: Array, done_B: Array
) -> Array:
    """The finish rule and the length limit: return why each candidate_BA ends here, FINISH_NONE if it does not."""
    rank_1A = jnp.arange(candidates.token_BA.shape[1])[None, :]
    stops_BA = is_in_ids(candidates.token_BA, stop)
    ends_BA = stops_BA & (rank_1A < beam.num_beams) if beam.finish_rule == "top_k" else stops_BA
    reason_BA = jnp.where(ends_BA, FINISH_STOP, FINISH_NONE)
    if beam.at_max_length in ("keep", "keep_top_k"):
        # the rank among the candidates that did not stop, or among all, counted from 1
        rank_BA = jnp.cumsum(~stops_BA, axis=1) if beam.at_max_length == "keep" else rank_1A + 1
        kept_BA = ~stops_BA & (rank_BA <= beam.num_beams) & at_limit_B[:, None]
        reason_BA = jnp.where(kept_BA, FINISH_LENGTH, reason_BA)
    exists_BA = (candidates.logprob_BA > -jnp.inf) & ~done_B[:, None]
    return jnp.where(exists_BA, reason_BA, FINISH_NONE)


def final_scores(
    candidates: Candidates,
    reason_BA: Array,
    step_B: Array,
    score_params: ScoreParams,
    beam: Beam,
    log_coverage_BK: Array | None,
) -> Array:
    """S of each candidate_BA that ends here, -inf on the others."""
    length_BA = jnp.broadcast_to(step_B[:, None] + 1, candidates.token_BA.shape)
    uncounted = 0 if beam.count_eos else (reason_BA == FINISH_STOP).astype(jnp.int32)
    score_BA = final_score(candidates.logprob_BA, length_BA, score_params, uncounted)
    if log_coverage_BK is not None:
        coverage_BA = jnp.take_along_axis(log_coverage_BK, candidates.parent_BA, axis=1, mode="clip")
        score_BA += score_params.coverage_penalty * coverage_BA
    return jnp.where(reason_BA == FINISH_NONE, -jnp.inf, score_BA)


def add_finished(
    finished: Hypotheses,
    live: LiveBeams,
    candidates: Candidates,
    reason_BA: Array,
    score_BA: Array,
    step_B: Array,
    *,
    keep_first: bool,
) -> Hypotheses:
    """Return the best k of the finished set and of the candidates that end here; with `keep_first` the first k."""
    slots = finished.score_BN.shape[1]
    if keep_first:
        free_B1 = slots - (finished.reason_BN != FINISH_NONE).sum(1, keepdims=True)
        score_BA = jnp.where(jnp.cumsum(reason_BA != FINISH_NONE, axis=1) <= free_B1, score_BA, -jnp.inf)
        reason_BA = jnp.where(jnp.isneginf(score_BA), FINISH_NONE, reason_BA)
    # Columns 0 .. K - 1 are the finished set, the others the candidates; top_k is stable, so earlier ones win ties.
    score_BK, column_BK = lax.top_k(jnp.concatenate([finished.score_BN, score_BA], axis=1), slots)

    def pick(old_BK: Array, new_BA: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old_BK, new_BA], axis=1), column_BK, axis=1, mode="clip")

    # Only the K picked rows of T tokens are gathered: those of the finished set, or of a candidate's parent.
    old_BK = jnp.arange(slots)[None, :] + jnp.zeros_like(finished.length_BN)
    row_BK = pick(old_BK, slots + candidates.parent_BA)
    tokens_BKT = _take_slots(jnp.concatenate([finished.tokens_BNT, live.tokens_BKT], axis=1), row_BK)
    logprob_BKT = _take_slots(jnp.concatenate([finished.token_logprob_BNT, live.token_logprob_BKT], axis=1), row_BK)
    new_BK = column_BK >= slots
    token_BK = pick(jnp.zeros_like(old_BK), candidates.token_BA)
    step_BK = pick(jnp.zeros_like(finished.score_BN), candidates.step_logprob_BA)
    return Hypotheses(
        tokens_BNT=_write_step(tokens_BKT, jnp.where(new_BK, token_BK, 0), step_B),
        length_BN=pick(finished.length_BN, jnp.broadcast_to(step_B[:, None] + 1, score_BA.shape)),
        logprob_BN=pick(finished.logprob_BN, candidates.logprob_BA),
        score_BN=score_BK,
        reason_BN=pick(finished.reason_BN, reason_BA),
        token_logprob_BNT=_write_step(logprob_BKT, jnp.where(new_BK, step_BK, 0.0), step_B),
    )


def _write_step(buffer_BKT: Array, value_BK: Array, step_B: Array) -> Array:
    """Write one value a slot at position `step_B`; nothing if that is beyond the last."""
    here_B1T = jnp.arange(buffer_BKT.shape[2])[None, None, :] == step_B[:, None, None]
    return jnp.where(here_B1T, value_BK[:, :, None].astype(buffer_BKT.dtype), buffer_BKT)


def _take_slots(buffer_BKT: Array, slot_BK: Array) -> Array:
    return jnp.take_along_axis(buffer_BKT, slot_BK[:, :, None], axis=1, mode="clip")

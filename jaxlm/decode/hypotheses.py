"""The sets that a beam search keeps: candidates of a step, live hypotheses, and finished ones.

Shape letters, on top of those of `jaxlm.types`: A candidates (arrivals) of a step, best first.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxlm.decode.best import best, divisor
from jaxlm.decode.constrain import is_one_of
from jaxlm.decode.options import Beam
from jaxlm.decode.ranking import Ranking, final_score
from jaxlm.decode.reasons import LENGTH, NONE, STOP
from jaxlm.types import Array


@struct.dataclass
class Candidates:
    """Extensions of live hypotheses by a token: s_BA (-inf: there is none), parent slot, token, and its step score."""

    logprob_BA: Array
    parent_BA: Array
    token_BA: Array
    step_logprob_BA: Array


@struct.dataclass
class Live:
    """Hypotheses that go on, best first: s_BK (-inf: the slot is empty), tokens and their log-probabilities."""

    logprob_BK: Array
    tokens_BKT: Array
    token_logprob_BKT: Array


@struct.dataclass
class Finished:
    """Ended hypotheses, best first: S_BK (-inf: there is none), s_BK, lengths, reasons, tokens, log-probabilities."""

    score_BK: Array
    logprob_BK: Array
    length_BK: Array
    reason_BK: Array
    tokens_BKT: Array
    token_logprob_BKT: Array


def first_live(batch: int, slots: int, length: int) -> Live:
    """Before the first step: an empty hypothesis with s = 0 in slot 0, and none in the others."""
    logprob_BK = jnp.where(jnp.arange(slots)[None, :] == 0, jnp.zeros((batch, slots)), -jnp.inf)
    shape = (batch, slots, length)
    return Live(logprob_BK, jnp.zeros(shape, jnp.int32), jnp.zeros(shape))


def none_finished(batch: int, slots: int, length: int) -> Finished:
    """Before the first step: every slot empty, S = -inf."""
    nothing_BK, zero_BK = jnp.full((batch, slots), -jnp.inf), jnp.zeros((batch, slots), jnp.int32)
    shape = (batch, slots, length)
    return Finished(nothing_BK, nothing_BK, zero_BK, zero_BK + NONE, jnp.zeros(shape, jnp.int32), jnp.zeros(shape))


def candidates(live: Live, logits_BKV: Array, allowed_BKV: Array, count: int) -> tuple[Candidates, Array]:
    """The best `count` of all (hypothesis, token), ties to the lower slot, then to the lower id; and norm_BK1.

    Step scores are allowed_BKV (the logits, -inf where forbidden) less the log-sum-exp of the logits, norm_BK1. A long
    row of logits is read twice, for the peaks of its chunks and for its sum, and no array of its size is written.
    """
    batch, slots, size = logits_BKV.shape
    chunk = divisor(size)
    peak_BKG = allowed_BKV.reshape(batch, slots, size // chunk, chunk).max(-1)
    peak_BK1 = (peak_BKG if allowed_BKV is logits_BKV else logits_BKV).max(-1, keepdims=True)
    peak_BK1 = jnp.maximum(peak_BK1, jnp.finfo(jnp.float32).min)
    norm_BK1 = jnp.log(jnp.exp(logits_BKV - peak_BK1).sum(-1, keepdims=True)) + peak_BK1

    def scored(x_BX: Array, slot_BX: Array) -> tuple[Array, Array]:
        live_BX, norm_BX = (
            jnp.take_along_axis(each_BK, slot_BX, axis=1, mode="clip")
            for each_BK in (live.logprob_BK, norm_BK1[..., 0])
        )
        return live_BX + (x_BX - norm_BX), x_BX - norm_BX

    # A chunk whose peak is not among the best `count` holds none of them, or only such as tie with an earlier one.
    chunks = slots * size // chunk
    of_chunk_BX = jnp.broadcast_to(jnp.arange(chunks, dtype=jnp.int32)[None], (batch, chunks))
    of_peak_BX, _ = scored(peak_BKG.reshape(batch, chunks), of_chunk_BX // (size // chunk))
    chunk_BA = jnp.sort(lax.top_k(of_peak_BX, min(count, chunks))[1], axis=-1)
    x_BAC = jnp.take_along_axis(allowed_BKV.reshape(batch, chunks, chunk), chunk_BA[..., None], axis=1, mode="clip")
    index_BX = (chunk_BA[..., None] * chunk + jnp.arange(chunk, dtype=jnp.int32)[None, None]).reshape(batch, -1)
    score_BX, step_BX = scored(x_BAC.reshape(batch, -1), index_BX // size)
    logprob_BA, place_BA = best(score_BX, count)
    index_BA, step_BA = (jnp.take_along_axis(x, place_BA, axis=1, mode="clip") for x in (index_BX, step_BX))
    return Candidates(logprob_BA, index_BA // size, index_BA % size, step_BA), norm_BK1


def stopping_candidates(live: Live, allowed_BKV: Array, norm_BK1: Array, stop: tuple[int, ...]) -> Candidates:
    """Every (hypothesis, stop id)."""
    batch, slots, _ = allowed_BKV.shape
    step_BKM = jnp.take(allowed_BKV, jnp.asarray(stop, jnp.int32), axis=2, mode="clip") - norm_BK1
    logprob_BKM = live.logprob_BK[:, :, None] + step_BKM
    slot_BKM = jnp.broadcast_to(jnp.arange(slots)[None, :, None], step_BKM.shape)
    token_BKM = jnp.broadcast_to(jnp.asarray(stop, jnp.int32)[None, None, :], step_BKM.shape)
    return Candidates(*(each.reshape(batch, -1) for each in (logprob_BKM, slot_BKM, token_BKM, step_BKM)))


def union(some: Candidates, others: Candidates) -> Candidates:
    """Both in order of rank: by score, then slot, then id."""
    columns = [
        jnp.concatenate(pair, axis=1)
        for pair in (
            (-some.logprob_BA, -others.logprob_BA),
            (some.parent_BA, others.parent_BA),
            (some.token_BA, others.token_BA),
            (some.step_logprob_BA, others.step_logprob_BA),
        )
    ]
    minus_BA, parent_BA, token_BA, step_BA = lax.sort(columns, dimension=1, num_keys=3)
    return Candidates(-minus_BA, parent_BA, token_BA, step_BA)


def without_stops(found: Candidates, stop: tuple[int, ...]) -> Candidates:
    """The candidates with those that end in a stop id ruled out (s = -inf)."""
    stops_BA = is_one_of(found.token_BA, stop)
    return dataclasses.replace(found, logprob_BA=jnp.where(stops_BA, -jnp.inf, found.logprob_BA))


def go_on(live: Live, found: Candidates, stop: tuple[int, ...], step_B: Array) -> tuple[Live, Array, Array]:
    """The live rule: the best k candidates that did not stop; also their last tokens_BK and their parents' slots_BK."""
    logprob_BK, place_BK = lax.top_k(without_stops(found, stop).logprob_BA, live.logprob_BK.shape[1])
    parent_BK = jnp.take_along_axis(found.parent_BA, place_BK, axis=1, mode="clip")
    token_BK = jnp.take_along_axis(found.token_BA, place_BK, axis=1, mode="clip")
    step_BK = jnp.take_along_axis(found.step_logprob_BA, place_BK, axis=1, mode="clip")
    tokens_BKT = _write(_slots(live.tokens_BKT, parent_BK), token_BK, step_B)
    token_logprob_BKT = _write(_slots(live.token_logprob_BKT, parent_BK), step_BK, step_B)
    return Live(logprob_BK, tokens_BKT, token_logprob_BKT), token_BK, parent_BK


def reasons(found: Candidates, beam: Beam, stop: tuple[int, ...], at_limit_B: Array, done_B: Array) -> Array:
    """The finish rule and the length limit: why each candidate_BA ends here, or NONE."""
    rank_1A = jnp.arange(found.token_BA.shape[1])[None, :]
    stops_BA = is_one_of(found.token_BA, stop)
    if beam.finish == "top_k":
        ends_BA = stops_BA & (rank_1A < beam.size)
    else:
        ends_BA = stops_BA
    reason_BA = jnp.where(ends_BA, STOP, NONE)
    if beam.limit in ("keep", "keep_top_k"):
        place_BA = jnp.cumsum(~stops_BA, axis=1) if beam.limit == "keep" else rank_1A + 1
        lives_BA = ~stops_BA & (place_BA <= beam.size)
        reason_BA = jnp.where(lives_BA & at_limit_B[:, None], LENGTH, reason_BA)
    exists_BA = (found.logprob_BA > -jnp.inf) & ~done_B[:, None]
    return jnp.where(exists_BA, reason_BA, NONE)


def finish(
    finished: Finished,
    live: Live,
    found: Candidates,
    reason_BA: Array,
    step_B: Array,
    rank: Ranking,
    beam: Beam,
    uncovered_BK: Array | None = None,
) -> Finished:
    """The best k of the finished set and the candidates with a reason; among equals the earlier, then the rank."""
    slots = finished.score_BK.shape[1]
    length_BA = jnp.broadcast_to(step_B[:, None] + 1, found.token_BA.shape)
    uncounted = 0 if beam.count_stop else (reason_BA == STOP).astype(jnp.int32)
    score_BA = final_score(found.logprob_BA, length_BA, rank, uncounted)
    if uncovered_BK is not None:
        score_BA += rank.coverage * jnp.take_along_axis(uncovered_BK, found.parent_BA, axis=1, mode="clip")
    score_BA = jnp.where(reason_BA == NONE, -jnp.inf, score_BA)
    if beam.arrival:
        free_B1 = slots - (finished.reason_BK != NONE).sum(1, keepdims=True)
        score_BA = jnp.where(jnp.cumsum(reason_BA != NONE, axis=1) <= free_B1, score_BA, -jnp.inf)
        reason_BA = jnp.where(jnp.isneginf(score_BA), NONE, reason_BA)
    score_BK, place_BK = lax.top_k(jnp.concatenate([finished.score_BK, score_BA], axis=1), slots)

    def pick(old_BK: Array, new_BA: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old_BK, new_BA], axis=1), place_BK, axis=1, mode="clip")

    old_BK = jnp.arange(slots)[None, :] + jnp.zeros_like(finished.length_BK)
    source_BK = pick(old_BK, slots + found.parent_BA)
    tokens_BKT = _slots(jnp.concatenate([finished.tokens_BKT, live.tokens_BKT], axis=1), source_BK)
    logprob_BKT = _slots(jnp.concatenate([finished.token_logprob_BKT, live.token_logprob_BKT], axis=1), source_BK)
    new_BK = place_BK >= slots
    token_BK = pick(jnp.zeros_like(old_BK), found.token_BA)
    step_BK = pick(jnp.zeros_like(finished.score_BK), found.step_logprob_BA)
    return Finished(
        score_BK=score_BK,
        logprob_BK=pick(finished.logprob_BK, found.logprob_BA),
        length_BK=pick(finished.length_BK, length_BA),
        reason_BK=pick(finished.reason_BK, reason_BA),
        tokens_BKT=_write(tokens_BKT, jnp.where(new_BK, token_BK, 0), step_B),
        token_logprob_BKT=_write(logprob_BKT, jnp.where(new_BK, step_BK, 0.0), step_B),
    )


def _write(buffer_BKT: Array, value_BK: Array, step_B: Array) -> Array:
    here_B1T = jnp.arange(buffer_BKT.shape[2])[None, None, :] == step_B[:, None, None]
    return jnp.where(here_B1T, value_BK[:, :, None].astype(buffer_BKT.dtype), buffer_BKT)


def _slots(buffer_BKT: Array, slot_BK: Array) -> Array:
    return jnp.take_along_axis(buffer_BKT, slot_BK[:, :, None], axis=1, mode="clip")

"""Beam search in one jit, for any model that keeps the contract of `jaxlm.types`.

The definition. Lengths count generated tokens, the stop id included and the prompt excluded.
- Step scores: l = log_softmax(logits / temperature) in float32; masks set entries to -inf without renormalization.
- Candidates: all (hypothesis, token) with s + l, the best k * (1 + number of stop ids) of them; ties fall to the lower
  parent slot, then to the lower id. At the first step there is one hypothesis.
- Finish rule: a candidate that ends in a stop id enters the finished set (the best k by S) iff its rank is < k.
- Live rule: the best k candidates that did not stop.
- Score: S = s / lp(L) + coverage_penalty * sum_j log min(c_j, 1) + length_reward * L, where c_j is the attention that
  source position j received. Ties stay in order: the earlier finished hypothesis, then the better rank.
- At its row's length limit a live hypothesis is kept, is kept if its rank is < k, must stop, or is dropped. A row is
  done if its stopping rule holds or it has no live hypothesis. `Beam` lists the options of each rule.

The prompt is read once a row, except for its last token. The state after it is expanded to k slots, which the model
reads as rows (`jaxlm.decode.prefill`): the parts that the slots share are stored once a row, and no cache is moved.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.decode import beam_state
from jaxlm.decode.beam_config import BeamSearchConfig, ScoreParams, can_stop, log_coverage, make_score_params
from jaxlm.decode.beam_state import LiveBeams
from jaxlm.decode.grammar import TokenGrammar, advance_grammar, apply_grammar
from jaxlm.decode.logit_masks import ForcedPrefix, apply_logit_masks
from jaxlm.decode.prefill import (
    decode_step,
    enlarge_state,
    expand_beams,
    prefill_prompt,
    reorder_beams,
    repeat_while,
    step_params,
    steps_per_check,
)
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_NONE, FINISH_STOP, Hypotheses
from jaxlm.errors import UserError
from jaxlm.types import Array, Params, State

MIN_STEPS_TO_SPLIT = 12
"""The fewest steps for which a first loop with half of the cache is worth its compile time."""

MAX_SHARED_CACHE_BEAMS = 16
"""The most slots whose caches lie side by side, where each query reads the entries of all slots."""


@struct.dataclass
class BeamState:
    """The carry of the search: a live hypothesis has `step_B` tokens, and `state` has not read the last, `token_BK`.

    limit_B: the length limit of each row. top_stopped_B: the best candidate of some step ended in a stop id.
    """

    step_B: Array
    done_B: Array
    limit_B: Array
    top_stopped_B: Array
    token_BK: Array
    live: LiveBeams
    finished: Hypotheses
    state: State
    grammar_state: Any = None


@struct.dataclass
class SearchInputs:
    """The arrays that all steps share and none changes."""

    score_params: ScoreParams
    forced_prefix: ForcedPrefix | None = None
    grammar: TokenGrammar | None = None


def beam_search(model: Any, params: Params, request: DecodeRequest, config: BeamSearchConfig) -> Hypotheses:
    """Return the `beam.num_return_sequences` best continuations of each prompt.

    Raises UserError if the shapes of the request do not match, or if the beam has a coverage penalty and the model has
    no attention to a source.
    """
    request.check_shapes()
    request.check_positions(model, config.length)
    model, static_config, score_params = specialize(model, config)
    return _beam_search(model, static_config, params, request, score_params)


def specialize(model: Any, config: BeamSearchConfig) -> tuple[Any, BeamSearchConfig, ScoreParams]:
    """Split a configuration into static options and numbers; with a coverage penalty the model tracks coverage."""
    beam, coverage = config.beam, float(config.beam.coverage_penalty > 0)
    if coverage and not hasattr(model, "track_coverage"):
        raise UserError(
            f"coverage_penalty > 0 needs attention to a source, which {type(model).__name__} does not have: use "
            "coverage_penalty=0"
        )
    static_beam = dataclasses.replace(
        beam, length_penalty_kind="none", length_penalty=1.0, length_reward=0.0, coverage_penalty=coverage
    )
    static_config = BeamSearchConfig(config.length, tuple(sorted(set(config.stop))), static_beam)
    model = model.clone(track_coverage=True) if coverage else model
    return model, static_config, make_score_params(beam, config.length)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _beam_search(
    model: Any, config: BeamSearchConfig, params: Params, request: DecodeRequest, score_params: ScoreParams
) -> Hypotheses:
    per_check = steps_per_check(request.prompt_BP)
    inputs = SearchInputs(score_params, request.forced_prefix, request.grammar)
    # Attention reads the whole cache at each step, so the first half of the steps has a cache of half the size.
    half = -(-config.length // (2 * per_check)) * per_check
    capacity = half if MIN_STEPS_TO_SPLIT <= half < config.length else config.length
    beams = initial_beam_state(model, config, params, request, capacity)
    layers = step_params(model, params, beams.token_BK.reshape(-1), beams.state)

    def step(beams: BeamState) -> BeamState:
        return beam_step(model, config, layers, beams, inputs)

    if capacity < config.length:
        beams = repeat_while(
            lambda beams: ~beams.done_B.all() & (beams.step_B.max() < capacity), step, beams, per_check
        )
        beams = dataclasses.replace(beams, state=enlarge_state(beams.state, config.length))
    beams = repeat_while(lambda beams: ~beams.done_B.all(), step, beams, per_check)
    return best_hypotheses(beams.finished, config.beam.num_return_sequences)


def initial_beam_state(
    model: Any, config: BeamSearchConfig, params: Params, request: DecodeRequest, capacity: int
) -> BeamState:
    """The state before the first step: the prompts are read, and the caches have room for `capacity` tokens."""
    rows, slots = request.prompt_BP.shape[0], config.beam.num_beams
    token_B, state = prefill_prompt(model, params, request, config.length)
    zero_BK, zero_BKT = jnp.zeros((rows, slots), jnp.int32), jnp.zeros((rows, slots, config.length))
    none_BK, tokens_BKT = jnp.full((rows, slots), -jnp.inf), zero_BKT.astype(jnp.int32)
    limit_B = jnp.minimum(request.limit_B, config.length).astype(jnp.int32)
    return BeamState(
        step_B=jnp.zeros(rows, jnp.int32),
        done_B=limit_B <= 0,
        limit_B=limit_B,
        top_stopped_B=jnp.zeros(rows, bool),
        token_BK=jnp.broadcast_to(token_B[:, None], (rows, slots)).astype(jnp.int32),
        live=LiveBeams(none_BK.at[:, 0].set(0.0), tokens_BKT, zero_BKT),  # one hypothesis, the empty one
        finished=Hypotheses(tokens_BKT, zero_BK, none_BK, none_BK, zero_BK + FINISH_NONE, zero_BKT),
        state=expand_beams(state, slots, request.prompt_BP.shape[1] - 1, capacity, slots <= MAX_SHARED_CACHE_BEAMS),
        grammar_state=None if request.grammar is None else request.grammar.initial_state(slots),
    )


def beam_step(
    model: Any, config: BeamSearchConfig, layers: Params, beams: BeamState, inputs: SearchInputs
) -> BeamState:
    """One more token in each live hypothesis of each row that is not done. `layers`: the unstacked parameters."""
    rows, slots = beams.token_BK.shape
    valid_R = jnp.repeat(~beams.done_B, slots)
    # The model sees the slots as R = B * K rows.
    logits_RV, state = decode_step(model, layers, beams.token_BK.reshape(-1), beams.state, valid_R)
    coverage_RS = state.coverage_RS if config.beam.coverage_penalty else None
    after, parent_BK = _select_beams(beams, logits_RV.reshape(rows, slots, -1), config, inputs, coverage_RS)
    return dataclasses.replace(after, state=reorder_beams(beams.state, state, parent_BK))


def _select_beams(
    beams: BeamState, logits_BKV: Array, config: BeamSearchConfig, inputs: SearchInputs, coverage_RS: Array | None
) -> tuple[BeamState, Array]:
    """One step of the definition, given the logits after each live hypothesis; and the parents_BK of the new ones."""
    beam, stop, live = config.beam, config.stop, beams.live
    at_limit_B = beams.step_B + 1 >= beams.limit_B
    logits_BKV, allowed_BKV = _masked_logits(beams, logits_BKV, config, inputs, at_limit_B)
    num_candidates = beam.num_beams * (1 + len(stop))  # so that `num_beams` of them do not stop
    candidates, norm_BK1 = beam_state.top_candidates(live, logits_BKV, allowed_BKV, num_candidates)
    ending = candidates
    if beam.finish_rule == "all" and stop:
        stopping = beam_state.stop_candidates(live, allowed_BKV, norm_BK1, stop)
        ending = beam_state.merge_candidates(beam_state.mask_stop_candidates(candidates, stop), stopping)
    reason_BA = beam_state.finish_reasons(ending, beam, stop, at_limit_B, beams.done_B)
    coverage_BK = None if coverage_RS is None else log_coverage(coverage_RS, beam.num_beams)
    score_BA = beam_state.final_scores(ending, reason_BA, beams.step_B, inputs.score_params, beam, coverage_BK)
    finished = beam_state.add_finished(
        beams.finished, live, ending, reason_BA, score_BA, beams.step_B, keep_first=beam.keep_first_finished
    )
    top_stopped_B = beams.top_stopped_B | (reason_BA[:, 0] == FINISH_STOP)
    new_live, token_BK, parent_BK = beam_state.advance_live_beams(live, candidates, stop, beams.step_B)
    stops_early_B = can_stop(
        beam,
        inputs.score_params,
        beams.step_B + 1,
        beams.limit_B,
        new_live.logprob_BK,
        finished.score_BN,
        top_stopped_B,
    )
    no_live_B = jnp.isneginf(new_live.logprob_BK[:, 0])
    after = dataclasses.replace(
        beams,
        step_B=beams.step_B + ~beams.done_B,
        done_B=beams.done_B | at_limit_B | stops_early_B | no_live_B,
        top_stopped_B=top_stopped_B,
        token_BK=token_BK,
        live=new_live,
        finished=finished,
        grammar_state=advance_grammar(inputs.grammar, beams.grammar_state, parent_BK, token_BK),
    )
    return after, parent_BK


def _masked_logits(
    beams: BeamState, logits_BKV: Array, config: BeamSearchConfig, inputs: SearchInputs, at_limit_B: Array
) -> tuple[Array, Array]:
    """The logits whose log-sum-exp normalizes the step scores, and the allowed ones (-inf where a mask forbids)."""
    beam, logits_BKV = config.beam, logits_BKV.astype(jnp.float32)
    if beam.temperature != 1.0:
        logits_BKV = logits_BKV / beam.temperature
    must_stop_B = at_limit_B if beam.at_max_length == "force_eos" else None
    tokens_BKT, masks, prefix = beams.live.tokens_BKT, beam.logit_masks, inputs.forced_prefix
    allowed_BKV = apply_logit_masks(logits_BKV, tokens_BKT, beams.step_B, masks, config.stop, prefix, must_stop_B)
    allowed_BKV = apply_grammar(allowed_BKV, inputs.grammar, beams.grammar_state, beams.limit_B - beams.step_B)
    return allowed_BKV if beam.renormalize_logits else logits_BKV, allowed_BKV


def best_hypotheses(finished: Hypotheses, count: int) -> Hypotheses:
    """Return the first `count` finished hypotheses of each row; empty slots get s = S = -inf."""
    best = jax.tree.map(lambda leaf: leaf[:, :count], finished)
    logprob_BN = jnp.where(best.reason_BN == FINISH_NONE, -jnp.inf, best.logprob_BN)
    score_BN = jnp.where(best.reason_BN == FINISH_NONE, -jnp.inf, best.score_BN)
    return dataclasses.replace(best, logprob_BN=logprob_BN, score_BN=score_BN)

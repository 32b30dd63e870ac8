"""Beam search in one jit, for any model that keeps the contract of `jaxlm.types`.

The definition. Lengths count generated tokens, the stop id included and the prompt excluded.
- Step scores: l = log_softmax(logits / temperature) in float32; constraints set entries to -inf without renormalising.
- Candidates: all (hypothesis, token) with s + l, the best k * (1 + number of stop ids) of them; ties fall to the lower
  parent slot, then to the lower id. At the first step there is one hypothesis.
- Finish rule: a candidate that ends in a stop id enters the finished set (the best k by S) iff its rank is < k.
- Live rule: the best k candidates that did not stop.
- Score: S = s / lp(L) + coverage * sum_j log min(c_j, 1) + reward * L, where c_j is the attention that source position
  j got. Ties stay in order: the earlier finished, then the better rank.
- At its row's length limit a live hypothesis is kept, is kept if its rank is < k, must stop, or is dropped; a row whose
  `stop` rule holds, or that has nothing live, is frozen. `Beam` lists the options of each rule.

All of the prompt but its last token is read once a row; the state after it is spread over k slots, which a model reads
as rows (`jaxlm.decode.prefill`: what the slots of a row have in common stays one a row, and no cache is ever moved).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxlm.decode.beam_config import Beam
from jaxlm.decode.beam_state import (
    FinishedBeams,
    LiveBeams,
    add_finished,
    advance_live_beams,
    empty_finished_beams,
    finish_reasons,
    initial_live_beams,
    mask_stop_candidates,
    merge_candidates,
    stop_candidates,
    top_candidates,
)
from jaxlm.decode.grammar import TokenGrammar, advance_grammar, apply_grammar
from jaxlm.decode.length_penalty import ScoreParams, can_stop, log_coverage, make_score_params
from jaxlm.decode.logit_masks import ForcedPrefix, apply_logit_masks
from jaxlm.decode.prefill import check_request, decode_step, enlarge_state, expand_beams, prefill_prompt, reorder_beams
from jaxlm.decode.results import FINISH_NONE, FINISH_STOP, Hypotheses
from jaxlm.errors import UserError
from jaxlm.nn.transformer.layer_stack import unstack_layers
from jaxlm.types import Array, Batch, Params, State

MIN_STEPS_TO_SPLIT = 12
"""The fewest steps that are worth a loop of their own."""

MAX_SHARED_CACHE_BEAMS = 16
"""The most slots whose caches lie side by side: each query looks at the entries of all slots, K times too many."""


@struct.dataclass
class BeamState:
    """The loop's carry: a live hypothesis has `step_B` tokens, the last, `token_BK`, not yet read by the state.

    first_B: the best candidate of some step ended in a stop id.
    """

    step_B: Array
    done_B: Array
    top_stopped_B: Array
    token_BK: Array
    live: LiveBeams
    finished: FinishedBeams
    state: State
    grammar_state: Any = None


@dataclasses.dataclass(frozen=True)
class StaticConfig:
    """What the search is compiled for: the length penalty and the reward are arguments instead (`Ranking`)."""

    beam: Beam
    stop: tuple[int, ...]
    length: int

    @property
    def num_candidates(self) -> int:
        return self.beam.num_beams * (1 + len(self.stop))


@struct.dataclass
class SearchInputs:
    """The arrays that stay as they are during the search."""

    limit_B: Array
    score_params: ScoreParams
    forced_prefix: ForcedPrefix | None
    grammar: TokenGrammar | None = None


def beam_search(
    model: Any,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    *,
    length: int,
    beam: Beam = Beam(),  # noqa: B008 (frozen)
    stop: tuple[int, ...] = (3,),
    forced_prefix: ForcedPrefix | None = None,
    grammar: TokenGrammar | None = None,
) -> Hypotheses:
    """The `beam.num_return_sequences` best continuations of each row's prompt.

    limit_B: the most tokens of each row, a function of that row alone; `length` is the room for them (static: one
    compilation a length), and a greater limit is cut to it. Prompts may be padded on either side. grammar: what may be
    said, as `jaxlm.decode.grammar` or `jaxlm.decode.copy_constraint` make it.
    Raises UserError if the shapes do not fit together, or if a stop id is forced at the limit and there is none.
    """
    check_request(prompt_BP, prompt_valid_BP, limit_B, length, stop)
    if beam.at_max_length == "force_eos" and not stop:
        raise UserError(
            "at_max_length='force_eos' but stop=(): expected at least one stop id to force, or at_max_length='keep'"
        )
    request = SearchInputs(jnp.minimum(limit_B, length), make_score_params(beam, length), forced_prefix, grammar)
    model, rules = specialize(model, beam, stop, length)
    return _beam_search(model, rules, params, batch, prompt_BP, prompt_valid_BP, request)


def specialize(model: Any, beam: Beam, stop: tuple[int, ...], length: int) -> tuple[Any, StaticConfig]:
    """What a search is compiled for: a model that tells what it must, and the rules without their numbers.

    Raises UserError for coverage with a model that does not attend to a source.
    """
    coverage = float(beam.coverage_penalty > 0)
    if coverage and not hasattr(model, "track_coverage"):
        raise UserError(
            f"coverage_penalty > 0 needs attention to a source, and {type(model).__name__} tells of none: use "
            "coverage_penalty=0"
        )
    same = dataclasses.replace(
        beam, length_penalty_kind="none", length_penalty=1.0, length_reward=0.0, coverage_penalty=coverage
    )
    return model.clone(track_coverage=True) if coverage else model, StaticConfig(same, tuple(sorted(set(stop))), length)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _beam_search(
    model: Any,
    config: StaticConfig,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    inputs: SearchInputs,
) -> Hypotheses:
    layers, half = unstack_layers(params), (config.length + 1) // 2

    def more(search: BeamState) -> BeamState:
        return beam_step(model, config, layers, search, inputs)

    def goes_on(search: BeamState) -> Array:
        return ~jnp.all(search.done_B)

    # The first half of the steps has half of the cache to look at.
    tier = half if half >= MIN_STEPS_TO_SPLIT else config.length
    search = initial_beam_state(model, config, params, batch, prompt_BP, prompt_valid_BP, inputs, tier)
    if tier < config.length:
        search = lax.while_loop(lambda search: goes_on(search) & (search.step_B.max() < tier), more, search)
        search = dataclasses.replace(search, state=enlarge_state(search.state, config.length))
    return best_hypotheses(lax.while_loop(goes_on, more, search).finished, config.beam.num_return_sequences)


def initial_beam_state(
    model: Any,
    config: StaticConfig,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    inputs: SearchInputs,
    capacity: int | None = None,
) -> BeamState:
    """The prompts are read, nothing is said. The state has `room` for so many tokens, or for all."""
    rows, slots = prompt_BP.shape[0], config.beam.num_beams
    capacity = capacity or config.length
    token_B, state = prefill_prompt(model, params, batch, prompt_BP, prompt_valid_BP, config.length)
    return BeamState(
        step_B=jnp.zeros(rows, jnp.int32),
        done_B=inputs.limit_B <= 0,
        top_stopped_B=jnp.zeros(rows, bool),
        token_BK=jnp.broadcast_to(token_B[:, None], (rows, slots)).astype(jnp.int32),
        live=initial_live_beams(rows, slots, config.length),
        finished=empty_finished_beams(rows, slots, config.length),
        state=expand_beams(state, slots, prompt_BP.shape[1] - 1, capacity, slots <= MAX_SHARED_CACHE_BEAMS),
        grammar_state=None if inputs.grammar is None else inputs.grammar.initial_state(slots),
    )


def beam_step(model: Any, config: StaticConfig, layers: Params, beams: BeamState, inputs: SearchInputs) -> BeamState:
    """One more token in each live hypothesis of each row that is not done. `layers`: the unstacked parameters."""
    rows, slots = beams.token_BK.shape
    valid_R = jnp.repeat(~beams.done_B, slots)
    logits_RV, state = decode_step(model, layers, beams.token_BK.reshape(-1), beams.state, valid_R)
    covered_RS = state.coverage_RS if config.beam.coverage_penalty else None
    found, parent_BK = _select_beams(beams, logits_RV.reshape(rows, slots, -1), config, inputs, covered_RS)
    return dataclasses.replace(found, state=reorder_beams(beams.state, state, parent_BK))


def _select_beams(
    beams: BeamState, logits_BKV: Array, config: StaticConfig, inputs: SearchInputs, coverage_RS: Array | None = None
) -> tuple[BeamState, Array]:
    """One step of the definition, given the logits after each live hypothesis; and the parents_BK of the new ones."""
    beam, stop, live = config.beam, config.stop, beams.live
    at_limit_B = beams.step_B + 1 >= inputs.limit_B
    logits_BKV = logits_BKV.astype(jnp.float32)
    if beam.temperature != 1.0:
        logits_BKV = logits_BKV / beam.temperature
    must_stop_B = at_limit_B if beam.at_max_length == "force_eos" else None
    allowed_BKV = apply_logit_masks(
        logits_BKV, live.tokens_BKT, beams.step_B, beam.logit_masks, stop, inputs.forced_prefix, must_stop_B
    )
    allowed_BKV = apply_grammar(allowed_BKV, inputs.grammar, beams.grammar_state, inputs.limit_B - beams.step_B)
    whole_BKV = allowed_BKV if beam.renormalize_logits else logits_BKV
    found, norm_BK1 = top_candidates(live, whole_BKV, allowed_BKV, config.num_candidates)
    ending = found
    if beam.finish_rule == "all" and stop:
        ending = merge_candidates(mask_stop_candidates(found, stop), stop_candidates(live, allowed_BKV, norm_BK1, stop))
    reason_BA = finish_reasons(ending, beam, stop, at_limit_B, beams.done_B)
    uncovered_BK = None if coverage_RS is None else log_coverage(coverage_RS, beam.num_beams)
    finished = add_finished(
        beams.finished, live, ending, reason_BA, beams.step_B, inputs.score_params, beam, uncovered_BK
    )
    first_B = beams.top_stopped_B | (reason_BA[:, 0] == FINISH_STOP)
    new_live, token_BK, parent_BK = advance_live_beams(live, found, stop, beams.step_B)
    over_B = can_stop(
        beam, inputs.score_params, beams.step_B + 1, inputs.limit_B,
        new_live.logprob_BK, finished.score_BK, first_B,
    )  # fmt: skip
    nothing_B = jnp.isneginf(new_live.logprob_BK[:, 0])
    done_B = beams.done_B | at_limit_B | over_B | nothing_B
    after = dataclasses.replace(
        beams, step_B=beams.step_B + ~beams.done_B, done_B=done_B, top_stopped_B=first_B, token_BK=token_BK,
        live=new_live,
        finished=finished, grammar_state=advance_grammar(inputs.grammar, beams.grammar_state, parent_BK, token_BK),
    )  # fmt: skip
    return after, parent_BK


def best_hypotheses(finished: FinishedBeams, count: int) -> Hypotheses:
    """The `count` best of each row."""
    empty_BN = finished.reason_BK[:, :count] == FINISH_NONE
    return Hypotheses(
        tokens_BNT=finished.tokens_BKT[:, :count],
        length_BN=finished.length_BK[:, :count],
        logprob_BN=jnp.where(empty_BN, -jnp.inf, finished.logprob_BK[:, :count]),
        score_BN=jnp.where(empty_BN, -jnp.inf, finished.score_BK[:, :count]),
        reason_BN=finished.reason_BK[:, :count],
        token_logprob_BNT=finished.token_logprob_BKT[:, :count],
    )

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
as rows (`jaxlm.decode.slots`: what the slots of a row have in common stays one a row, and no cache is ever moved).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxlm.decode.automaton import Grammar, followed, restricted
from jaxlm.decode.constrain import Forced, forbid
from jaxlm.decode.hypotheses import (
    Finished,
    Live,
    candidates,
    finish,
    first_live,
    go_on,
    none_finished,
    reasons,
    stopping_candidates,
    union,
    without_stops,
)
from jaxlm.decode.options import Beam
from jaxlm.decode.prefill import check_request, read_prompt, read_token
from jaxlm.decode.ranking import Ranking, can_stop, ranking, uncovered
from jaxlm.decode.reasons import NONE, STOP
from jaxlm.decode.slots import grow, reorder, spread
from jaxlm.errors import UserError
from jaxlm.nn.stack import unstacked
from jaxlm.types import Array, Batch, Params, State

TIER = 12
"""The fewest steps that are worth a loop of their own."""
SIDE_BY_SIDE = 16
"""The most slots whose caches lie side by side: each query looks at the entries of all slots, K times too many."""


@struct.dataclass
class Hypotheses:
    """The N best hypotheses of each row, best S first; tokens past the length are 0 (pad).

    logprob_BN is s, the sum of token_logprob_BNT (natural log); score_BN is S; reason_BN: see `jaxlm.decode.reasons`.
    A row that has fewer than N (all of them, where its limit is 0) has length 0, s = S = -inf and reason NONE there.
    """

    tokens_BNT: Array
    length_BN: Array
    logprob_BN: Array
    score_BN: Array
    reason_BN: Array
    token_logprob_BNT: Array


@struct.dataclass
class Search:
    """The loop's carry: a live hypothesis has `step_B` tokens, the last, `token_BK`, not yet read by the state.

    first_B: the best candidate of some step ended in a stop id.
    """

    step_B: Array
    done_B: Array
    first_B: Array
    token_BK: Array
    live: Live
    finished: Finished
    state: State
    grammar_state: Any = None


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the search is compiled for: the length penalty and the reward are arguments instead (`Ranking`)."""

    beam: Beam
    stop: tuple[int, ...]
    length: int

    @property
    def candidates(self) -> int:
        return self.beam.size * (1 + len(self.stop))


@struct.dataclass
class Request:
    """The arrays that stay as they are during the search."""

    limit_B: Array
    ranking: Ranking
    forced: Forced | None
    grammar: Grammar | None = None


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
    forced: Forced | None = None,
    grammar: Grammar | None = None,
) -> Hypotheses:
    """The `beam.returns` best continuations of each row's prompt.

    limit_B: the most tokens of each row, a function of that row alone; `length` is the room for them (static: one
    compilation a length), and a greater limit is cut to it. Prompts may be padded on either side. grammar: what may be
    said, as `jaxlm.decode.automaton` or `jaxlm.decode.quote` make it.
    Raises UserError if the shapes do not fit together, or if a stop id is forced at the limit and there is none.
    """
    check_request(prompt_BP, prompt_valid_BP, limit_B, length, stop)
    if beam.limit == "force_eos" and not stop:
        raise UserError("limit='force_eos' but stop=(): expected at least one stop id to force, or limit='keep'")
    request = Request(jnp.minimum(limit_B, length), ranking(beam, length), forced, grammar)
    model, rules = compiled(model, beam, stop, length)
    return _beam_search(model, rules, params, batch, prompt_BP, prompt_valid_BP, request)


def compiled(model: Any, beam: Beam, stop: tuple[int, ...], length: int) -> tuple[Any, Rules]:
    """What a search is compiled for: a model that tells what it must, and the rules without their numbers.

    Raises UserError for coverage with a model that does not attend to a source.
    """
    coverage = float(beam.coverage > 0)
    if coverage and not hasattr(model, "covers"):
        raise UserError(
            f"coverage > 0 needs attention to a source, and {type(model).__name__} tells of none: use coverage=0"
        )
    same = dataclasses.replace(beam, penalty="none", alpha=1.0, reward=0.0, coverage=coverage)
    return model.clone(covers=True) if coverage else model, Rules(same, tuple(sorted(set(stop))), length)


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def _beam_search(
    model: Any,
    rules: Rules,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    request: Request,
) -> Hypotheses:
    layers, half = unstacked(params), (rules.length + 1) // 2

    def more(search: Search) -> Search:
        return step(model, rules, layers, search, request)

    def goes_on(search: Search) -> Array:
        return ~jnp.all(search.done_B)

    # The first half of the steps has half of the cache to look at.
    tier = half if half >= TIER else rules.length
    search = begin(model, rules, params, batch, prompt_BP, prompt_valid_BP, request, tier)
    if tier < rules.length:
        search = lax.while_loop(lambda search: goes_on(search) & (search.step_B.max() < tier), more, search)
        search = dataclasses.replace(search, state=grow(search.state, rules.length))
    return results(lax.while_loop(goes_on, more, search).finished, rules.beam.returns)


def begin(
    model: Any,
    rules: Rules,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    request: Request,
    room: int | None = None,
) -> Search:
    """The prompts are read, nothing is said. The state has `room` for so many tokens, or for all."""
    rows, slots = prompt_BP.shape[0], rules.beam.size
    room = room or rules.length
    token_B, state = read_prompt(model, params, batch, prompt_BP, prompt_valid_BP, rules.length)
    return Search(
        step_B=jnp.zeros(rows, jnp.int32),
        done_B=request.limit_B <= 0,
        first_B=jnp.zeros(rows, bool),
        token_BK=jnp.broadcast_to(token_B[:, None], (rows, slots)).astype(jnp.int32),
        live=first_live(rows, slots, rules.length),
        finished=none_finished(rows, slots, rules.length),
        state=spread(state, slots, prompt_BP.shape[1] - 1, room, slots <= SIDE_BY_SIDE),
        grammar_state=None if request.grammar is None else request.grammar.begin(slots),
    )


def step(model: Any, rules: Rules, layers: Params, search: Search, request: Request) -> Search:
    """One more token in each live hypothesis of each row that is not done. `layers`: the unstacked parameters."""
    rows, slots = search.token_BK.shape
    valid_R = jnp.repeat(~search.done_B, slots)
    logits_RV, state = read_token(model, layers, search.token_BK.reshape(-1), search.state, valid_R)
    covered_RS = state.covered_RS if rules.beam.coverage else None
    found, parent_BK = _advance(search, logits_RV.reshape(rows, slots, -1), rules, request, covered_RS)
    return dataclasses.replace(found, state=reorder(search.state, state, parent_BK))


def _advance(
    search: Search, logits_BKV: Array, rules: Rules, request: Request, covered_RS: Array | None = None
) -> tuple[Search, Array]:
    """One step of the definition, given the logits after each live hypothesis; and the parents_BK of the new ones."""
    beam, stop, live = rules.beam, rules.stop, search.live
    at_limit_B = search.step_B + 1 >= request.limit_B
    logits_BKV = logits_BKV.astype(jnp.float32)
    if beam.temperature != 1.0:
        logits_BKV = logits_BKV / beam.temperature
    must_stop_B = at_limit_B if beam.limit == "force_eos" else None
    allowed_BKV = forbid(
        logits_BKV, live.tokens_BKT, search.step_B, beam.constraints, stop, request.forced, must_stop_B
    )
    allowed_BKV = restricted(allowed_BKV, request.grammar, search.grammar_state, request.limit_B - search.step_B)
    whole_BKV = allowed_BKV if beam.renormalise else logits_BKV
    found, norm_BK1 = candidates(live, whole_BKV, allowed_BKV, rules.candidates)
    ending = found
    if beam.finish == "all" and stop:
        ending = union(without_stops(found, stop), stopping_candidates(live, allowed_BKV, norm_BK1, stop))
    reason_BA = reasons(ending, beam, stop, at_limit_B, search.done_B)
    uncovered_BK = None if covered_RS is None else uncovered(covered_RS, beam.size)
    finished = finish(search.finished, live, ending, reason_BA, search.step_B, request.ranking, beam, uncovered_BK)
    first_B = search.first_B | (reason_BA[:, 0] == STOP)
    new_live, token_BK, parent_BK = go_on(live, found, stop, search.step_B)
    over_B = can_stop(
        beam, request.ranking, search.step_B + 1, request.limit_B,
        new_live.logprob_BK, finished.score_BK, first_B,
    )  # fmt: skip
    nothing_B = jnp.isneginf(new_live.logprob_BK[:, 0])
    done_B = search.done_B | at_limit_B | over_B | nothing_B
    after = dataclasses.replace(
        search, step_B=search.step_B + ~search.done_B, done_B=done_B, first_B=first_B, token_BK=token_BK, live=new_live,
        finished=finished, grammar_state=followed(request.grammar, search.grammar_state, parent_BK, token_BK),
    )  # fmt: skip
    return after, parent_BK


def results(finished: Finished, count: int) -> Hypotheses:
    """The `count` best of each row."""
    empty_BN = finished.reason_BK[:, :count] == NONE
    return Hypotheses(
        tokens_BNT=finished.tokens_BKT[:, :count],
        length_BN=finished.length_BK[:, :count],
        logprob_BN=jnp.where(empty_BN, -jnp.inf, finished.logprob_BK[:, :count]),
        score_BN=jnp.where(empty_BN, -jnp.inf, finished.score_BK[:, :count]),
        reason_BN=finished.reason_BK[:, :count],
        token_logprob_BNT=finished.token_logprob_BKT[:, :count],
    )

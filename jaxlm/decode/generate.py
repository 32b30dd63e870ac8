"""Generation of one continuation a row: greedy search and sampling, in one jit, or told token by token.

Step scores are l = log_softmax(logits / temperature) in float32 (temperature 0: the logits as they are); banned ids,
minimum length, repeated n-grams, forced prefixes and a grammar set entries to -inf without renormalising. The reported
log-probabilities are these l, before the sampler's filters. Lengths count generated tokens, the stop id included.
A repetition penalty acts on the logits themselves, before everything else.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxlm.decode.automaton import Grammar, restricted
from jaxlm.decode.choose import Sampler, argbest, line_keys, penalised, sample
from jaxlm.decode.constrain import Constraints, Forced, forbid, is_one_of, log_softmax_parts
from jaxlm.decode.prefill import check_request, read_prompt, read_token
from jaxlm.decode.reasons import LENGTH, NONE, STOP
from jaxlm.decode.slots import spread
from jaxlm.nn.stack import cut_apart, unstacked
from jaxlm.types import Array, Batch, Params, State


@struct.dataclass
class Generated:
    """One continuation a row; tokens past `length_B` are 0 (pad).

    logprob_B is the sum of token_logprob_BT (natural log). reason_B: see `jaxlm.decode.reasons`; NONE where the limit
    is 0 or where the constraints left no token to say (what was said before that is kept).
    """

    tokens_BT: Array
    length_B: Array
    logprob_B: Array
    token_logprob_BT: Array
    reason_B: Array


@struct.dataclass
class Writing:
    """The loop's carry: what is written, the last token (the state has not read it yet), and the state.

    seen_BV: the ids of the prompt and of what is written, where a penalty asks for them.
    grammar_state: of the grammar, if there is one, with one slot a row.
    """

    step: Array
    token_B: Array
    done_B: Array
    written: Generated
    state: State
    seen_BV: Array | None = None
    grammar_state: Any = None


def generate(
    model: Any,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    *,
    length: int,
    stop: tuple[int, ...] = (3,),
    sampler: Sampler = Sampler(temperature=0.0),  # noqa: B008 (frozen)
    constraints: Constraints = Constraints(),  # noqa: B008 (frozen)
    forced: Forced | None = None,
    grammar: Grammar | None = None,
    seed: Array | int = 0,
    line_B: Array | None = None,
) -> Generated:
    """Continue each row's prompt until a stop id or the row's limit.

    With K limits (and lines) a prompt, limit_B of K * B rows, there are K continuations of each, one after the other,
    and the prompt is read once for all of them.
    limit_B: the most tokens of each row; `length` is the room for them (static: one compilation a length), and a
    greater limit is cut to it. A row with limit 0 is empty. line_B: the line numbers that address the noise (default:
    the row numbers). Prompts may be padded on either side; the prompt is not part of the result. grammar: what may be
    said, as `jaxlm.decode.automaton` or `jaxlm.decode.quote` make it; the sampler's filters judge what it leaves.
    Raises UserError if the shapes do not fit together.
    """
    check_request(prompt_BP, prompt_valid_BP, limit_B, length, stop, samples=True)
    line_B = jnp.arange(limit_B.shape[0]) if line_B is None else line_B
    return _generate(
        model, params, batch, prompt_BP, prompt_valid_BP, limit_B, forced, grammar, seed, line_B,
        length=length, stop=stop, sampler=sampler, constraints=constraints,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "length", "stop", "sampler", "constraints"))
def _generate(
    model: Any,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    forced: Forced | None,
    grammar: Grammar | None,
    seed: Array,
    line_B: Array,
    *,
    length: int,
    stop: tuple[int, ...],
    sampler: Sampler,
    constraints: Constraints,
) -> Generated:
    limit_B = jnp.minimum(limit_B, length)
    key_B, layers = line_keys(seed, line_B), unstacked(params)

    def step(writing: Writing) -> Writing:
        return _step(model, layers, writing, limit_B, key_B, forced, grammar, stop, sampler, constraints)

    writing = _blank(model, params, batch, prompt_BP, prompt_valid_BP, limit_B, grammar, length, sampler)
    return lax.while_loop(lambda writing: ~jnp.all(writing.done_B), step, writing).written


def stream(
    model: Any,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    *,
    length: int,
    stop: tuple[int, ...] = (3,),
    sampler: Sampler = Sampler(temperature=0.0),  # noqa: B008 (frozen)
    grammar: Grammar | None = None,
    seed: Array | int = 0,
    line_B: Array | None = None,
) -> Iterator[Generated]:
    """What `generate` gives, told anew after every token. Two programs, whatever is generated; the caller may leave."""
    check_request(prompt_BP, prompt_valid_BP, limit_B, length, stop, samples=True)
    key_B = line_keys(seed, jnp.arange(limit_B.shape[0]) if line_B is None else line_B)
    limit_B = jnp.minimum(limit_B, length)
    writing = _begin(model, params, batch, prompt_BP, prompt_valid_BP, limit_B, grammar, length, sampler)
    layers = cut_apart(params)
    while not bool(writing.done_B.all()):
        writing = _one_more(model, layers, writing, limit_B, key_B, grammar, stop, sampler)
        yield writing.written


@functools.partial(jax.jit, static_argnames=("model", "stop", "sampler"))
def _one_more(
    model: Any,
    params: Params,
    writing: Writing,
    limit_B: Array,
    key_B: Array,
    grammar: Grammar | None,
    stop: tuple[int, ...],
    sampler: Sampler,
) -> Writing:
    return _step(model, params, writing, limit_B, key_B, None, grammar, stop, sampler, Constraints())


def _step(
    model: Any,
    params: Params,
    writing: Writing,
    limit_B: Array,
    key_B: Array,
    forced: Forced | None,
    grammar: Grammar | None,
    stop: tuple[int, ...],
    sampler: Sampler,
    constraints: Constraints,
) -> Writing:
    """One more token in every row that still writes."""
    logits_BV, state = read_token(model, params, writing.token_B, writing.state, ~writing.done_B)
    if writing.seen_BV is not None:
        logits_BV = penalised(logits_BV, writing.seen_BV, sampler.repetition)
    logprob_BV = _step_scores(logits_BV, writing, sampler, constraints, stop, forced)
    remaining_B = limit_B - writing.step
    logprob_BV = restricted(logprob_BV[:, None], grammar, writing.grammar_state, remaining_B)[:, 0]
    if sampler.greedy:
        token_B = argbest(writing.written.logprob_B[:, None] + logprob_BV)
    else:
        token_B = sample(logprob_BV, key_B, writing.step, sampler)
    after = _append(dataclasses.replace(writing, state=state), token_B, logprob_BV, limit_B, stop)
    if grammar is None:
        return after
    return dataclasses.replace(after, grammar_state=grammar.advance(writing.grammar_state, after.token_B[:, None]))


def _blank(
    model: Any,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    grammar: Grammar | None,
    length: int,
    sampler: Sampler,
) -> Writing:
    """Before the first token: the prompt is read, nothing is written."""
    token_B, state = read_prompt(model, params, batch, prompt_BP, prompt_valid_BP, length)
    samples = limit_B.shape[0] // prompt_BP.shape[0]
    if samples > 1:
        state = spread(state, samples, prompt_BP.shape[1] - 1, length, side_by_side=False)
    token_B, prompt_BP, prompt_valid_BP = (jnp.repeat(x, samples, 0) for x in (token_B, prompt_BP, prompt_valid_BP))
    zero_B = jnp.zeros(limit_B.shape, jnp.int32)
    zero_BT = jnp.zeros((*limit_B.shape, length), jnp.int32)
    written = Generated(zero_BT, zero_B, zero_B.astype(jnp.float32), zero_BT.astype(jnp.float32), zero_B + NONE)
    seen_BV = None
    if sampler.repetition != 1.0:
        logits_BV = jax.eval_shape(lambda: read_token(model, params, token_B, state, limit_B > 0)[0])
        row_B1 = jnp.arange(prompt_BP.shape[0])[:, None]
        seen_BV = jnp.zeros(logits_BV.shape, bool).at[row_B1, prompt_BP].max(prompt_valid_BP)
    grammar_state = None if grammar is None else grammar.begin(1)
    return Writing(jnp.int32(0), token_B.astype(jnp.int32), limit_B <= 0, written, state, seen_BV, grammar_state)


_begin = jax.jit(_blank, static_argnames=("model", "length", "sampler"))


def _step_scores(
    logits_BV: Array,
    writing: Writing,
    sampler: Sampler,
    constraints: Constraints,
    stop: tuple[int, ...],
    forced: Forced | None,
) -> Array:
    scaled_B1V, norm_B11 = log_softmax_parts(logits_BV[:, None, :], 1.0 if sampler.greedy else sampler.temperature)
    history_B1T = writing.written.tokens_BT[:, None, :]
    step_B = jnp.broadcast_to(writing.step, history_B1T.shape[:1])
    return forbid(scaled_B1V - norm_B11, history_B1T, step_B, constraints, stop, forced)[:, 0]


def _append(writing: Writing, token_B: Array, logprob_BV: Array, limit_B: Array, stop: tuple[int, ...]) -> Writing:
    """The chosen tokens of the rows that still write; a row ends on a stop id, at its limit, or with nothing to say."""
    was, step = writing.written, writing.step
    logprob_B = jnp.take_along_axis(logprob_BV, token_B[:, None], axis=1, mode="clip")[:, 0]
    stuck_B = jnp.isneginf(logprob_B)
    writes_B = ~writing.done_B & ~stuck_B
    token_B = jnp.where(writes_B, token_B, 0)
    logprob_B = jnp.where(writes_B, logprob_B, 0.0)
    stops_B = writes_B & is_one_of(token_B, stop)
    full_B = writes_B & ~stops_B & (step + 1 >= limit_B)
    written = Generated(
        tokens_BT=lax.dynamic_update_slice_in_dim(was.tokens_BT, token_B[:, None], step, axis=1),
        length_B=was.length_B + writes_B,
        logprob_B=was.logprob_B + logprob_B,
        token_logprob_BT=lax.dynamic_update_slice_in_dim(was.token_logprob_BT, logprob_B[:, None], step, axis=1),
        reason_B=jnp.where(stops_B, STOP, jnp.where(full_B, LENGTH, was.reason_B)),
    )
    seen_BV = writing.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(token_B.shape[0]), token_B].max(writes_B)
    return Writing(step + 1, token_B, writing.done_B | stuck_B | stops_B | full_B, written, writing.state, seen_BV)

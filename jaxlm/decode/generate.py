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

from jaxlm.decode.grammar import TokenGrammar, apply_grammar
from jaxlm.decode.logit_masks import ForcedPrefix, LogitMasks, apply_logit_masks, is_in_ids, log_softmax_parts
from jaxlm.decode.prefill import check_request, decode_step, expand_beams, prefill_prompt
from jaxlm.decode.results import FINISH_LENGTH, FINISH_NONE, FINISH_STOP, GenerationOutput
from jaxlm.decode.sampling import Sampler, apply_repetition_penalty, line_rng_keys, row_argmax, sample
from jaxlm.nn.transformer.layer_stack import unstack_layers, unstack_layers_jit
from jaxlm.types import Array, Batch, Params, State


@struct.dataclass
class LoopState:
    """The loop's carry: what is written, the last token (the state has not read it yet), and the state.

    seen_BV: the ids of the prompt and of what is written, where a penalty asks for them.
    grammar_state: of the grammar, if there is one, with one slot a row.
    """

    step: Array
    token_B: Array
    done_B: Array
    output: GenerationOutput
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
    logit_masks: LogitMasks = LogitMasks(),  # noqa: B008 (frozen)
    forced_prefix: ForcedPrefix | None = None,
    grammar: TokenGrammar | None = None,
    seed: Array | int = 0,
    line_B: Array | None = None,
) -> GenerationOutput:
    """Continue each row's prompt until a stop id or the row's limit.

    With K limits (and lines) a prompt, limit_B of K * B rows, there are K continuations of each, one after the other,
    and the prompt is read once for all of them.
    limit_B: the most tokens of each row; `length` is the room for them (static: one compilation a length), and a
    greater limit is cut to it. A row with limit 0 is empty. line_B: the line numbers that address the noise (default:
    the row numbers). Prompts may be padded on either side; the prompt is not part of the result. grammar: what may be
    said, as `jaxlm.decode.grammar` or `jaxlm.decode.copy_constraint` make it; the sampler's filters judge
    what it leaves. Raises UserError if the shapes do not fit together.
    """
    check_request(prompt_BP, prompt_valid_BP, limit_B, length, stop, several_limits=True)
    line_B = jnp.arange(limit_B.shape[0]) if line_B is None else line_B
    return _generate(
        model, params, batch, prompt_BP, prompt_valid_BP, limit_B, forced_prefix, grammar, seed, line_B,
        length=length, stop=stop, sampler=sampler, logit_masks=logit_masks,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "length", "stop", "sampler", "logit_masks"))
def _generate(
    model: Any,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    forced_prefix: ForcedPrefix | None,
    grammar: TokenGrammar | None,
    seed: Array,
    line_B: Array,
    *,
    length: int,
    stop: tuple[int, ...],
    sampler: Sampler,
    logit_masks: LogitMasks,
) -> GenerationOutput:
    limit_B = jnp.minimum(limit_B, length)
    key_B, layers = line_rng_keys(seed, line_B), unstack_layers(params)

    def step(writing: LoopState) -> LoopState:
        return _step(model, layers, writing, limit_B, key_B, forced_prefix, grammar, stop, sampler, logit_masks)

    writing = _initial_state(model, params, batch, prompt_BP, prompt_valid_BP, limit_B, grammar, length, sampler)
    return lax.while_loop(lambda writing: ~jnp.all(writing.done_B), step, writing).output


def generate_stream(
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
    grammar: TokenGrammar | None = None,
    seed: Array | int = 0,
    line_B: Array | None = None,
) -> Iterator[GenerationOutput]:
    """What `generate` gives, told anew after every token. Two programs, whatever is generated; the caller may leave."""
    check_request(prompt_BP, prompt_valid_BP, limit_B, length, stop, several_limits=True)
    key_B = line_rng_keys(seed, jnp.arange(limit_B.shape[0]) if line_B is None else line_B)
    limit_B = jnp.minimum(limit_B, length)
    writing = _initial_state_jit(model, params, batch, prompt_BP, prompt_valid_BP, limit_B, grammar, length, sampler)
    layers = unstack_layers_jit(params)
    while not bool(writing.done_B.all()):
        writing = _stream_step(model, layers, writing, limit_B, key_B, grammar, stop, sampler)
        yield writing.output


@functools.partial(jax.jit, static_argnames=("model", "stop", "sampler"))
def _stream_step(
    model: Any,
    params: Params,
    loop: LoopState,
    limit_B: Array,
    key_B: Array,
    grammar: TokenGrammar | None,
    stop: tuple[int, ...],
    sampler: Sampler,
) -> LoopState:
    return _step(model, params, loop, limit_B, key_B, None, grammar, stop, sampler, LogitMasks())


def _step(
    model: Any,
    params: Params,
    loop: LoopState,
    limit_B: Array,
    key_B: Array,
    forced_prefix: ForcedPrefix | None,
    grammar: TokenGrammar | None,
    stop: tuple[int, ...],
    sampler: Sampler,
    logit_masks: LogitMasks,
) -> LoopState:
    """One more token in every row that still writes."""
    logits_BV, state = decode_step(model, params, loop.token_B, loop.state, ~loop.done_B)
    if loop.seen_BV is not None:
        logits_BV = apply_repetition_penalty(logits_BV, loop.seen_BV, sampler.repetition_penalty)
    logprob_BV = _step_scores(logits_BV, loop, sampler, logit_masks, stop, forced_prefix)
    remaining_B = limit_B - loop.step
    logprob_BV = apply_grammar(logprob_BV[:, None], grammar, loop.grammar_state, remaining_B)[:, 0]
    if sampler.greedy:
        token_B = row_argmax(loop.output.logprob_B[:, None] + logprob_BV)
    else:
        token_B = sample(logprob_BV, key_B, loop.step, sampler)
    after = _append_token(dataclasses.replace(loop, state=state), token_B, logprob_BV, limit_B, stop)
    if grammar is None:
        return after
    return dataclasses.replace(after, grammar_state=grammar.advance(loop.grammar_state, after.token_B[:, None]))


def _initial_state(
    model: Any,
    params: Params,
    batch: Batch,
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    grammar: TokenGrammar | None,
    length: int,
    sampler: Sampler,
) -> LoopState:
    """Before the first token: the prompt is read, nothing is written."""
    token_B, state = prefill_prompt(model, params, batch, prompt_BP, prompt_valid_BP, length)
    samples = limit_B.shape[0] // prompt_BP.shape[0]
    if samples > 1:
        state = expand_beams(state, samples, prompt_BP.shape[1] - 1, length, share_cache=False)
    token_B, prompt_BP, prompt_valid_BP = (jnp.repeat(x, samples, 0) for x in (token_B, prompt_BP, prompt_valid_BP))
    zero_B = jnp.zeros(limit_B.shape, jnp.int32)
    zero_BT = jnp.zeros((*limit_B.shape, length), jnp.int32)
    written = GenerationOutput(
        zero_BT, zero_B, zero_B.astype(jnp.float32), zero_BT.astype(jnp.float32), zero_B + FINISH_NONE
    )
    seen_BV = None
    if sampler.repetition_penalty != 1.0:
        logits_BV = jax.eval_shape(lambda: decode_step(model, params, token_B, state, limit_B > 0)[0])
        row_B1 = jnp.arange(prompt_BP.shape[0])[:, None]
        seen_BV = jnp.zeros(logits_BV.shape, bool).at[row_B1, prompt_BP].max(prompt_valid_BP)
    grammar_state = None if grammar is None else grammar.initial_state(1)
    return LoopState(jnp.int32(0), token_B.astype(jnp.int32), limit_B <= 0, written, state, seen_BV, grammar_state)


_initial_state_jit = jax.jit(_initial_state, static_argnames=("model", "length", "sampler"))


def _step_scores(
    logits_BV: Array,
    loop: LoopState,
    sampler: Sampler,
    logit_masks: LogitMasks,
    stop: tuple[int, ...],
    forced_prefix: ForcedPrefix | None,
) -> Array:
    scaled_B1V, norm_B11 = log_softmax_parts(logits_BV[:, None, :], 1.0 if sampler.greedy else sampler.temperature)
    history_B1T = loop.output.tokens_BT[:, None, :]
    step_B = jnp.broadcast_to(loop.step, history_B1T.shape[:1])
    return apply_logit_masks(scaled_B1V - norm_B11, history_B1T, step_B, logit_masks, stop, forced_prefix)[:, 0]


def _append_token(
    loop: LoopState, token_B: Array, logprob_BV: Array, limit_B: Array, stop: tuple[int, ...]
) -> LoopState:
    """The chosen tokens of the rows that still write; a row ends on a stop id, at its limit, or with nothing to say."""
    was, step = loop.output, loop.step
    logprob_B = jnp.take_along_axis(logprob_BV, token_B[:, None], axis=1, mode="clip")[:, 0]
    stuck_B = jnp.isneginf(logprob_B)
    writes_B = ~loop.done_B & ~stuck_B
    token_B = jnp.where(writes_B, token_B, 0)
    logprob_B = jnp.where(writes_B, logprob_B, 0.0)
    stops_B = writes_B & is_in_ids(token_B, stop)
    full_B = writes_B & ~stops_B & (step + 1 >= limit_B)
    written = GenerationOutput(
        tokens_BT=lax.dynamic_update_slice_in_dim(was.tokens_BT, token_B[:, None], step, axis=1),
        length_B=was.length_B + writes_B,
        logprob_B=was.logprob_B + logprob_B,
        token_logprob_BT=lax.dynamic_update_slice_in_dim(was.token_logprob_BT, logprob_B[:, None], step, axis=1),
        reason_B=jnp.where(stops_B, FINISH_STOP, jnp.where(full_B, FINISH_LENGTH, was.reason_B)),
    )
    seen_BV = loop.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(token_B.shape[0]), token_B].max(writes_B)
    return LoopState(step + 1, token_B, loop.done_B | stuck_B | stops_B | full_B, written, loop.state, seen_BV)

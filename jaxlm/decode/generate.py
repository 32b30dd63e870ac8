"""Greedy search and sampling: one continuation a row, in one jit or token by token.

Step scores are l = log_softmax(logits / temperature) in float32 (temperature 0: the logits unscaled). A repetition
penalty changes the logits first. Suppressed ids, minimum length, repeated n-grams, forced prefixes and a grammar then
set entries of l to -inf, without renormalization. The reported log-probabilities are these l, before the sampler's
filters. Lengths count generated tokens, the stop id included.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxlm import runtime
from jaxlm.decode.grammar import TokenGrammar, apply_grammar
from jaxlm.decode.logit_masks import ForcedPrefix, LogitMasks, apply_logit_masks, is_in_ids, log_softmax_parts
from jaxlm.decode.prefill import decode_step, expand_beams, prefill_prompt, repeat_while, step_params, steps_per_check
from jaxlm.decode.request import DecodeConfig, DecodeRequest
from jaxlm.decode.results import FINISH_LENGTH, FINISH_NONE, FINISH_STOP, GenerationOutput
from jaxlm.decode.sampling import Sampler, apply_repetition_penalty, line_rng_keys, row_argmax, sample
from jaxlm.types import Array, Params, State


@dataclasses.dataclass(frozen=True)
class GenerationConfig(DecodeConfig):
    """The static settings of `generate`: the sampler (default: greedy search) and the masks of all rows."""

    sampler: Sampler = Sampler(temperature=0.0)
    logit_masks: LogitMasks = LogitMasks()


@struct.dataclass
class LoopState:
    """The carry of the decoding loop: `step` tokens of each row are written, and `state` has not read the last one.

    key_B: the random key of each row, None in greedy search.
    seen_BV: True on the ids of the prompt and of the continuation, if there is a repetition penalty.
    grammar_state: the state of the request's grammar, with one slot a row.
    """

    step: Array
    token_B: Array
    done_B: Array
    limit_B: Array
    output: GenerationOutput
    state: State
    key_B: Array | None = None
    seen_BV: Array | None = None
    grammar_state: Any = None


def generate(model: Any, params: Params, request: DecodeRequest, config: GenerationConfig) -> GenerationOutput:
    """Continue each prompt until a stop id or the row's limit.

    With K limits (and lines) a prompt, `limit_B` of K * B rows, each prompt is read once and gets K continuations,
    which are adjacent rows of the result. The filters of the sampler apply to the ids that the grammar allows.
    Raises UserError if the shapes of the request do not match.
    """
    request.check_shapes(several_limits=True)
    request.check_positions(model, config.length)
    return _generate(model, config, params, request)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _generate(model: Any, config: GenerationConfig, params: Params, request: DecodeRequest) -> GenerationOutput:
    loop, per_check = _initial_state(model, config, params, request), steps_per_check(request.prompt_BP)
    layers = step_params(model, params, loop.token_B, loop.state)

    def step(loop: LoopState) -> LoopState:
        return _step(model, config, layers, loop, request.forced_prefix, request.grammar)

    if more := -config.length % per_check:  # columns for the steps after the end
        loop = dataclasses.replace(loop, output=_map_columns(loop.output, lambda x: jnp.pad(x, ((0, 0), (0, more)))))
    written = repeat_while(lambda loop: ~jnp.all(loop.done_B), step, loop, per_check).output
    return _map_columns(written, lambda x_BT: x_BT[:, : config.length]) if more else written


def _map_columns(output: GenerationOutput, change: Callable[[Array], Array]) -> GenerationOutput:
    tokens_BT, token_logprob_BT = change(output.tokens_BT), change(output.token_logprob_BT)
    return dataclasses.replace(output, tokens_BT=tokens_BT, token_logprob_BT=token_logprob_BT)


def generate_stream(
    model: Any, params: Params, request: DecodeRequest, config: GenerationConfig
) -> Iterator[GenerationOutput]:
    """Yield the output of `generate` after every token. Two programs are compiled; the caller may stop iterating."""
    request.check_shapes(several_limits=True)
    request.check_positions(model, config.length)
    loop = _initial_state_jit(model, config, params, request)
    layers = _step_params_jit(model, params, loop.token_B, loop.state)
    while not bool(loop.done_B.all()):
        runtime.between_batches()
        loop = _step_jit(model, config, layers, loop, request.forced_prefix, request.grammar)
        yield loop.output


def _step(
    model: Any,
    config: GenerationConfig,
    layers: Params,
    loop: LoopState,
    forced_prefix: ForcedPrefix | None,
    grammar: TokenGrammar | None,
) -> LoopState:
    """One more token in every row that is not done. `layers`: the unstacked parameters."""
    sampler, written = config.sampler, loop.output
    logits_BV, state = decode_step(model, layers, loop.token_B, loop.state, ~loop.done_B)
    if loop.seen_BV is not None:
        logits_BV = apply_repetition_penalty(logits_BV, loop.seen_BV, sampler.repetition_penalty)
    # The masks are those of beam search: a row is a beam of one slot, [B, 1, V].
    scaled_B1V, norm_B11 = log_softmax_parts(logits_BV[:, None, :], 1.0 if sampler.greedy else sampler.temperature)
    step_B = jnp.broadcast_to(loop.step, loop.done_B.shape)
    logprob_B1V = apply_logit_masks(
        scaled_B1V - norm_B11, written.tokens_BT[:, None, :], step_B, config.logit_masks, config.stop, forced_prefix
    )
    logprob_BV = apply_grammar(logprob_B1V, grammar, loop.grammar_state, loop.limit_B - loop.step)[:, 0]
    if loop.key_B is None:
        # The sum so far is added so that ties are broken exactly as in a beam search of one slot.
        token_B = row_argmax(written.logprob_B[:, None] + logprob_BV)
    else:
        token_B = sample(logprob_BV, loop.key_B, loop.step, sampler)
    after = _append_token(dataclasses.replace(loop, state=state), token_B, logprob_BV, config.stop)
    if grammar is None:
        return after
    return dataclasses.replace(after, grammar_state=grammar.advance(loop.grammar_state, after.token_B[:, None]))


_step_jit = jax.jit(_step, static_argnames=("model", "config"))
_step_params_jit = jax.jit(step_params, static_argnames="model")


def _initial_state(model: Any, config: GenerationConfig, params: Params, request: DecodeRequest) -> LoopState:
    """The state of the loop before the first token: the prompt is read, the output is empty."""
    token_B, state = prefill_prompt(model, params, request, config.length)
    prompt_BP, prompt_valid_BP = request.prompt_BP, request.prompt_valid_BP
    limit_B = jnp.minimum(request.limit_B, config.length).astype(jnp.int32)
    samples = limit_B.shape[0] // prompt_BP.shape[0]
    if samples > 1:
        state = expand_beams(state, samples, prompt_BP.shape[1] - 1, config.length, share_cache=False)
    token_B, prompt_BP, prompt_valid_BP = (jnp.repeat(x, samples, 0) for x in (token_B, prompt_BP, prompt_valid_BP))
    line_B = jnp.arange(limit_B.shape[0]) if request.line_B is None else request.line_B
    zero_B = jnp.zeros(limit_B.shape, jnp.int32)
    zero_BT = jnp.zeros((*limit_B.shape, config.length), jnp.int32)
    written = GenerationOutput(
        zero_BT, zero_B, zero_B.astype(jnp.float32), zero_BT.astype(jnp.float32), zero_B + FINISH_NONE
    )
    seen_BV = None
    if config.sampler.repetition_penalty != 1.0:
        logits_BV = jax.eval_shape(lambda: decode_step(model, params, token_B, state, limit_B > 0)[0])
        row_B1 = jnp.arange(prompt_BP.shape[0])[:, None]
        seen_BV = jnp.zeros(logits_BV.shape, bool).at[row_B1, prompt_BP].max(prompt_valid_BP)
    return LoopState(
        step=jnp.int32(0),
        token_B=token_B.astype(jnp.int32),
        done_B=limit_B <= 0,
        limit_B=limit_B,
        output=written,
        state=state,
        key_B=None if config.sampler.greedy else line_rng_keys(request.seed, line_B),
        seen_BV=seen_BV,
        grammar_state=None if request.grammar is None else request.grammar.initial_state(1),
    )


_initial_state_jit = jax.jit(_initial_state, static_argnames=("model", "config"))


def _append_token(loop: LoopState, token_B: Array, logprob_BV: Array, stop: tuple[int, ...]) -> LoopState:
    """Write the chosen tokens; a row ends at a stop id, at its limit, or if no score is finite (reason NONE)."""
    before, step = loop.output, loop.step
    logprob_B = jnp.take_along_axis(logprob_BV, token_B[:, None], axis=1, mode="clip")[:, 0]
    stuck_B = jnp.isneginf(logprob_B)
    writes_B = ~loop.done_B & ~stuck_B
    token_B = jnp.where(writes_B, token_B, 0)
    logprob_B = jnp.where(writes_B, logprob_B, 0.0)
    stops_B = writes_B & is_in_ids(token_B, stop)
    full_B = writes_B & ~stops_B & (step + 1 >= loop.limit_B)
    written = GenerationOutput(
        tokens_BT=lax.dynamic_update_slice_in_dim(before.tokens_BT, token_B[:, None], step, axis=1),
        length_B=before.length_B + writes_B,
        logprob_B=before.logprob_B + logprob_B,
        token_logprob_BT=lax.dynamic_update_slice_in_dim(before.token_logprob_BT, logprob_B[:, None], step, axis=1),
        reason_B=jnp.where(stops_B, FINISH_STOP, jnp.where(full_B, FINISH_LENGTH, before.reason_B)),
    )
    seen_BV = loop.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(token_B.shape[0]), token_B].max(writes_B)
    done_B = loop.done_B | stuck_B | stops_B | full_B
    return dataclasses.replace(loop, step=step + 1, token_B=token_B, done_B=done_B, output=written, seen_BV=seen_BV)

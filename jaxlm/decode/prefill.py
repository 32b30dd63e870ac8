"""The prompt is read once (prefill), then token by token in a loop; and the operations of a beam on the decoding state.

Every leaf of a state has one row a slot, except in nodes with `expand_beams`, `reorder` and `enlarge` of their own
(`jaxlm.nn.attention.kv_cache`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.decode.request import DecodeRequest
from jaxlm.distributed.sharding import platform_of
from jaxlm.nn.transformer.layer_stack import decoding_params
from jaxlm.types import Array, Params, State

Loop = TypeVar("Loop")

GPU_STEPS_PER_CHECK = 8
"""Steps of a search on a GPU between two looks at its end."""


def steps_per_check(like: Any) -> int:
    """The steps between two looks at the end of a search, in the program in which the array `like` is traced.

    A GPU's loop of unknown length copies its condition to the host and waits for it; a CPU and a TPU read it in place.
    Steps after the end change nothing: all rows are done.
    """
    return GPU_STEPS_PER_CHECK if platform_of(like) == "gpu" else 1


def repeat_while(goes_on: Callable[[Loop], Array], step: Callable[[Loop], Loop], loop: Loop, per_check: int) -> Loop:
    """Repeat `step`, `per_check` times between two looks at `goes_on`."""
    if per_check == 1:
        return lax.while_loop(goes_on, step, loop)
    return lax.while_loop(goes_on, lambda loop: lax.fori_loop(0, per_check, lambda _, loop: step(loop), loop), loop)


def prefill_prompt(model: Any, params: Params, request: DecodeRequest, length: int) -> tuple[Array, State]:
    """Return the last valid prompt token_B of each row, and the state before it with room for `length` tokens.

    The decoding loop reads that token as its first: the usual prompt, one BOS, then needs no `extend` outside of the
    loop, which halves the compile time. Column P - 1 holds a row's last valid token or padding, and is not read here.
    """
    prompt_BP, valid_BP = request.prompt_BP, request.prompt_valid_BP
    prompt = prompt_BP.shape[1]
    state = model.apply({"params": params}, request.batch, prompt - 1 + length, method="start")
    last_B1 = (prompt - 1 - jnp.argmax(valid_BP[:, ::-1], axis=1))[:, None]
    if prompt > 1:
        before_BP = valid_BP & (jnp.arange(prompt)[None, :] < last_B1)
        _, state = model.apply({"params": params}, prompt_BP[:, :-1], state, before_BP[:, :-1], method="extend")
    return jnp.take_along_axis(prompt_BP, last_B1, axis=1, mode="clip")[:, 0], state


def decode_step(model: Any, params: Params, token_B: Array, state: State, valid_B: Array) -> tuple[Array, State]:
    """Read one more token a row: float32 logits_BV of the next one, and the new state."""
    features_B1D, state = model.apply({"params": params}, token_B[:, None], state, valid_B[:, None], method="extend")
    return model.apply({"params": params}, features_B1D[:, 0], method="readout"), state


def step_params(model: Any, params: Params, token_B: Array, state: State) -> Params:
    """Return the parameters for a loop of `decode_step`, see `decoding_params`."""
    return decoding_params(params, lambda params: decode_step(model, params, token_B, state, token_B >= 0))


def _has_beam_methods(node: Any) -> bool:
    return hasattr(node, "expand_beams")


def expand_beams(state: State, slots: int, prefix_length: int, capacity: int, share_cache: bool) -> State:
    """Repeat each row into K equal slots: B rows become B * K.

    At most `prefix_length` tokens have been read, and `capacity` more will be. With `share_cache` the caches of a row's
    slots lie side by side, which makes `reorder_beams` cheap; otherwise each slot is a row of its own.
    """

    def expand(node: Any) -> Any:
        if _has_beam_methods(node):
            return node.expand_beams(slots, prefix_length, capacity, share_cache)
        return jnp.repeat(node, slots, axis=0)

    return jax.tree.map(expand, state, is_leaf=_has_beam_methods)


def enlarge_state(state: State, capacity: int) -> State:
    """Return the state with caches for `capacity` tokens in all after the prompt."""
    return jax.tree.map(
        lambda node: node.enlarge(capacity) if _has_beam_methods(node) else node, state, is_leaf=_has_beam_methods
    )


def reorder_beams(before: State, after: State, parent_BK: Array) -> State:
    """Give each slot the state of its parent. `before`: the state that `extend` read to produce `after`."""
    rows, slots = parent_BK.shape
    # (B, K) slots within rows -> (B * K) rows of the state
    row_R = (jnp.arange(rows)[:, None] * slots + parent_BK).reshape(-1)

    def reorder(old: Any, new: Any) -> Any:
        if _has_beam_methods(new):
            return new.reorder(parent_BK)
        # a leaf that `extend` returned untouched is equal in all slots: no gather
        return old if new is old else jnp.take(new, row_R, axis=0, mode="clip")

    return jax.tree.map(reorder, before, after, is_leaf=_has_beam_methods)

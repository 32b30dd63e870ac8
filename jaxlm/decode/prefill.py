"""Where every search begins: check the request at the border, read the prompt, and the pieces of a step.

What a search does to a model's state: a row becomes K slots, slots take each other's places, rows leave.

A leaf of the state has one row a slot, unless the node that it belongs to (see `jaxlm.nn.attention.kv_cache`)
has its own `expand_beams` and `reorder`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.types import Array, Batch, Params, State


def check_request(
    prompt_BP: Array,
    prompt_valid_BP: Array,
    limit_B: Array,
    length: int,
    stop: tuple[int, ...],
    several_limits: bool = False,
) -> None:
    """Raises UserError if the shapes of a request do not fit together. With `samples` a row may have several limits."""
    if prompt_BP.ndim != 2 or prompt_BP.shape[1] < 1:
        raise UserError(f"prompt_BP has shape {prompt_BP.shape}, expected [B, P] with P >= 1: start it with BOS")
    if prompt_valid_BP.shape != prompt_BP.shape:
        raise UserError(
            f"prompt_valid_BP has shape {prompt_valid_BP.shape}, expected that of prompt_BP: {prompt_BP.shape}"
        )
    several = several_limits and limit_B.ndim == 1 and 0 < prompt_BP.shape[0] <= limit_B.shape[0]
    if limit_B.shape != prompt_BP.shape[:1] and not (several and limit_B.shape[0] % prompt_BP.shape[0] == 0):
        raise UserError(f"limit_B has shape {limit_B.shape}, expected {prompt_BP.shape[:1]}: one limit a row")
    if length < 1:
        raise UserError(f"length={length} must be at least 1: it is the room for generated tokens, limit_B the limits")
    if not isinstance(stop, tuple):
        raise UserError(f"stop={stop!r} must be a tuple of ids, as in stop=(3,)")


def prefill_prompt(
    model: Any, params: Params, batch: Batch, prompt_BP: Array, prompt_valid_BP: Array, length: int
) -> tuple[Array, State]:
    """The last valid prompt token_B of each row, and the state before it with room for it and `length` - 1 more.

    The decoding loop reads that token as its first: the usual prompt, one BOS, then needs no `extend` outside of the
    loop, which halves the time to compile. Column P - 1 holds a row's last valid token or none, and is not read here.
    """
    prompt = prompt_BP.shape[1]
    state = model.apply({"params": params}, batch, prompt - 1 + length, method="start")
    last_B1 = (prompt - 1 - jnp.argmax(prompt_valid_BP[:, ::-1], axis=1))[:, None]
    if prompt > 1:
        before_BP = prompt_valid_BP & (jnp.arange(prompt)[None, :] < last_B1)
        read = (prompt_BP[:, :-1], state, before_BP[:, :-1])
        _, state = model.apply({"params": params}, *read, method="extend")
    return jnp.take_along_axis(prompt_BP, last_B1, axis=1, mode="clip")[:, 0], state


def decode_step(model: Any, params: Params, token_B: Array, state: State, valid_B: Array) -> tuple[Array, State]:
    """One decoding step: float32 logits_BV after one more token a row, and the state after it."""
    features_B1D, state = model.apply({"params": params}, token_B[:, None], state, valid_B[:, None], method="extend")
    return model.apply({"params": params}, features_B1D[:, 0], method="readout"), state


def _has_beam_methods(node: Any) -> bool:
    return hasattr(node, "expand_beams")


def expand_beams(state: State, slots: int, prefix_length: int, capacity: int, share_cache: bool) -> State:
    """K equal slots a row: B rows become B * K. At most `prefix` tokens were read, `room` more will be.

    side_by_side: the slots will take each other's places, and have caches that are quick at it.
    """

    def each(node: Any) -> Any:
        return (
            node.expand_beams(slots, prefix_length, capacity, share_cache)
            if _has_beam_methods(node)
            else jnp.repeat(node, slots, axis=0)
        )

    return jax.tree.map(each, state, is_leaf=_has_beam_methods)


def enlarge_state(state: State, capacity: int) -> State:
    """The same state with room for `room` tokens in all after the prompt."""
    return jax.tree.map(
        lambda node: node.enlarge(capacity) if _has_beam_methods(node) else node, state, is_leaf=_has_beam_methods
    )


def reorder_beams(before: State, after: State, parent_BK: Array) -> State:
    """Each slot takes the state of its parent; a leaf that `extend` did not touch is equal in all slots and stays."""
    rows, slots = parent_BK.shape
    row_R = (jnp.arange(rows)[:, None] * slots + parent_BK).reshape(-1)

    def each(old: Any, new: Any) -> Any:
        if _has_beam_methods(new):
            return new.reorder(parent_BK)
        return old if new is old else jnp.take(new, row_R, axis=0, mode="clip")

    return jax.tree.map(each, before, after, is_leaf=_has_beam_methods)

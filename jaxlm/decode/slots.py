"""What a search does to a model's state: a row becomes K slots, slots take each other's places, rows leave.

A leaf of the state has one row a slot, unless the node that it belongs to (see `jaxlm.nn.cache`) has its own `spread`
and `reorder`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.types import Array, State


def _special(node: Any) -> bool:
    return hasattr(node, "spread")


def spread(state: State, slots: int, prefix: int, room: int, side_by_side: bool) -> State:
    """K equal slots a row: B rows become B * K. At most `prefix` tokens were read, `room` more will be.

    side_by_side: the slots will take each other's places, and have caches that are quick at it.
    """

    def each(node: Any) -> Any:
        return node.spread(slots, prefix, room, side_by_side) if _special(node) else jnp.repeat(node, slots, axis=0)

    return jax.tree.map(each, state, is_leaf=_special)


def grow(state: State, room: int) -> State:
    """The same state with room for `room` tokens in all after the prompt."""
    return jax.tree.map(lambda node: node.grow(room) if _special(node) else node, state, is_leaf=_special)


def reorder(before: State, after: State, parent_BK: Array) -> State:
    """Each slot takes the state of its parent; a leaf that `extend` did not touch is equal in all slots and stays."""
    rows, slots = parent_BK.shape
    row_R = (jnp.arange(rows)[:, None] * slots + parent_BK).reshape(-1)

    def each(old: Any, new: Any) -> Any:
        if _special(new):
            return new.reorder(parent_BK)
        return old if new is old else jnp.take(new, row_R, axis=0, mode="clip")

    return jax.tree.map(each, before, after, is_leaf=_special)

"""Copies from the source inside jit: the tokens between two marks must be a substring of the row's source.

The state of a hypothesis is the set of source positions whose token may come next. After the open mark the set holds
every position; a copied token keeps the positions that have it and moves them by one. A source of S tokens costs S
booleans a hypothesis.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.errors import UserError
from jaxlm.types import Array

MIN_TO_OPEN, MIN_TO_COPY, MIN_TO_CLOSE = 4, 3, 2
"""The tokens that must remain for the open mark (open, copy, close, EOS), for a copied token and for the close mark."""


@struct.dataclass
class CopyState:
    """True if a hypothesis is between marks, if it has copied a token, and on the positions that may come next."""

    inside_BK: Array
    copied_BK: Array
    next_BKS: Array


@struct.dataclass
class CopyConstraint:
    """A `jaxlm.decode.grammar.TokenGrammar`: copies of source_BS between the ids `open_id` and `close_id`.

    source_BS: the source, without gaps between its tokens. copyable_BS: whether a token may be copied.
    """

    source_BS: Array
    copyable_BS: Array
    open_id: int = struct.field(pytree_node=False)
    close_id: int = struct.field(pytree_node=False)

    def initial_state(self, slots: int) -> CopyState:
        """All hypotheses are outside of the marks."""
        rows, length = self.source_BS.shape
        no_BK = jnp.zeros((rows, slots), bool)
        return CopyState(no_BK, no_BK, jnp.zeros((rows, slots, length), bool))

    def allowed_tokens(self, state: CopyState, remaining_B: Array, size: int) -> Array:
        """True_BKV: between marks the tokens that continue or close the copy; the open mark only if a copy fits."""
        rows, slots = state.inside_BK.shape
        id_11V, remaining_B11 = jnp.arange(size)[None, None, :], remaining_B[:, None, None]
        row_B11, slot_1K1 = jnp.arange(rows)[:, None, None], jnp.arange(slots)[None, :, None]
        copy_BKV = jnp.zeros((rows, slots, size), bool)
        copy_BKV = copy_BKV.at[row_B11, slot_1K1, self.source_BS[:, None, :]].max(state.next_BKS, mode="drop")
        closes_BKV = (id_11V == self.close_id) & state.copied_BK[:, :, None] & (remaining_B11 >= MIN_TO_CLOSE)
        inside_BKV = (copy_BKV & (id_11V != self.close_id) & (remaining_B11 >= MIN_TO_COPY)) | closes_BKV
        copyable_B11 = jnp.any(self.copyable_BS, axis=1)[:, None, None]
        opens_B1V = (id_11V == self.open_id) & copyable_B11 & (remaining_B11 >= MIN_TO_OPEN)
        outside_B1V = ((id_11V != self.open_id) & (id_11V != self.close_id)) | opens_B1V
        return jnp.where(state.inside_BK[:, :, None], inside_BKV, outside_B1V)

    def advance(self, state: CopyState, token_BK: Array) -> CopyState:
        """Move the positions that match the token by one; the open mark allows all copyable positions."""
        opens_BK = ~state.inside_BK & (token_BK == self.open_id)
        closes_BK = state.inside_BK & (token_BK == self.close_id)
        copies_BK = state.inside_BK & ~closes_BK
        matching_BKS = state.next_BKS & (self.source_BS[:, None, :] == token_BK[:, :, None])
        after_BKS = jnp.pad(matching_BKS, ((0, 0), (0, 0), (1, 0)))[:, :, :-1] & self.copyable_BS[:, None, :]
        next_BKS = jnp.where(opens_BK[:, :, None], self.copyable_BS[:, None, :], after_BKS & copies_BK[:, :, None])
        return CopyState(opens_BK | copies_BK, copies_BK, next_BKS)


def make_copy_constraint(
    source_BS: Any, valid_BS: Any, open_id: int, close_id: int, *, specials: int = 4
) -> CopyConstraint:
    """Allow copies of the valid tokens of each row, except for special ids (below `specials`) and the close mark.

    No copy contains one of those. Raises UserError if the marks are the same id.
    """
    if open_id == close_id:
        raise UserError(f"the marks of a quotation are both id {open_id}: expected two that differ, as in <q> </q>")
    valid = np.asarray(valid_BS, bool)
    order = np.argsort(~valid, axis=1, kind="stable")
    source, valid = np.take_along_axis(np.asarray(source_BS), order, 1), np.take_along_axis(valid, order, 1)
    copyable = valid & (source >= specials) & (source != close_id)
    return CopyConstraint(jnp.asarray(source, jnp.int32), jnp.asarray(copyable), open_id, close_id)

"""Quotations inside jit: what stands between two marks must be a substring of the row's source, token for token.

The state of a hypothesis is a set of source positions: those whose token may come next, which follow the places where
all that was said since the open mark stands. After the open mark it is every position; a token leaves those positions
that have it, each one further. A source of S tokens costs S booleans a hypothesis, whatever is quoted.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.errors import UserError
from jaxlm.types import Array

MIN_TO_OPEN, MIN_TO_COPY, MIN_TO_CLOSE = 4, 3, 2
"""The least number of tokens that must remain for the open mark (open, copy, close, EOS), a copied token, the close."""


@struct.dataclass
class CopyState:
    """Where each hypothesis is: inside marks or not, whether it has copied a token, which positions may come next."""

    inside_BK: Array
    copied_BK: Array
    next_BKS: Array


@struct.dataclass
class CopyConstraint:
    """A `jaxlm.decode.grammar.Grammar`: copies of source_BS between the ids `opening` and `closing`.

    source_BS: the source, without columns between its tokens. copyable_BS: False where a token may not be copied.
    """

    source_BS: Array
    copyable_BS: Array
    open_id: int = struct.field(pytree_node=False)
    close_id: int = struct.field(pytree_node=False)

    def initial_state(self, slots: int) -> CopyState:
        """Outside of marks."""
        rows, length = self.source_BS.shape
        no_BK = jnp.zeros((rows, slots), bool)
        return CopyState(no_BK, no_BK, jnp.zeros((rows, slots, length), bool))

    def allowed_tokens(self, state: CopyState, remaining_B: Array, size: int) -> Array:
        """True_BKV. Inside: what goes on with the copy, and the close mark after the first token; no stop id.

        The mark opens only where a copy, the close mark and EOS still fit, and closes in time.
        """
        rows, slots = state.inside_BK.shape
        id_11V, remaining_B11 = jnp.arange(size)[None, None, :], remaining_B[:, None, None]
        row_B11, slot_1K1 = jnp.arange(rows)[:, None, None], jnp.arange(slots)[None, :, None]
        copy_BKV = jnp.zeros((rows, slots, size), bool)
        copy_BKV = copy_BKV.at[row_B11, slot_1K1, self.source_BS[:, None, :]].max(state.next_BKS, mode="drop")
        closes_BKV = (id_11V == self.close_id) & state.copied_BK[:, :, None] & (remaining_B11 >= MIN_TO_CLOSE)
        inside_BKV = (copy_BKV & (id_11V != self.close_id) & (remaining_B11 >= MIN_TO_COPY)) | closes_BKV
        some_B11 = jnp.any(self.copyable_BS, axis=1)[:, None, None]
        opens_B1V = (id_11V == self.open_id) & some_B11 & (remaining_B11 >= MIN_TO_OPEN)
        outside_B1V = ((id_11V != self.open_id) & (id_11V != self.close_id)) | opens_B1V
        return jnp.where(state.inside_BK[:, :, None], inside_BKV, outside_B1V)

    def advance(self, state: CopyState, token_BK: Array) -> CopyState:
        """The positions after those that match the token; all of them after the open mark."""
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
    """What may be quoted of each row: its valid tokens but the special ids (below `specials`) and the close mark.

    No quotation runs over one of those. Raises UserError if the marks are the same id.
    """
    if open_id == close_id:
        raise UserError(f"the marks of a quotation are both id {open_id}: expected two that differ, as in <q> </q>")
    valid = np.asarray(valid_BS, bool)
    order = np.argsort(~valid, axis=1, kind="stable")
    source, valid = np.take_along_axis(np.asarray(source_BS), order, 1), np.take_along_axis(valid, order, 1)
    copyable = valid & (source >= specials) & (source != close_id)
    return CopyConstraint(jnp.asarray(source, jnp.int32), jnp.asarray(copyable), open_id, close_id)

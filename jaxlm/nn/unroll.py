"""One recurrent layer through time: the hot loop, with a gradient of its own (back-propagation through time).

Differentiating the scan as it stands would add a matrix of the size of U to dU at every position, which costs more
than all the rest. Here the backward scan hands out the gradients of the products a_t = U h_{t-1}, and

    dU = sum_t h_{t-1}^T da_t

is one product after it. What is element-wise in a cell is differentiated by JAX from the kept products: recomputing a
few sigmoids is a hundredth of the time, and no cell needs a gradient written by hand.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.cell import Carry, Cell, Small
from jaxlm.types import Array


@struct.dataclass
class Marks:
    """(T, B), or (B,) at one position: `valid` False keeps the carry as it was, `begins` True first sets it to zero."""

    valid: Array
    begins: Array | None = None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unroll(
    cell: Cell, reverse: bool, U: Array, small: Small, x_TBG: Array, carry: Carry, marks: Marks, nudge_TBD: Array | None
) -> tuple[Array, Carry]:
    """Run `cell` over T positions, backwards if `reverse` -> hidden_TBD and the last carry.

    Args:
      U: the recurrent matrix (D, G); products with it are computed in its dtype, everything else in float32.
      x_TBG: W x_t + b, all positions at once.
      nudge_TBD: added to each h_t before it is carried on, or None.
    """
    return _forward(cell, reverse, U, small, x_TBG, carry, marks, nudge_TBD)[0]


def _forward(cell, reverse, U, small, x_TBG, carry, marks, nudge_TBD):
    def read(before: Carry, column: Any) -> tuple[Carry, Any]:
        x_BG, marks_B, nudge_BD = column
        before = _begin(before, marks_B)
        h_BG = _product(before.hidden_BD, U)
        after = _advance(cell, marks_B.valid, small, x_BG, h_BG, before, nudge_BD)
        return after, (after, x_BG + h_BG if _sums(cell, small) else h_BG)

    last, (after_T, kept_TBG) = jax.lax.scan(read, carry, (x_TBG, marks, nudge_TBD), reverse=reverse)
    x_TBG = None if _sums(cell, small) else x_TBG
    return (after_T.hidden_BD, last), (U, small, x_TBG, kept_TBG, carry, after_T, marks, nudge_TBD)


def _backward(cell, reverse, kept, cotangents):
    U, small, x_TBG, kept_TBG, carry, after_T, marks, nudge_TBD = kept
    d_hidden_TBD, d_last = cotangents
    before_T = jax.tree.map(partial(_shift, reverse=reverse), after_T, carry)
    UT = _transposed(U, kept_TBG.shape[0])

    def unread(carried: Any, column: Any) -> tuple[Any, Any]:
        (d_after, d_small), (d_hidden_BD, before, x_BG, kept_BG, marks_B, nudge_BD) = carried, column
        before = _begin(before, marks_B)
        d_after = d_after.replace(hidden_BD=d_after.hidden_BD + d_hidden_BD)
        if x_BG is None:
            x_BG, kept_BG = kept_BG, jnp.zeros_like(kept_BG)
        pull = jax.vjp(partial(_advance, cell, marks_B.valid), small, x_BG, kept_BG, before, nudge_BD)[1]
        more_small, d_x_BG, d_h_BG, d_before, d_nudge_BD = pull(d_after)
        d_before = d_before.replace(hidden_BD=d_before.hidden_BD + _product(d_h_BG, UT))
        d_small = jax.tree.map(jnp.add, d_small, more_small)
        return (_begin(d_before, marks_B), d_small), (d_x_BG, None if _sums(cell, small) else d_h_BG, d_nudge_BD)

    columns = (d_hidden_TBD, before_T, x_TBG, kept_TBG, marks, nudge_TBD)
    zeros = jax.tree.map(jnp.zeros_like, small)
    (d_carry, d_small), (d_x_TBG, d_h_TBG, d_nudge_TBD) = jax.lax.scan(
        unread, (d_last, zeros), columns, reverse=not reverse
    )
    d_h_TBG = d_x_TBG if d_h_TBG is None else d_h_TBG
    hidden_TBD = jax.vmap(_begin)(before_T, marks).hidden_BD.astype(U.dtype)
    d_U = jnp.einsum("tbd,tbg->dg", hidden_TBD, d_h_TBG.astype(U.dtype), preferred_element_type=jnp.float32)
    return d_U.astype(U.dtype), d_small, d_x_TBG, d_carry, None, d_nudge_TBD


unroll.defvjp(_forward, _backward)


def _advance(cell, valid_B, small, x_BG, h_BG, before, nudge_BD):
    """The carry after one position, everything but the product with U."""
    after = cell.advance(x_BG, h_BG, before, small)
    if nudge_BD is not None:
        after = after.replace(hidden_BD=after.hidden_BD + nudge_BD)
    return jax.tree.map(lambda new_BD, old_BD: jnp.where(valid_B[:, None], new_BD, old_BD), after, before)


def _begin(carry: Carry, marks: Marks) -> Carry:
    """The carry of one position, zero in the rows where something begins; of its gradient the same."""
    if marks.begins is None:
        return carry
    return jax.tree.map(lambda x_BD: jnp.where(marks.begins[:, None], 0.0, x_BD), carry)


def _product(x_BD: Array, W: Array) -> Array:
    return jnp.matmul(x_BD.astype(W.dtype), W, preferred_element_type=jnp.float32)


def _sums(cell: Cell, small: Small) -> bool:
    """Whether the two products enter as a sum: then one array does for both, forwards and backwards."""
    return cell.sums and "recurrent_scale" not in small


def _shift(after_TBD: Array, first_BD: Array, reverse: bool) -> Array:
    """What each position found: the carries after the positions before it."""
    if reverse:
        return jnp.concatenate([after_TBD[1:], first_BD[None]])
    return jnp.concatenate([first_BD[None], after_TBD[:-1]])


def _transposed(U: Array, length: int) -> Array:
    """U^T, laid out in memory as such: a CPU is twice as slow at reading U across, position after position.

    The barrier keeps XLA from folding the transpose back into the products. For a few positions it does not pay.
    """
    return U.T if length < 4 else jax.lax.optimization_barrier(U.T)

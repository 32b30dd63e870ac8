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

from jaxlm.nn.rnn.cells import Carry, Cell, CellVectors
from jaxlm.types import Array


@struct.dataclass
class StepMask:
    """(T, B), or (B,) at one position: `valid` False keeps the carry as it was, `reset` True first sets it to zero."""

    valid: Array
    reset: Array | None = None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unroll(
    cell: Cell,
    reverse: bool,
    U: Array,
    vectors: CellVectors,
    x_TBG: Array,
    carry: Carry,
    step_mask: StepMask,
    perturbation_TBD: Array | None,
) -> tuple[Array, Carry]:
    """Run `cell` over T positions, backwards if `reverse` -> hidden_TBD and the last carry.

    Args:
      U: the recurrent matrix (D, G); products with it are computed in its dtype, everything else in float32.
      x_TBG: W x_t + b, all positions at once.
      perturbation_TBD: added to each h_t before it is carried on, or None.
    """
    return _unroll_forward(cell, reverse, U, vectors, x_TBG, carry, step_mask, perturbation_TBD)[0]


def _unroll_forward(cell, reverse, U, vectors, x_TBG, carry, step_mask, perturbation_TBD):
    def read(before: Carry, column: Any) -> tuple[Carry, Any]:
        x_BG, marks_B, nudge_BD = column
        before = _reset_carry(before, marks_B)
        h_BG = _matmul(before.hidden_BD, U)
        after = _step_cell(cell, marks_B.valid, vectors, x_BG, h_BG, before, nudge_BD)
        return after, (after, x_BG + h_BG if _is_additive(cell, vectors) else h_BG)

    last, (after_T, kept_TBG) = jax.lax.scan(read, carry, (x_TBG, step_mask, perturbation_TBD), reverse=reverse)
    x_TBG = None if _is_additive(cell, vectors) else x_TBG
    return (after_T.hidden_BD, last), (U, vectors, x_TBG, kept_TBG, carry, after_T, step_mask, perturbation_TBD)


def _unroll_backward(cell, reverse, residuals, cotangents):
    U, small, x_TBG, kept_TBG, carry, after_T, marks, nudge_TBD = residuals
    d_hidden_TBD, d_last = cotangents
    before_T = jax.tree.map(partial(_carries_before, reverse=reverse), after_T, carry)
    UT = _transpose(U, kept_TBG.shape[0])

    def unread(carried: Any, column: Any) -> tuple[Any, Any]:
        (d_after, d_small), (d_hidden_BD, before, x_BG, kept_BG, marks_B, nudge_BD) = carried, column
        before = _reset_carry(before, marks_B)
        d_after = d_after.replace(hidden_BD=d_after.hidden_BD + d_hidden_BD)
        if x_BG is None:
            x_BG, kept_BG = kept_BG, jnp.zeros_like(kept_BG)
        pull = jax.vjp(partial(_step_cell, cell, marks_B.valid), small, x_BG, kept_BG, before, nudge_BD)[1]
        more_small, d_x_BG, d_h_BG, d_before, d_nudge_BD = pull(d_after)
        d_before = d_before.replace(hidden_BD=d_before.hidden_BD + _matmul(d_h_BG, UT))
        d_small = jax.tree.map(jnp.add, d_small, more_small)
        return (_reset_carry(d_before, marks_B), d_small), (
            d_x_BG,
            None if _is_additive(cell, small) else d_h_BG,
            d_nudge_BD,
        )

    columns = (d_hidden_TBD, before_T, x_TBG, kept_TBG, marks, nudge_TBD)
    zeros = jax.tree.map(jnp.zeros_like, small)
    (d_carry, d_small), (d_x_TBG, d_h_TBG, d_nudge_TBD) = jax.lax.scan(
        unread, (d_last, zeros), columns, reverse=not reverse
    )
    d_h_TBG = d_x_TBG if d_h_TBG is None else d_h_TBG
    hidden_TBD = jax.vmap(_reset_carry)(before_T, marks).hidden_BD.astype(U.dtype)
    d_U = jnp.einsum("tbd,tbg->dg", hidden_TBD, d_h_TBG.astype(U.dtype), preferred_element_type=jnp.float32)
    return d_U.astype(U.dtype), d_small, d_x_TBG, d_carry, None, d_nudge_TBD


unroll.defvjp(_unroll_forward, _unroll_backward)


def _step_cell(cell, valid_B, vectors, x_BG, h_BG, carry, perturbation_BD):
    """The carry after one position, everything but the product with U."""
    after = cell.step(x_BG, h_BG, carry, vectors)
    if perturbation_BD is not None:
        after = after.replace(hidden_BD=after.hidden_BD + perturbation_BD)
    return jax.tree.map(lambda new_BD, old_BD: jnp.where(valid_B[:, None], new_BD, old_BD), after, carry)


def _reset_carry(carry: Carry, step_mask: StepMask) -> Carry:
    """The carry of one position, zero in the rows where something begins; of its gradient the same."""
    if step_mask.reset is None:
        return carry
    return jax.tree.map(lambda x_BD: jnp.where(step_mask.reset[:, None], 0.0, x_BD), carry)


def _matmul(x_BD: Array, W: Array) -> Array:
    return jnp.matmul(x_BD.astype(W.dtype), W, preferred_element_type=jnp.float32)


def _is_additive(cell: Cell, vectors: CellVectors) -> bool:
    """Whether the two products enter as a sum: then one array does for both, forwards and backwards."""
    return cell.additive and "recurrent_scale" not in vectors


def _carries_before(after_TBD: Array, first_BD: Array, reverse: bool) -> Array:
    """What each position found: the carries after the positions before it."""
    if reverse:
        return jnp.concatenate([after_TBD[1:], first_BD[None]])
    return jnp.concatenate([first_BD[None], after_TBD[:-1]])


def _transpose(U: Array, length: int) -> Array:
    """U^T, laid out in memory as such: a CPU is twice as slow at reading U across, position after position.

    The barrier keeps XLA from folding the transpose back into the products. For a few positions it does not pay.
    """
    return U.T if length < 4 else jax.lax.optimization_barrier(U.T)

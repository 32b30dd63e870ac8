"""One recurrent layer over time: the hot loop, with its own gradient (back-propagation through time).

Differentiating the scan by JAX would add a matrix of the size of U to dU at every position, which costs more than all
the rest. Here the backward scan returns the gradients of the products a_t = U h_{t-1}, and

    dU = sum_t h_{t-1}^T da_t

is one product after it. The element-wise part of a cell is differentiated by JAX from the stored products: recomputing
a few sigmoids takes a hundredth of the time, and no cell needs a gradient written by hand.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.rnn.cells import Carry, Cell, CellVectors, normalize_gates
from jaxlm.types import Array


@struct.dataclass
class StepInputs:
    """The inputs of a layer at T positions, with leading axes (T, B), or at one position, (B,).

    x: W x_t + b, (T, B, G); None in the residuals of an additive cell. valid: False leaves the carry unchanged.
    reset: True sets the carry to zero before the step. perturbation: added to h_t before it is carried on, (T, B, D).
    """

    x: Array | None
    valid: Array
    reset: Array | None = None
    perturbation: Array | None = None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unroll(
    cell: Cell, reverse: bool, U: Array, vectors: CellVectors, carry: Carry, inputs: StepInputs
) -> tuple[Array, Carry]:
    """Run `cell` over T positions, from the last one if `reverse`: return hidden_TBD and the last carry.

    Products with the recurrent matrix U (D, G) are computed in its dtype, everything else in float32.
    """
    return _unroll_forward(cell, reverse, U, vectors, carry, inputs)[0]


def _unroll_forward(cell, reverse, U, vectors, carry, inputs):
    is_additive = _is_additive(cell, vectors)

    def step(before: Carry, inputs: StepInputs) -> tuple[Carry, Any]:
        before = _reset_carry(before, inputs.reset)
        h_BG = _matmul(before.hidden_BD, U)
        after = _step_cell(cell, vectors, inputs.x, h_BG, before, inputs.valid, inputs.perturbation)
        return after, (after, inputs.x + h_BG if is_additive else h_BG)

    last, (after_T, product_TBG) = jax.lax.scan(step, carry, inputs, reverse=reverse)
    # An additive cell needs the sum of its products only: x is not stored a second time.
    inputs = inputs.replace(x=None) if is_additive else inputs
    return (after_T.hidden_BD, last), (U, vectors, carry, inputs, product_TBG, after_T)


def _unroll_backward(cell, reverse, residuals, cotangents):
    U, vectors, carry, inputs, product_TBG, after_T = residuals
    d_hidden_TBD, d_last = cotangents

    def carries_before(after_TBD: Array, first_BD: Array) -> Array:
        return jnp.concatenate([after_TBD[1:], first_BD[None]] if reverse else [first_BD[None], after_TBD[:-1]])

    before_T = jax.tree.map(carries_before, after_T, carry)
    # A CPU is twice as slow at reading U across at every position. The barrier keeps XLA from folding the transpose
    # back into the products. It does not pay for few positions.
    UT = U.T if product_TBG.shape[0] < 4 else jax.lax.optimization_barrier(U.T)

    def step_back(d_carry: Any, saved: Any) -> tuple[Any, Any]:
        (d_after, d_vectors), (d_hidden_BD, before, inputs, h_BG) = d_carry, saved
        before, x_BG = _reset_carry(before, inputs.reset), inputs.x
        d_after = d_after.replace(hidden_BD=d_after.hidden_BD + d_hidden_BD)
        if x_BG is None:
            x_BG, h_BG = h_BG, jnp.zeros_like(h_BG)
        _, pull = jax.vjp(
            lambda vectors, x_BG, h_BG, before, perturbation_BD: _step_cell(
                cell, vectors, x_BG, h_BG, before, inputs.valid, perturbation_BD
            ),
            vectors, x_BG, h_BG, before, inputs.perturbation,
        )  # fmt: skip
        d_step_vectors, d_x_BG, d_h_BG, d_before, d_perturbation_BD = pull(d_after)
        # The two ways from h_t to the loss: through the cell, and through the product with U.
        d_before = d_before.replace(hidden_BD=d_before.hidden_BD + _matmul(d_h_BG, UT))
        d_vectors = jax.tree.map(jnp.add, d_vectors, d_step_vectors)
        d_h_BG = None if _is_additive(cell, vectors) else d_h_BG
        return (_reset_carry(d_before, inputs.reset), d_vectors), (d_x_BG, d_h_BG, d_perturbation_BD)

    first = d_last, jax.tree.map(jnp.zeros_like, vectors)
    saved_T = d_hidden_TBD, before_T, inputs, product_TBG
    (d_carry, d_vectors), gradients_T = jax.lax.scan(step_back, first, saved_T, reverse=not reverse)
    d_x_TBG, d_h_TBG, d_perturbation_TBD = gradients_T
    d_h_TBG = d_x_TBG if d_h_TBG is None else d_h_TBG
    hidden_TBD = jax.vmap(_reset_carry)(before_T, inputs.reset).hidden_BD.astype(U.dtype)
    # dU of all positions as one product of (D, T B) and (T B, G).
    d_U = jnp.einsum("tbd,tbg->dg", hidden_TBD, d_h_TBG.astype(U.dtype), preferred_element_type=jnp.float32)
    d_inputs = StepInputs(x=d_x_TBG, valid=None, reset=None, perturbation=d_perturbation_TBD)
    return d_U.astype(U.dtype), d_vectors, d_carry, d_inputs


unroll.defvjp(_unroll_forward, _unroll_backward)


def _step_cell(cell, vectors, x_BG, h_BG, carry, valid_B, perturbation_BD):
    """The carry after one position; everything but the product with U."""
    after = cell.step(x_BG, normalize_gates(h_BG, vectors.get("recurrent_scale"), cell.norm_groups), carry, vectors)
    if perturbation_BD is not None:
        after = after.replace(hidden_BD=after.hidden_BD + perturbation_BD)
    return jax.tree.map(lambda new_BD, old_BD: jnp.where(valid_B[:, None], new_BD, old_BD), after, carry)


def _reset_carry(carry: Carry, reset_B: Array | None) -> Carry:
    """The carry, or its gradient, with zeros in the rows that are reset."""
    if reset_B is None:
        return carry
    return jax.tree.map(lambda x_BD: jnp.where(reset_B[:, None], 0.0, x_BD), carry)


def _matmul(x_BD: Array, W: Array) -> Array:
    return jnp.matmul(x_BD.astype(W.dtype), W, preferred_element_type=jnp.float32)


def _is_additive(cell: Cell, vectors: CellVectors) -> bool:
    """True if the two products enter as a sum, so that one array serves both, forward and backward."""
    return cell.additive and "recurrent_scale" not in vectors

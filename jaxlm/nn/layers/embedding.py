"""Embedding lookup and the logits over a vocabulary, for plain and quantized tables."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.nn.weights import cpu_kernels
from jaxlm.nn.weights.weight_formats import Int8, PackedKernel, _int8_matmul, _matmul_by_rows, _packed_kernel_matmul
from jaxlm.types import Array


def embed_ids(table: Any, ids: Array) -> Array:
    """The rows of a table (V, D) for ids of any shape: (..., D)."""
    if isinstance(table, Int8):
        return table.values[ids].astype(jnp.float32) * table.scale[ids][..., None]
    if isinstance(table, PackedKernel):
        return table.values_PDW[ids // cpu_kernels.panel_width(), :, ids % cpu_kernels.panel_width()]
    return table[ids]


def vocab_logits(x_RD: Array, table: Any) -> Array:
    """x E^T: (R, D) -> float32 (R, V); the product is in the dtype of x, unless the table is narrower."""
    if isinstance(table, Int8):
        return _int8_matmul(x_RD, table)
    if isinstance(table, PackedKernel):
        return _packed_kernel_matmul(x_RD, table)
    if jnp.bfloat16 in (x_RD.dtype, table.dtype):
        return _bfloat16_logits(x_RD.astype(jnp.bfloat16), table)
    return _matmul_by_rows(x_RD, table.astype(x_RD.dtype))


@jax.custom_vjp
def _bfloat16_logits(x_RD: Array, table_VD: Array) -> Array:
    """`vocab_logits` of bfloat16 whose gradients are products of bfloat16 too, added up in float32.

    JAX's own would multiply the float32 gradient of the logits: at half the speed or less, and the head of a small
    model is a third of its arithmetic.
    """
    return _matmul_by_rows(x_RD, table_VD.astype(x_RD.dtype))


def _bfloat16_logits_forward(x_RD, table_VD):
    return _bfloat16_logits(x_RD, table_VD), (x_RD, table_VD)


def _bfloat16_logits_backward(residuals, d_scores_RV):
    x_RD, table_VD = residuals
    d_RV, narrow_VD = d_scores_RV.astype(x_RD.dtype), table_VD.astype(x_RD.dtype)
    d_x_RD = jnp.einsum("rv,vd->rd", d_RV, narrow_VD, preferred_element_type=jnp.float32)
    d_table_VD = jnp.einsum("rv,rd->vd", d_RV, x_RD, preferred_element_type=jnp.float32)
    return d_x_RD.astype(x_RD.dtype), d_table_VD.astype(table_VD.dtype)


_bfloat16_logits.defvjp(_bfloat16_logits_forward, _bfloat16_logits_backward)

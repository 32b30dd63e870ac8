"""Embedding lookup and the logits over a vocabulary, for plain, quantized and packed tables.

They are functions of a table, so that one table (V, D) can serve as input embedding and as tied output.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.distributed.platforms import choices_for
from jaxlm.nn.weights.weight_formats import WeightFormat, matmul_by_rows, note_use
from jaxlm.types import Array


def embed_ids(table: Any, ids: Array) -> Array:
    """Return the rows of a table (V, D) for ids of any shape: (..., D)."""
    note_use(table, "rows")
    return table.embed(ids) if isinstance(table, WeightFormat) else table[ids]


def vocab_logits(features: Array, table: Any, bias_V: Array | None = None) -> Array:
    """Return the logits E x + b: features (..., D) and a table E (V, D) -> float32 (..., V).

    The product is in the dtype of the features, unless the table is narrower.
    """
    x_RD = features.reshape(-1, features.shape[-1])
    note_use(table, "table")
    if isinstance(table, WeightFormat):
        logits_RV = table.matmul(x_RD)
    elif jnp.bfloat16 in (x_RD.dtype, table.dtype):
        logits_RV = _bfloat16_logits(x_RD.astype(jnp.bfloat16), table, choices_for(x_RD).narrow_logits)
    else:
        logits_RV = matmul_by_rows(x_RD, table.astype(x_RD.dtype))
    if bias_V is not None:
        logits_RV = logits_RV + bias_V[None]
    return logits_RV.reshape(*features.shape[:-1], logits_RV.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bfloat16_logits(x_RD: Array, table_VD: Array, is_narrow: bool) -> Array:
    """Logits whose gradients, too, are bfloat16 products: JAX's own would be float32 products, at half the speed."""
    logits_RV = matmul_by_rows(x_RD, table_VD.astype(x_RD.dtype), jnp.bfloat16 if is_narrow else jnp.float32)
    return logits_RV.astype(jnp.float32)


def _bfloat16_logits_backward(_is_narrow, residuals, d_logits_RV):
    x_RD, table_VD = residuals
    d_logits_RV, narrow_VD = d_logits_RV.astype(x_RD.dtype), table_VD.astype(x_RD.dtype)
    d_x_RD = jnp.einsum("rv,vd->rd", d_logits_RV, narrow_VD, preferred_element_type=jnp.float32)
    d_table_VD = jnp.einsum("rv,rd->vd", d_logits_RV, x_RD, preferred_element_type=jnp.float32)
    return d_x_RD.astype(x_RD.dtype), d_table_VD.astype(table_VD.dtype)


_bfloat16_logits.defvjp(
    lambda x, table, is_narrow: (_bfloat16_logits(x, table, is_narrow), (x, table)), _bfloat16_logits_backward
)

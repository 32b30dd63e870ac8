"""Weights of eight bits for decoding: W ~ values * scale with one scale an output channel (Dettmers et al. 2022).

A kernel (D, F) has a scale for each of the F columns, a table (V, D) one for each of its rows; leading axes (layers)
stay. Weight-only, the product is one of bfloat16, which holds each of the integers; `dynamic`, the activations too
become eight bits with one scale a row, and the product is one of integers: the quicker on hardware that has such.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.types import Array

LEVELS = 127
PRECISIONS = ("float32", "bfloat16", "int8", "int8_dynamic")
TABLES = ("embedding", "source_embedding", "output")


@struct.dataclass
class Int8:
    """Integers (int8) and scales (float32) in the place of a kernel or of a table."""

    values: Array
    scale: Array
    dynamic: bool = struct.field(pytree_node=False, default=False)


def rounded(weights: Array, axis: int) -> tuple[Array, Array]:
    """int8 values and float32 scales; `axis`, over which a scale holds, is gone from the scales."""
    weights = weights.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weights).max(axis, keepdims=True), jnp.finfo(jnp.float32).tiny) / LEVELS
    return jnp.round(weights / scale).astype(jnp.int8), jnp.squeeze(scale, axis)


def quantised(params: Any, dynamic: bool = False) -> Any:
    """The parameters with every kernel of a `Linear` and every table of ids as `Int8`; the others as they are."""

    def each(path: tuple, leaf: Array) -> Any:
        name = path[-1].key
        if name == "kernel" and leaf.ndim > 1:
            return Int8(*rounded(leaf, -2), dynamic)
        return Int8(*rounded(leaf, -1), dynamic) if name in TABLES and leaf.ndim == 2 else leaf

    return jax.tree_util.tree_map_with_path(each, params)


def halved(params: Any) -> Any:
    """The parameters with the same leaves in bfloat16."""

    def each(path: tuple, leaf: Array) -> Array:
        large = path[-1].key == "kernel" or path[-1].key in TABLES
        return leaf.astype(jnp.bfloat16) if large else leaf

    return jax.tree_util.tree_map_with_path(each, params)


def at_precision(model: Any, params: Any, precision: str) -> tuple[Any, Any]:
    """The model and its parameters as they are (float32), halved (bfloat16), or with weights of eight bits.

    On an accelerator all activations become bfloat16 unless they become integers; on a CPU only those that enter a
    product, since XLA has nothing else that is quick in bfloat16 there. Raises UserError for a model whose products
    have no choice of a dtype.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return model, params
    if not hasattr(model, "dtype") and hasattr(model, "model"):  # a model around another
        inner, changed = at_precision(model.model, params["model"], precision)
        return model.clone(model=inner), {**params, "model": changed}
    if not hasattr(model, "dtype"):
        raise UserError(f"{type(model).__name__} computes in float32 only: leave out --precision {precision}")
    if precision != "int8_dynamic" and jax.default_backend() != "cpu":
        model = model.clone(dtype="bfloat16")
    change = halved if precision == "bfloat16" else functools.partial(quantised, dynamic=precision == "int8_dynamic")
    return model, jax.jit(change)(params)


def joined(kernels: tuple[Any, ...]) -> Any:
    """Kernels (D, F) side by side."""
    if isinstance(kernels[0], Int8):
        values, scales = (jnp.concatenate([getattr(one, name) for one in kernels], -1) for name in ("values", "scale"))
        return Int8(values, scales, kernels[0].dynamic)
    return jnp.concatenate(kernels, axis=1)


def product(x_RD: Array, kernel: Any, dtype: Any) -> Array:
    """x W: (R, D) -> (R, F) in `dtype`, which is that of the product too unless the weights are narrower."""
    if isinstance(kernel, Int8):
        return _scaled(x_RD, kernel, "rd,df->rf").astype(dtype)
    if kernel.dtype == jnp.bfloat16 and dtype != jnp.bfloat16:
        return jnp.dot(x_RD.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32).astype(dtype)
    return x_RD.astype(dtype) @ kernel.astype(dtype)


def rows(table: Any, ids: Array) -> Array:
    """The rows of a table (V, D) for ids of any shape: (..., D)."""
    if isinstance(table, Int8):
        return table.values[ids].astype(jnp.float32) * table.scale[ids][..., None]
    return table[ids]


def scores(x_RD: Array, table: Any) -> Array:
    """x E^T: (R, D) -> float32 (R, V); the product is in the dtype of x, unless the table is narrower."""
    if isinstance(table, Int8):
        return _scaled(x_RD, table, "rd,vd->rv")
    dtype = jnp.bfloat16 if table.dtype == jnp.bfloat16 else x_RD.dtype
    return jnp.einsum("rd,vd->rv", x_RD.astype(dtype), table.astype(dtype), preferred_element_type=jnp.float32)


def _scaled(x_RD: Array, weights: Int8, spec: str) -> Array:
    if not weights.dynamic:
        narrow = x_RD.astype(jnp.bfloat16), weights.values.astype(jnp.bfloat16)
        return jnp.einsum(spec, *narrow, preferred_element_type=jnp.float32) * weights.scale[None]
    values_RD, scale_R = rounded(x_RD, -1)
    found = jnp.einsum(spec, values_RD, weights.values, preferred_element_type=jnp.int32)
    return found.astype(jnp.float32) * scale_R[:, None] * weights.scale[None]

"""What stands for weights while decoding: eight bits, W ~ values * scale with one scale an output channel (Dettmers et
al. 2022), or float32 in the order that a CPU reads the quickest.

A kernel (D, F) is kept as (F, D), and like a table (V, D) has a scale for each row; leading axes (layers) stay.
Weight-only, the product is one of bfloat16, which holds each of the integers; `dynamic`, the activations too become
eight bits with one scale a row, and the product is one of integers: the quicker on hardware that has such.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.nn import native
from jaxlm.parallel import platform_of
from jaxlm.types import Array

LEVELS = 127
FEW = 31
"""Rows up to which a CPU multiplies W x^T faster than x W^T, float32: 6.6 ms to 10.1 with 8, the same with 32."""
PRECISIONS = ("float32", "bfloat16", "int8", "int8_dynamic")
TABLES = ("embedding", "source_embedding", "output")


@struct.dataclass
class Int8:
    """Integers (int8) and scales (float32) in the place of a kernel or of a table."""

    values: Array
    scale: Array
    dynamic: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Turned:
    """A kernel (D, F) kept as (F, D): what XLA's products on a CPU read the quickest when the rows are few."""

    values_FD: Array


@struct.dataclass
class Panels:
    """A float32 kernel (D, F), or a table (F, D), as `jaxlm.nn.native` multiplies with it."""

    values_PDW: Array
    features: int = struct.field(pytree_node=False)


FORMS = (Int8, Turned, Panels)


def turned(kernel: Any) -> Any:
    """The kernel (D, F) of a map as `Panels` or `Turned`; any other form as it is, and all of them but on a CPU."""
    if isinstance(kernel, FORMS) or kernel.ndim != 2 or platform_of(kernel) != "cpu":
        return kernel
    return _panels(kernel.T) if native.serves(kernel) else Turned(kernel.T)


def turned_table(table: Any) -> Any:
    """A table (V, D) as `Panels` where it may be, else as it is."""
    return _panels(table) if not isinstance(table, FORMS) and table.ndim == 2 and native.serves(table) else table


def _panels(weights_FD: Array) -> Panels:
    return Panels(native.panels(weights_FD), weights_FD.shape[0])


def weights(module: nn.Module, name: str, start: Any, shape: tuple[int, int]) -> Any:
    """The module's parameter of that name, or what stands for it."""
    known: Any = module.get_variable("params", name)
    return known if isinstance(known, FORMS) else module.param(name, start, shape)


def rounded(weights: Array) -> tuple[Array, Array]:
    """int8 values and float32 scales; the last axis, over which a scale holds, is gone from the scales."""
    weights = weights.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weights).max(-1, keepdims=True), jnp.finfo(jnp.float32).tiny) / LEVELS
    return jnp.round(weights / scale).astype(jnp.int8), scale[..., 0]


def quantised(params: Any, dynamic: bool = False) -> Any:
    """The parameters with every kernel of a `Linear` and every table of ids as `Int8`; the others as they are."""

    def each(path: tuple, leaf: Array) -> Any:
        name = getattr(path[-1], "key", "")  # what fine-tuning adds has none, and stays
        if name == "kernel" and leaf.ndim > 1:
            return Int8(*rounded(jnp.swapaxes(leaf, -1, -2)), dynamic)
        return Int8(*rounded(leaf), dynamic) if name in TABLES and leaf.ndim == 2 else leaf

    return jax.tree_util.tree_map_with_path(each, params)


def halved(params: Any) -> Any:
    """The parameters with the same leaves in bfloat16."""

    def each(path: tuple, leaf: Array) -> Array:
        large = getattr(path[-1], "key", "") in ("kernel", *TABLES)
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
        values, scales = (jnp.concatenate([getattr(one, name) for one in kernels]) for name in ("values", "scale"))
        return Int8(values, scales, kernels[0].dynamic)
    if isinstance(kernels[0], Turned):
        return Turned(jnp.concatenate([one.values_FD for one in kernels]))
    if isinstance(kernels[0], Panels):
        return _joined_panels(kernels)
    return jnp.concatenate(kernels, axis=1)


def _joined_panels(kernels: tuple[Panels, ...]) -> Panels:
    if any(one.features % native.width() for one in kernels[:-1]):
        return _panels(jnp.concatenate([native.unpacked(one.values_PDW, one.features) for one in kernels]))
    return Panels(jnp.concatenate([one.values_PDW for one in kernels]), sum(one.features for one in kernels))


def product(x_RD: Array, kernel: Any, dtype: Any) -> Array:
    """x W: (R, D) -> (R, F) in `dtype`, which is that of the product too unless the weights are narrower."""
    if isinstance(kernel, Int8):
        return _scaled(x_RD, kernel).astype(dtype)
    if isinstance(kernel, Turned):
        return _turned_product(x_RD, kernel.values_FD, dtype)
    if isinstance(kernel, Panels):
        return _native_product(x_RD, kernel).astype(dtype)
    if kernel.dtype == jnp.bfloat16 and dtype != jnp.bfloat16:
        return jnp.dot(x_RD.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32).astype(dtype)
    return x_RD.astype(dtype) @ kernel.astype(dtype)


def _turned_product(x_RD: Array, kernel_FD: Array, dtype: Any) -> Array:
    if kernel_FD.dtype == jnp.bfloat16:
        return _product(x_RD.astype(jnp.bfloat16), kernel_FD).astype(dtype)
    kernel_FD = kernel_FD.astype(dtype)
    if x_RD.shape[0] > FEW or dtype != jnp.float32:
        return _product(x_RD.astype(dtype), kernel_FD, dtype)
    # The barrier keeps XLA from writing it as the product above, which takes half as long again.
    return jax.lax.optimization_barrier(kernel_FD @ x_RD.T).T


def _native_product(x_RD: Array, kernel: Panels) -> Array:
    return native.product(x_RD.astype(jnp.float32), kernel.values_PDW, kernel.features)


def _product(x_RD: Array, weights_FD: Array, dtype: Any = jnp.float32) -> Array:
    return jnp.einsum("rd,fd->rf", x_RD, weights_FD, preferred_element_type=dtype)


def rows(table: Any, ids: Array) -> Array:
    """The rows of a table (V, D) for ids of any shape: (..., D)."""
    if isinstance(table, Int8):
        return table.values[ids].astype(jnp.float32) * table.scale[ids][..., None]
    if isinstance(table, Panels):
        return table.values_PDW[ids // native.width(), :, ids % native.width()]
    return table[ids]


def scores(x_RD: Array, table: Any) -> Array:
    """x E^T: (R, D) -> float32 (R, V); the product is in the dtype of x, unless the table is narrower."""
    if isinstance(table, Int8):
        return _scaled(x_RD, table)
    if isinstance(table, Panels):
        return _native_product(x_RD, table)
    if jnp.bfloat16 in (x_RD.dtype, table.dtype):
        return _narrow_scores(x_RD.astype(jnp.bfloat16), table)
    return _product(x_RD, table.astype(x_RD.dtype))


@jax.custom_vjp
def _narrow_scores(x_RD: Array, table_VD: Array) -> Array:
    """`scores` of bfloat16 whose gradients are products of bfloat16 too, added up in float32.

    JAX's own would multiply the float32 gradient of the logits: at half the speed or less, and the head of a small
    model is a third of its arithmetic.
    """
    return _product(x_RD, table_VD.astype(x_RD.dtype))


def _narrow_forward(x_RD, table_VD):
    return _narrow_scores(x_RD, table_VD), (x_RD, table_VD)


def _narrow_backward(kept, d_scores_RV):
    x_RD, table_VD = kept
    d_RV, narrow_VD = d_scores_RV.astype(x_RD.dtype), table_VD.astype(x_RD.dtype)
    d_x_RD = jnp.einsum("rv,vd->rd", d_RV, narrow_VD, preferred_element_type=jnp.float32)
    d_table_VD = jnp.einsum("rv,rd->vd", d_RV, x_RD, preferred_element_type=jnp.float32)
    return d_x_RD.astype(x_RD.dtype), d_table_VD.astype(table_VD.dtype)


_narrow_scores.defvjp(_narrow_forward, _narrow_backward)


def _scaled(x_RD: Array, weights: Int8) -> Array:
    if not weights.dynamic:
        return _product(x_RD.astype(jnp.bfloat16), weights.values.astype(jnp.bfloat16)) * weights.scale[None]
    values_RD, scale_R = rounded(x_RD)
    found = _product(values_RD, weights.values, jnp.int32)
    return found.astype(jnp.float32) * scale_R[:, None] * weights.scale[None]

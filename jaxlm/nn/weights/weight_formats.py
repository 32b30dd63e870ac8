"""Weight formats for inference and the products with them: int8 with one scale per output channel, transposed
and packed float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.sharding import platform_of
from jaxlm.nn.weights import cpu_kernels
from jaxlm.types import Array

INT8_MAX = 127

MAX_TRANSPOSED_ROWS = 31
"""Rows up to which a CPU multiplies W x^T faster than x W^T, float32: 6.6 ms to 10.1 with 8, the same with 32."""


@struct.dataclass
class Int8:
    """Integers (int8) and scales (float32) in the place of a kernel or of a table."""

    values: Array
    scale: Array
    dynamic: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class TransposedKernel:
    """A kernel (D, F) kept as (F, D): what XLA's products on a CPU read the quickest when the rows are few."""

    values_FD: Array


@struct.dataclass
class PackedKernel:
    """A float32 kernel (D, F), or a table (F, D), as `jaxlm.nn.weights.cpu_kernels` multiplies with it."""

    values_PDW: Array
    features: int = struct.field(pytree_node=False)


WEIGHT_FORMATS = (Int8, TransposedKernel, PackedKernel)


def to_cpu_format(kernel: Any) -> Any:
    """The kernel (D, F) of a map as `PackedKernel` or `TransposedKernel`; any other form as it is, and all of
    them but on a CPU.
    """
    if isinstance(kernel, WEIGHT_FORMATS) or kernel.ndim != 2 or platform_of(kernel) != "cpu":
        return kernel
    return _pack_kernel(kernel.T) if cpu_kernels.supports(kernel) else TransposedKernel(kernel.T)


def table_to_cpu_format(table: Any) -> Any:
    """A table (V, D) as `PackedKernel` where it may be, else as it is."""
    return (
        _pack_kernel(table)
        if not isinstance(table, WEIGHT_FORMATS) and table.ndim == 2 and cpu_kernels.supports(table)
        else table
    )


def _pack_kernel(weights_FD: Array) -> PackedKernel:
    return PackedKernel(cpu_kernels.pack_panels(weights_FD), weights_FD.shape[0])


def param_or_quantized(module: nn.Module, name: str, init_fn: Any, shape: tuple[int, int]) -> Any:
    """The module's parameter of that name, or what stands for it."""
    known: Any = module.get_variable("params", name)
    return known if isinstance(known, WEIGHT_FORMATS) else module.param(name, init_fn, shape)


def quantize_rows(weights: Array) -> tuple[Array, Array]:
    """int8 values and float32 scales; the last axis, over which a scale holds, is gone from the scales."""
    weights = weights.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weights).max(-1, keepdims=True), jnp.finfo(jnp.float32).tiny) / INT8_MAX
    return jnp.round(weights / scale).astype(jnp.int8), scale[..., 0]


def concat_kernels(kernels: tuple[Any, ...]) -> Any:
    """Kernels (D, F) side by side."""
    if isinstance(kernels[0], Int8):
        values, scales = (jnp.concatenate([getattr(one, name) for one in kernels]) for name in ("values", "scale"))
        return Int8(values, scales, kernels[0].dynamic)
    if isinstance(kernels[0], TransposedKernel):
        return TransposedKernel(jnp.concatenate([one.values_FD for one in kernels]))
    if isinstance(kernels[0], PackedKernel):
        return _concat_packed(kernels)
    return jnp.concatenate(kernels, axis=1)


def _concat_packed(kernels: tuple[PackedKernel, ...]) -> PackedKernel:
    if any(one.features % cpu_kernels.panel_width() for one in kernels[:-1]):
        return _pack_kernel(
            jnp.concatenate([cpu_kernels.unpack_panels(one.values_PDW, one.features) for one in kernels])
        )
    return PackedKernel(jnp.concatenate([one.values_PDW for one in kernels]), sum(one.features for one in kernels))


def kernel_matmul(x_RD: Array, kernel: Any, dtype: Any) -> Array:
    """x W: (R, D) -> (R, F) in `dtype`, which is that of the product too unless the weights are narrower."""
    if isinstance(kernel, Int8):
        return _int8_matmul(x_RD, kernel).astype(dtype)
    if isinstance(kernel, TransposedKernel):
        return _transposed_kernel_matmul(x_RD, kernel.values_FD, dtype)
    if isinstance(kernel, PackedKernel):
        return _packed_kernel_matmul(x_RD, kernel).astype(dtype)
    if kernel.dtype == jnp.bfloat16 and dtype != jnp.bfloat16:
        return jnp.dot(x_RD.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32).astype(dtype)
    return x_RD.astype(dtype) @ kernel.astype(dtype)


def _transposed_kernel_matmul(x_RD: Array, kernel_FD: Array, dtype: Any) -> Array:
    if kernel_FD.dtype == jnp.bfloat16:
        return _matmul_by_rows(x_RD.astype(jnp.bfloat16), kernel_FD).astype(dtype)
    kernel_FD = kernel_FD.astype(dtype)
    if x_RD.shape[0] > MAX_TRANSPOSED_ROWS or dtype != jnp.float32:
        return _matmul_by_rows(x_RD.astype(dtype), kernel_FD, dtype)
    # The barrier keeps XLA from writing it as the product above, which takes half as long again.
    return jax.lax.optimization_barrier(kernel_FD @ x_RD.T).T


def _packed_kernel_matmul(x_RD: Array, kernel: PackedKernel) -> Array:
    return cpu_kernels.packed_matmul(x_RD.astype(jnp.float32), kernel.values_PDW, kernel.features)


def _matmul_by_rows(x_RD: Array, weights_FD: Array, dtype: Any = jnp.float32) -> Array:
    return jnp.einsum("rd,fd->rf", x_RD, weights_FD, preferred_element_type=dtype)


def _int8_matmul(x_RD: Array, weights: Int8) -> Array:
    if not weights.dynamic:
        return _matmul_by_rows(x_RD.astype(jnp.bfloat16), weights.values.astype(jnp.bfloat16)) * weights.scale[None]
    values_RD, scale_R = quantize_rows(x_RD)
    found = _matmul_by_rows(values_RD, weights.values, jnp.int32)
    return found.astype(jnp.float32) * scale_R[:, None] * weights.scale[None]

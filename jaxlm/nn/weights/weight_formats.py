"""Weight formats for inference and the products with them.

| format             | a kernel (D, F) is kept as                              | used for                       |
|--------------------|---------------------------------------------------------|--------------------------------|
| `Int8`             | int8 (F, D) with one float32 scale per output channel   | `--precision int8`             |
| `TransposedKernel` | (F, D)                                                  | decoding on a CPU by XLA       |
| `PackedKernel`     | float32 panels (P, D, W), see `cpu_kernels`             | decoding on a CPU by the C code |

A table (V, D) of embeddings has output channels as its rows already. Any other kernel is a plain array.
"""

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
"""Rows R up to which a CPU multiplies W x^T faster than x W^T in float32: 6.6 against 10.1 ms at 8, equal at 32."""


@struct.dataclass
class Int8:
    """Quantized weights: int8 `values` (F, D) times float32 `scale` (F,). `dynamic`: activations are int8 too."""

    values: Array
    scale: Array
    dynamic: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class TransposedKernel:
    """A kernel (D, F) kept as (F, D): the layout in which XLA's CPU products of few rows are fastest."""

    values_FD: Array


@struct.dataclass
class PackedKernel:
    """A float32 kernel (D, F), or table (F, D), in the panels of `jaxlm.nn.weights.cpu_kernels`."""

    values_PDW: Array
    features: int = struct.field(pytree_node=False)


WEIGHT_FORMATS = (Int8, TransposedKernel, PackedKernel)


def to_cpu_format(kernel: Any) -> Any:
    """Return a kernel (D, F) as `PackedKernel` or `TransposedKernel`; unchanged off a CPU or in another format."""
    if isinstance(kernel, WEIGHT_FORMATS) or kernel.ndim != 2 or platform_of(kernel) != "cpu":
        return kernel
    return _pack_kernel(kernel.T) if cpu_kernels.supports(kernel) else TransposedKernel(kernel.T)


def table_to_cpu_format(table: Any) -> Any:
    """Return a table (V, D) as `PackedKernel` if the C kernels support it, else unchanged."""
    if isinstance(table, WEIGHT_FORMATS) or table.ndim != 2 or not cpu_kernels.supports(table):
        return table
    return _pack_kernel(table)


def _pack_kernel(weights_FD: Array) -> PackedKernel:
    return PackedKernel(cpu_kernels.pack_panels(weights_FD), weights_FD.shape[0])


def param_or_quantized(module: nn.Module, name: str, init_fn: Any, shape: tuple[int, int]) -> Any:
    """Return the module's parameter of that name, or the inference format that replaces it."""
    value: Any = module.get_variable("params", name)
    return value if isinstance(value, WEIGHT_FORMATS) else module.param(name, init_fn, shape)


def quantize_rows(weights: Array) -> tuple[Array, Array]:
    """Return int8 values (..., F, D) and their float32 scales (..., F), the largest magnitude of a row / 127."""
    weights = weights.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weights).max(-1, keepdims=True), jnp.finfo(jnp.float32).tiny) / INT8_MAX
    return jnp.round(weights / scale).astype(jnp.int8), scale[..., 0]


def concat_kernels(kernels: tuple[Any, ...]) -> Any:
    """Concatenate kernels (D, F) of one format along F."""
    if isinstance(kernels[0], Int8 | TransposedKernel):
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *kernels)
    if not isinstance(kernels[0], PackedKernel):
        return jnp.concatenate(kernels, axis=1)
    if any(kernel.features % cpu_kernels.panel_width() for kernel in kernels[:-1]):
        # A panel that is partly padding cannot stand in the middle: unpack, concatenate, pack again.
        unpacked = [cpu_kernels.unpack_panels(kernel.values_PDW, kernel.features) for kernel in kernels]
        return _pack_kernel(jnp.concatenate(unpacked))
    panels_PDW = jnp.concatenate([kernel.values_PDW for kernel in kernels])
    return PackedKernel(panels_PDW, sum(kernel.features for kernel in kernels))


def kernel_matmul(x_RD: Array, kernel: Any, dtype: Any) -> Array:
    """Return x W: (R, D) -> (R, F) in `dtype`, computed in `dtype` too unless the weights are narrower."""
    if isinstance(kernel, Int8):
        return int8_matmul(x_RD, kernel).astype(dtype)
    if isinstance(kernel, TransposedKernel):
        return _transposed_kernel_matmul(x_RD, kernel.values_FD, dtype)
    if isinstance(kernel, PackedKernel):
        return packed_kernel_matmul(x_RD, kernel).astype(dtype)
    if kernel.dtype == jnp.bfloat16 and dtype != jnp.bfloat16:
        return jnp.dot(x_RD.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32).astype(dtype)
    return x_RD.astype(dtype) @ kernel.astype(dtype)


def _transposed_kernel_matmul(x_RD: Array, kernel_FD: Array, dtype: Any) -> Array:
    if kernel_FD.dtype == jnp.bfloat16:
        return matmul_by_rows(x_RD.astype(jnp.bfloat16), kernel_FD).astype(dtype)
    kernel_FD = kernel_FD.astype(dtype)
    if x_RD.shape[0] > MAX_TRANSPOSED_ROWS or dtype != jnp.float32:
        return matmul_by_rows(x_RD.astype(dtype), kernel_FD, dtype)
    # The barrier keeps XLA from rewriting this as the product above, which takes half as long again.
    return jax.lax.optimization_barrier(kernel_FD @ x_RD.T).T


def packed_kernel_matmul(x_RD: Array, kernel: PackedKernel) -> Array:
    """Return x W, float32: (R, D) -> (R, F)."""
    return cpu_kernels.packed_matmul(x_RD.astype(jnp.float32), kernel.values_PDW, kernel.features)


def matmul_by_rows(x_RD: Array, weights_FD: Array, dtype: Any = jnp.float32) -> Array:
    """Return x W^T, accumulated in `dtype`: (R, D) and (F, D) -> (R, F)."""
    return jnp.einsum("rd,fd->rf", x_RD, weights_FD, preferred_element_type=dtype)


def int8_matmul(x_RD: Array, weights: Int8) -> Array:
    """Return x W^T of quantized weights, float32: a bfloat16 product, or if `dynamic` an int8 one."""
    if not weights.dynamic:
        # bfloat16 represents every int8 exactly, so the only rounding is that of x.
        return matmul_by_rows(x_RD.astype(jnp.bfloat16), weights.values.astype(jnp.bfloat16)) * weights.scale[None]
    values_RD, scale_R = quantize_rows(x_RD)
    product_RF = matmul_by_rows(values_RD, weights.values, jnp.int32)
    return product_RF.astype(jnp.float32) * scale_R[:, None] * weights.scale[None]

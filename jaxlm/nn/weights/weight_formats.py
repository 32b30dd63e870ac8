"""Quantization and weight formats for inference, and the products with them.

| format         | a kernel (D, F) is kept as                            | used for                        |
|----------------|-------------------------------------------------------|---------------------------------|
| `Int8`         | int8 (F, D) with one float32 scale per output channel | `--precision int8`              |
| `PackedKernel` | float32 panels (P, D, W), see `cpu_kernels`           | decoding on a CPU by the C code |

A table (V, D) of embeddings has output channels as its rows already. Any other kernel is a plain array.

Quantization (Dettmers et al. 2022): W ~ values * scale; leading axes (layers) stay. Weight-only, the product is that
of bfloat16; with `dynamic`, activations are int8 too, with one scale per row, and the product is one of integers:
faster on hardware that has such units.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.nn.weights import cpu_kernels
from jaxlm.types import Array

PRECISIONS = ("float32", "bfloat16", "int8", "int8_dynamic")

TABLE_PARAMS = ("embedding", "source_embedding", "output")

INT8_MAX = 127


@struct.dataclass
class Int8:
    """Quantized weights: int8 `values` (F, D) times float32 `scale` (F,). `dynamic`: activations are int8 too."""

    values: Array
    scale: Array
    dynamic: bool = struct.field(pytree_node=False, default=False)

    def matmul(self, x_RD: Array) -> Array:
        """Return x W^T, float32: a bfloat16 product, or if `dynamic` an int8 one."""
        if not self.dynamic:
            # bfloat16 represents every int8 exactly, so the only rounding is that of x.
            return matmul_by_rows(x_RD.astype(jnp.bfloat16), self.values.astype(jnp.bfloat16)) * self.scale[None]
        values_RD, scale_R = quantize_rows(x_RD)
        product_RF = matmul_by_rows(values_RD, self.values, jnp.int32)
        return product_RF.astype(jnp.float32) * scale_R[:, None] * self.scale[None]

    def embed(self, ids: Array) -> Array:
        """Return the rows of a table (V, D) for ids of any shape: (..., D)."""
        return self.values[ids].astype(jnp.float32) * self.scale[ids][..., None]


@struct.dataclass
class PackedKernel:
    """A float32 kernel (D, F), or table (F, D), in the panels of `jaxlm.nn.weights.cpu_kernels`."""

    values_PDW: Array
    features: int = struct.field(pytree_node=False)

    @classmethod
    def pack(cls, weights_FD: Array) -> "PackedKernel":
        return cls(cpu_kernels.pack_panels(weights_FD), weights_FD.shape[0])

    def matmul(self, x_RD: Array) -> Array:
        """Return x W, float32: (R, D) -> (R, F)."""
        return cpu_kernels.packed_matmul(x_RD.astype(jnp.float32), self.values_PDW, self.features)

    def embed(self, ids: Array) -> Array:
        """Return the rows of a table (V, D) for ids of any shape: (..., D)."""
        return self.values_PDW[ids // cpu_kernels.panel_width(), :, ids % cpu_kernels.panel_width()]


WeightFormat = Int8 | PackedKernel


def to_cpu_format(weights: Any, is_table: bool = False) -> Any:
    """Return a kernel (D, F), or a table (V, D), as `PackedKernel` if the C kernels support it, else unchanged."""
    if isinstance(weights, WeightFormat) or weights.ndim != 2 or not cpu_kernels.supports(weights):
        return weights
    return PackedKernel.pack(weights if is_table else weights.T)


def param_or_quantized(module: nn.Module, name: str, init_fn: Any, shape: tuple[int, int]) -> Any:
    """Return the module's parameter of that name, or the inference format that replaces it."""
    value: Any = module.get_variable("params", name)
    return value if isinstance(value, WeightFormat) else module.param(name, init_fn, shape)


def quantize_rows(weights: Array) -> tuple[Array, Array]:
    """Return int8 values (..., F, D) and their float32 scales (..., F), the largest magnitude of a row / 127."""
    weights = weights.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weights).max(-1, keepdims=True), jnp.finfo(jnp.float32).tiny) / INT8_MAX
    return jnp.round(weights / scale).astype(jnp.int8), scale[..., 0]


def concat_kernels(kernels: tuple[Any, ...]) -> Any:
    """Concatenate kernels (D, F) of one format along F."""
    if isinstance(kernels[0], Int8):
        values, scales = ([getattr(kernel, name) for kernel in kernels] for name in ("values", "scale"))
        return Int8(jnp.concatenate(values), jnp.concatenate(scales), kernels[0].dynamic)
    if not isinstance(kernels[0], PackedKernel):
        return jnp.concatenate(kernels, axis=1)
    if any(kernel.features % cpu_kernels.panel_width() for kernel in kernels[:-1]):
        # A panel that is partly padding cannot stand in the middle: unpack, concatenate, pack again.
        unpacked = [cpu_kernels.unpack_panels(kernel.values_PDW, kernel.features) for kernel in kernels]
        return PackedKernel.pack(jnp.concatenate(unpacked))
    panels_PDW = jnp.concatenate([kernel.values_PDW for kernel in kernels])
    return PackedKernel(panels_PDW, sum(kernel.features for kernel in kernels))


def kernel_matmul(x_RD: Array, kernel: Any, dtype: Any) -> Array:
    """Return x W: (R, D) -> (R, F) in `dtype`, computed in `dtype` too unless the weights are narrower."""
    if isinstance(kernel, WeightFormat):
        return kernel.matmul(x_RD).astype(dtype)
    if kernel.dtype == jnp.bfloat16 and dtype != jnp.bfloat16:
        return jnp.dot(x_RD.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32).astype(dtype)
    return x_RD.astype(dtype) @ kernel.astype(dtype)


def matmul_by_rows(x_RD: Array, weights_FD: Array, dtype: Any = jnp.float32) -> Array:
    """Return x W^T, accumulated in `dtype`: (R, D) and (F, D) -> (R, F)."""
    return jnp.einsum("rd,fd->rf", x_RD, weights_FD, preferred_element_type=dtype)


def cast_for_inference(model: Any, params: Any, precision: str) -> tuple[Any, Any]:
    """Return the model and its parameters in one of `PRECISIONS`, which kernels and tables of ids get.

    On an accelerator all activations become bfloat16, unless they become int8. On a CPU only the inputs of products
    do, since XLA's other bfloat16 operations are slow there. Raises UserError for a model without a `dtype`.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return model, params
    if not hasattr(model, "dtype") and hasattr(model, "model"):  # a wrapper of another model
        inner_model, inner_params = cast_for_inference(model.model, params["model"], precision)
        return model.clone(model=inner_model), {**params, "model": inner_params}
    if not hasattr(model, "dtype"):
        raise UserError(f"{type(model).__name__} computes in float32 only: leave out --precision {precision}")
    if precision != "int8_dynamic" and jax.default_backend() != "cpu":
        model = model.clone(dtype="bfloat16")

    def cast_leaf(path: tuple, leaf: Array) -> Any:
        name = getattr(path[-1], "key", "")  # leaves of adapters have attributes instead of keys, and stay
        if name not in ("kernel", *TABLE_PARAMS):
            return leaf
        if precision == "bfloat16":
            return leaf.astype(jnp.bfloat16)
        if leaf.ndim < 2 or (name != "kernel" and leaf.ndim > 2):
            return leaf
        rows = jnp.swapaxes(leaf, -1, -2) if name == "kernel" else leaf
        return Int8(*quantize_rows(rows), dynamic=precision == "int8_dynamic")

    return model, jax.jit(lambda params: jax.tree_util.tree_map_with_path(cast_leaf, params))(params)

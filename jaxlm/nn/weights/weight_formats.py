"""Quantization and weight formats for inference, and the products with them.

| format         | a kernel (D, F) is kept as                            | used for                        |
|----------------|-------------------------------------------------------|---------------------------------|
| `Int8`         | int8 (F, D) with one float32 scale per output channel | `--precision int8`              |
| `PackedInt8`   | int8 panels (P, D / 4, W, 4), see `cpu_kernels`       | the same, decoding on a CPU     |
| `PackedKernel` | float32 panels (P, D, W), see `cpu_kernels`           | decoding on a CPU by the C code |
| `Bfloat16`     | bfloat16 (D, F), for layers of Flax alone             | `--precision bfloat16`          |

A table (V, D) of embeddings has output channels as its rows already. Any other kernel is a plain array. Only weights
that a layer of jaxlm reads with `param_or_quantized` and multiplies with the products below, or that a layer of Flax
owns, get a format: `weight_users` traces a call of the model. Parameters of other modules never change.

Quantization (Dettmers et al. 2022): W ~ values * scale; leading axes (layers) stay. Weight-only, the product is that
of bfloat16; with `dynamic`, activations are int8 too, with one scale per row, and the product is one of integers:
faster on hardware that has such units.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core.meta import AxisMetadata

from jaxlm.nn.weights import cpu_kernels
from jaxlm.types import Array

PRECISIONS = ("float32", "bfloat16", "int8", "int8_dynamic")

INT8_MAX = 127


class WeightFormat(AxisMetadata):
    """Base of the formats. A layer of Flax, or another that calls `self.param`, gets the array of `unbox`."""

    def matmul(self, x_RD: Array) -> Array:
        """Return the product with a kernel (D, F) or a table (F, D), float32: (R, D) -> (R, F)."""
        raise NotImplementedError

    def embed(self, ids: Array) -> Array:
        """Return the rows of a table (V, D) for ids of any shape: (..., D)."""
        raise NotImplementedError

    def replace_boxed(self, val: Any) -> Any:
        return val

    def add_axis(self, index: int, params: dict) -> "WeightFormat":
        return self

    remove_axis = add_axis


@struct.dataclass
class Bfloat16(WeightFormat):
    """A weight of any shape that is stored as bfloat16, and read as float32."""

    values: Array

    def unbox(self) -> Array:
        return self.values.astype(jnp.float32)


@struct.dataclass
class Int8(WeightFormat):
    """Quantized weights: int8 `values` (F, D) times float32 `scale` (F,). `dynamic`: activations are int8 too."""

    values: Array
    scale: Array
    dynamic: bool = struct.field(pytree_node=False, default=False)
    is_table: bool = struct.field(pytree_node=False, default=False)

    def unbox(self) -> Array:
        weights = self.values * self.scale[..., None]
        return weights if self.is_table else jnp.swapaxes(weights, -1, -2)

    def matmul(self, x_RD: Array) -> Array:
        if not self.dynamic:
            # bfloat16 represents every int8 exactly, so the only rounding is that of x.
            return matmul_by_rows(x_RD.astype(jnp.bfloat16), self.values.astype(jnp.bfloat16)) * self.scale[None]
        values_RD, scale_R = quantize_rows(x_RD)
        product_RF = matmul_by_rows(values_RD, self.values, jnp.int32)
        return product_RF.astype(jnp.float32) * scale_R[:, None] * self.scale[None]

    def embed(self, ids: Array) -> Array:
        return self.values[ids].astype(jnp.float32) * self.scale[ids][..., None]


@struct.dataclass
class PackedKernel(WeightFormat):
    """A float32 kernel (D, F), or table (F, D), in the panels of `jaxlm.nn.weights.cpu_kernels`."""

    values_PDW: Array
    features: int = struct.field(pytree_node=False)
    is_table: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def pack(cls, weights_FD: Array, is_table: bool = False) -> "PackedKernel":
        return cls(cpu_kernels.pack_panels(weights_FD), weights_FD.shape[0], is_table)

    def unbox(self) -> Array:
        weights_FD = cpu_kernels.unpack_panels(self.values_PDW, self.features)
        return weights_FD if self.is_table else weights_FD.T

    def matmul(self, x_RD: Array) -> Array:
        return cpu_kernels.packed_matmul(x_RD.astype(jnp.float32), self.values_PDW, self.features)

    def embed(self, ids: Array) -> Array:
        return self.values_PDW[ids // cpu_kernels.panel_width(), :, ids % cpu_kernels.panel_width()]


@struct.dataclass
class PackedInt8(WeightFormat):
    """`Int8` weights in the panels of `jaxlm.nn.weights.cpu_kernels`; if dynamic, with their sums (F,) int32."""

    values_PDWB: Array
    scale: Array
    sums: Array | None
    depth: int = struct.field(pytree_node=False)
    is_table: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def pack(cls, weights: Int8) -> "PackedInt8":
        sums = weights.values.astype(jnp.int32).sum(-1) if weights.dynamic else None
        panels, depth = cpu_kernels.pack_int8(weights.values), weights.values.shape[1]
        return cls(panels, weights.scale, sums, depth, weights.is_table)

    def unpack(self) -> Int8:
        values_FD = cpu_kernels.unpack_int8(self.values_PDWB, self.scale.shape[0], self.depth)
        return Int8(values_FD, self.scale, self.sums is not None, self.is_table)

    def unbox(self) -> Array:
        return self.unpack().unbox()

    def matmul(self, x_RD: Array) -> Array:
        return cpu_kernels.packed_int8_matmul(x_RD.astype(jnp.float32), self.values_PDWB, self.scale, self.sums)

    def embed(self, ids: Array) -> Array:
        width = cpu_kernels.panel_width()
        values = self.values_PDWB[ids // width, :, ids % width].reshape(*ids.shape, -1)[..., : self.depth]
        return values.astype(jnp.float32) * self.scale[ids][..., None]


def to_cpu_format(weights: Any, is_table: bool = False) -> Any:
    """Return a kernel (D, F), a table (V, D), or either as `Int8`, in panels if the C kernels support it; else
    unchanged."""
    if isinstance(weights, Int8) and weights.values.ndim == 2:
        return PackedInt8.pack(weights) if cpu_kernels.supports(weights.scale) else weights
    if isinstance(weights, WeightFormat) or weights.ndim != 2 or not cpu_kernels.supports(weights):
        return weights
    return PackedKernel.pack(weights if is_table else weights.T, is_table)


def param_or_quantized(module: nn.Module, name: str, init_fn: Any, shape: tuple[int, int]) -> Any:
    """Return the module's parameter of that name, or the inference format that replaces it."""
    value = stored_param(module, name, init_fn, shape)
    if not isinstance(value, WeightFormat):
        note_use(value, "read")
    return value


def stored_param(module: nn.Module, name: str, init_fn: Any, shape: tuple[int, ...]) -> Any:
    """Return `module.param(...)`, which otherwise traces `init_fn` to check a shape: a tenth of all tracing."""
    value: Any = module.get_variable("params", name)
    is_stored = isinstance(value, WeightFormat) or getattr(value, "shape", None) == shape
    return value if is_stored else module.param(name, init_fn, shape)


def quantize_rows(weights: Array) -> tuple[Array, Array]:
    """Return int8 values (..., F, D) and their float32 scales (..., F), the largest magnitude of a row / 127."""
    weights = weights.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weights).max(-1, keepdims=True), jnp.finfo(jnp.float32).tiny) / INT8_MAX
    return jnp.round(weights / scale).astype(jnp.int8), scale[..., 0]


def concat_kernels(kernels: tuple[Any, ...]) -> Any:
    """Concatenate kernels (D, F) of one format along F."""
    for kernel in kernels:
        note_use(kernel, "kernel")
    if isinstance(kernels[0], PackedInt8):
        if any(kernel.scale.shape[0] % cpu_kernels.panel_width() for kernel in kernels[:-1]):
            return PackedInt8.pack(concat_kernels(tuple(kernel.unpack() for kernel in kernels)))
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(jax.tree.leaves, kernels))
        return jax.tree.unflatten(jax.tree.structure(kernels[0]), joined)
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
    note_use(kernel, "kernel")
    if isinstance(kernel, WeightFormat):
        return kernel.matmul(x_RD).astype(dtype)
    if kernel.dtype == jnp.bfloat16 and dtype != jnp.bfloat16:
        return jnp.dot(x_RD.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32).astype(dtype)
    return x_RD.astype(dtype) @ kernel.astype(dtype)


def matmul_by_rows(x_RD: Array, weights_FD: Array, dtype: Any = jnp.float32) -> Array:
    """Return x W^T, accumulated in `dtype`: (R, D) and (F, D) -> (R, F)."""
    return jnp.einsum("rd,fd->rf", x_RD, weights_FD, preferred_element_type=dtype)


def can_be_narrow(uses: set[str]) -> bool:
    """Return whether a weight with these uses (`weight_users`) is in a layer that reads any of `PRECISIONS`."""
    return "flax" in uses or ("read" in uses and bool(uses & {"kernel", "table", "rows"}))


def in_precision(leaf: Any, precision: str, uses: set[str], is_table: bool) -> Any:
    """Return a leaf of the parameters in one of `PRECISIONS`, or unchanged if its layer could not read it."""
    if leaf.ndim < 2 or not can_be_narrow(uses):
        return leaf
    if precision == "bfloat16":
        return leaf.astype(jnp.bfloat16) if "read" in uses else Bfloat16(leaf.astype(jnp.bfloat16))
    rows = leaf if is_table else jnp.swapaxes(leaf, -1, -2)
    return Int8(*quantize_rows(rows), precision == "int8_dynamic", is_table)


FLAX_WEIGHTS = {"kernel", "embedding"}
"""The names of the large parameters of Flax's own layers."""

_uses: ContextVar[dict[int, tuple[Any, set[str]]] | None] = ContextVar("_uses", default=None)
"""In the call that is traced, each array (kept alive, so that its identity stays its own) and its uses."""


def note_use(weights: Any, use: str) -> None:
    """Note a use of weights of any format, if a call is traced: see `weight_users`."""
    if (uses := _uses.get()) is not None:
        for array in jax.tree.leaves(weights):
            uses.setdefault(id(array), (array, set()))[1].add(use)


def note_layer(params_L: Any, params: Any) -> None:
    """Note that `params` are those of one layer of `params_L`: what uses them uses the stack."""
    if (uses := _uses.get()) is not None and not isinstance(params_L, tuple):
        for stacked, of_layer in zip(jax.tree.leaves(params_L), jax.tree.leaves(params), strict=True):
            note_use(stacked, "stack")
            uses[id(of_layer)] = of_layer, uses[id(stacked)][1]


def weight_users(call: Callable[[Any], Any], params: Any) -> dict[tuple[str, ...], set[str]]:
    """Trace `call(params)` and return the uses of each leaf, by its `weight_path`.

    "read": by a layer of jaxlm, as a weight that may have a format. "kernel", "table": it is multiplied with; "rows":
    some of its rows are read. "stack": it holds the weights of all layers of a `Stack`. "flax": it is of a Flax layer.
    A name says nothing about the owner of a parameter, so layers note each array that they read or multiply with. One
    that another transformation has changed on its way to the layer is not recognized, and keeps its format.
    """
    entries = jax.tree_util.tree_leaves_with_path(params)
    users: dict[tuple[str, ...], set[str]] = {}

    def trace(leaves: list) -> None:
        uses: dict[int, tuple[Any, set[str]]] = {id(leaf): (leaf, set()) for leaf in leaves}
        token = _uses.set(uses)
        try:
            with nn.intercept_methods(_note_flax_layer):
                call(jax.tree.unflatten(jax.tree.structure(params), leaves))
        finally:
            _uses.reset(token)
        for (path, _), leaf in zip(entries, leaves, strict=True):
            users.setdefault(weight_path(path), set()).update(uses[id(leaf)][1])

    jax.eval_shape(trace, [leaf for _, leaf in entries])
    return users


def _note_flax_layer(method: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    if type(context.module).__module__.startswith("flax."):
        for name, value in context.module.variables.get("params", {}).items():
            if name in FLAX_WEIGHTS:
                note_use(value, "flax")
    return method(*args, **kwargs)


def weight_path(path: tuple) -> tuple[str, ...]:
    """Return the names of a path in a tree of parameters, without the indices of unstacked layers."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))

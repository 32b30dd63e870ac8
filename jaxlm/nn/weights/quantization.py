"""Quantization of trained parameters for inference: bfloat16, or int8 with one scale per output channel.

W ~ values * scale (Dettmers et al. 2022), see `weight_formats.Int8`; leading axes (layers) stay. Weight-only, the
product is computed in bfloat16; with `dynamic`, activations are int8 too, with one scale per row, and the product is
one of integers: faster on hardware that has such units.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.nn.weights.weight_formats import Int8, quantize_rows
from jaxlm.types import Array

PRECISIONS = ("float32", "bfloat16", "int8", "int8_dynamic")

TABLE_PARAMS = ("embedding", "source_embedding", "output")


def quantize(params: Any, dynamic: bool = False) -> Any:
    """Return the parameters with every kernel of a `Linear` and every table of ids as `Int8`."""

    def quantize_leaf(path: tuple, leaf: Array) -> Any:
        name = getattr(path[-1], "key", "")  # leaves of adapters have attributes instead of keys, and stay
        if name == "kernel" and leaf.ndim > 1:
            return Int8(*quantize_rows(jnp.swapaxes(leaf, -1, -2)), dynamic=dynamic)
        return Int8(*quantize_rows(leaf), dynamic=dynamic) if name in TABLE_PARAMS and leaf.ndim == 2 else leaf

    return jax.tree_util.tree_map_with_path(quantize_leaf, params)


def to_bfloat16(params: Any) -> Any:
    """Return the parameters with kernels and tables in bfloat16."""

    def cast_leaf(path: tuple, leaf: Array) -> Array:
        is_large = getattr(path[-1], "key", "") in ("kernel", *TABLE_PARAMS)
        return leaf.astype(jnp.bfloat16) if is_large else leaf

    return jax.tree_util.tree_map_with_path(cast_leaf, params)


def cast_for_inference(model: Any, params: Any, precision: str) -> tuple[Any, Any]:
    """Return the model and its parameters in one of `PRECISIONS`.

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
    if precision == "bfloat16":
        return model, jax.jit(to_bfloat16)(params)
    return model, jax.jit(functools.partial(quantize, dynamic=precision == "int8_dynamic"))(params)

"""What stands for weights while decoding: eight bits, W ~ values * scale with one scale an output channel (Dettmers et
al. 2022), or float32 in the order that a CPU reads the quickest.

A kernel (D, F) is kept as (F, D), and like a table (V, D) has a scale for each row; leading axes (layers) stay.
Weight-only, the product is one of bfloat16, which holds each of the integers; `dynamic`, the activations too become
eight bits with one scale a row, and the product is one of integers: the quicker on hardware that has such.
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
    """The parameters with every kernel of a `Linear` and every table of ids as `Int8`; the others as they are."""

    def each(path: tuple, leaf: Array) -> Any:
        name = getattr(path[-1], "key", "")  # what fine-tuning adds has none, and stays
        if name == "kernel" and leaf.ndim > 1:
            return Int8(*quantize_rows(jnp.swapaxes(leaf, -1, -2)), dynamic)
        return Int8(*quantize_rows(leaf), dynamic) if name in TABLE_PARAMS and leaf.ndim == 2 else leaf

    return jax.tree_util.tree_map_with_path(each, params)


def to_bfloat16(params: Any) -> Any:
    """The parameters with the same leaves in bfloat16."""

    def each(path: tuple, leaf: Array) -> Array:
        large = getattr(path[-1], "key", "") in ("kernel", *TABLE_PARAMS)
        return leaf.astype(jnp.bfloat16) if large else leaf

    return jax.tree_util.tree_map_with_path(each, params)


def cast_for_inference(model: Any, params: Any, precision: str) -> tuple[Any, Any]:
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
        inner, changed = cast_for_inference(model.model, params["model"], precision)
        return model.clone(model=inner), {**params, "model": changed}
    if not hasattr(model, "dtype"):
        raise UserError(f"{type(model).__name__} computes in float32 only: leave out --precision {precision}")
    if precision != "int8_dynamic" and jax.default_backend() != "cpu":
        model = model.clone(dtype="bfloat16")
    change = (
        to_bfloat16 if precision == "bfloat16" else functools.partial(quantize, dynamic=precision == "int8_dynamic")
    )
    return model, jax.jit(change)(params)

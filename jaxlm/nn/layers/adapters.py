"""Adapters: small trainable functions added to a frozen linear map y = x W + b for fine-tuning.

LoRA        y + (alpha / R) dropout(x) A B        A (D, R), B (R, F), B = 0 at first         (Hu et al. 2022)
bottleneck  y + f(y V + c) U + d                  V (F, M), U (M, F), U = 0 at first         (Houlsby et al. 2019)

Both are stored in the parameters of the map, next to "kernel", where `jaxlm.nn.layers.linear.Linear` finds them.
Adapters of the maps of a stack of layers are stacked alike.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.layers.dropout import drop_elements
from jaxlm.types import Array, Params

LOW_RANK, BOTTLENECK = "low_rank", "bottleneck"
"""Names of the adapters in the parameters of a map."""


@struct.dataclass
class LoRAParams:
    """A (D, R), B (R, F), `scale` = alpha / R, and the rate of the dropout of x."""

    down: Array
    up: Array
    scale: float = struct.field(pytree_node=False, default=1.0)
    dropout: float = struct.field(pytree_node=False, default=0.0)

    def __call__(self, x: Array, y: Array, key: Array | None) -> Array:
        """Return the adapted output: x (..., D), y (..., F) -> (..., F)."""
        x_RD = x.reshape(-1, x.shape[-1]).astype(y.dtype)
        if self.dropout and key is not None:
            x_RD = drop_elements(x_RD, key, self.dropout)
        return y + (self.scale * ((x_RD @ self.down.astype(y.dtype)) @ self.up.astype(y.dtype))).reshape(y.shape)


@struct.dataclass
class BottleneckParams:
    """V (F, M), c (M,), U (M, F), d (F,); f is the GELU."""

    down: Array
    down_bias: Array
    up: Array
    up_bias: Array

    def __call__(self, x: Array, y: Array, key: Array | None) -> Array:
        """Return the adapted output: y (..., F) -> (..., F); x and the key are ignored."""
        y_RF = y.reshape(-1, y.shape[-1])
        down, down_bias, up, up_bias = (leaf.astype(y.dtype) for leaf in jax.tree.leaves(self))
        hidden_RM = jax.nn.gelu(y_RF @ down + down_bias[None])
        return (y_RF + hidden_RM @ up + up_bias[None]).reshape(y.shape)


def init_lora(kernel: Array, key: Array, rank: int, alpha: float, dropout: float) -> LoRAParams:
    """Return LoRA for a kernel (..., D, F): A uniform in +- D^-1/2, B = 0, so that nothing changes at first."""
    *layers, width, features = kernel.shape
    limit = width**-0.5
    down = jax.random.uniform(key, (*layers, width, rank), minval=-limit, maxval=limit)
    return LoRAParams(down, jnp.zeros((*layers, rank, features)), scale=alpha / rank, dropout=dropout)


def init_bottleneck(kernel: Array, key: Array, width: int) -> BottleneckParams:
    """Return a bottleneck for a kernel (..., D, F): small V (Houlsby et al. 2019, section 3.6), all else 0."""
    *layers, _, features = kernel.shape
    down = 1e-2 * jax.random.normal(key, (*layers, features, width))
    zeros = {"down_bias": (width,), "up": (width, features), "up_bias": (features,)}
    return BottleneckParams(down, **{name: jnp.zeros((*layers, *shape)) for name, shape in zeros.items()})


def linear_paths(params: Params, path: str = "") -> Iterator[str]:
    """Yield the path of every linear map, as in "stack/layers/attention/query"."""
    if isinstance(params, dict):
        if "kernel" in params and params["kernel"].ndim > 1:
            yield path
        for name, subtree in params.items():
            yield from linear_paths(subtree, f"{path}/{name}".lstrip("/"))


def map_linears(params: Params, transform: Callable[[str, dict], dict], path: str = "") -> Params:
    """Return the parameters with those of every linear map replaced by `transform(path, its parameters)`."""
    if not isinstance(params, dict):
        return params
    changed: dict[str, Any] = {
        name: map_linears(subtree, transform, f"{path}/{name}".lstrip("/")) for name, subtree in params.items()
    }
    return transform(path, changed) if "kernel" in changed and changed["kernel"].ndim > 1 else changed


def merge_lora(params: Params) -> Params:
    """Return W + (alpha / R) A B in place of W, without LoRA: the same function. Bottlenecks cannot be merged."""

    def merge(path: str, linear: dict) -> dict:
        if LOW_RANK not in linear:
            return linear
        kernel, lora = linear["kernel"], linear[LOW_RANK]
        delta = lora.scale * jnp.matmul(lora.down, lora.up, precision="highest")
        others = {name: leaf for name, leaf in linear.items() if name != LOW_RANK}
        return others | {"kernel": kernel + delta.astype(kernel.dtype)}

    return map_linears(params, merge)


def drop_adapters(params: Params) -> Params:
    """Return the parameters without LoRA and bottlenecks: those of the model that they adapt."""
    return map_linears(params, lambda _, own: {k: v for k, v in own.items() if k not in (LOW_RANK, BOTTLENECK)})

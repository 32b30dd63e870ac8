"""What fine-tuning puts beside an affine map y = x W + b, whatever the model: its own few parameters, W left alone.

low rank    y + (alpha / R) dropout(x) A B        A (D, R), B (R, F), B = 0 at first         (Hu et al. 2022)
bottleneck  y + f(y V + c) U + d                  V (F, M), U (M, F), U = 0 at first         (Houlsby et al. 2019)

Both lie in the parameters of the map, beside "kernel", and `jaxlm.nn.layers.linear.Linear` finds them there.
The maps of a stack of layers have theirs stacked alike.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.layers.dropout import keep_mask
from jaxlm.types import Array, Params

LOW_RANK, BOTTLENECK = "low_rank", "bottleneck"
"""The names that they have beside "kernel"."""

BOTTLENECK_INIT_STD = 1e-2
"""The deviation that V starts from (Houlsby et al. 2019, section 3.6)."""


@struct.dataclass
class LoRAParams:
    """A (D, R) and B (R, F). `scale`: alpha / R; `dropout`: of x, where there is a key."""

    down: Array
    up: Array
    scale: float = struct.field(pytree_node=False, default=1.0)
    dropout: float = struct.field(pytree_node=False, default=0.0)

    def __call__(self, x: Array, y: Array, key: Array | None) -> Array:
        """x (..., D), y (..., F) -> (..., F)."""
        flat = x.reshape(-1, x.shape[-1]).astype(y.dtype)
        if self.dropout and key is not None:
            flat = jnp.where(keep_mask(key, self.dropout, flat.shape), flat / (1.0 - self.dropout), 0.0)
        return y + (self.scale * ((flat @ self.down.astype(y.dtype)) @ self.up.astype(y.dtype))).reshape(y.shape)

    @property
    def delta(self) -> Array:
        """What it adds to W: (..., D, F)."""
        return self.scale * jnp.matmul(self.down, self.up, precision="highest")


@struct.dataclass
class BottleneckParams:
    """V (F, M), c (M,), U (M, F), d (F,); f is the GELU."""

    down: Array
    down_bias: Array
    up: Array
    up_bias: Array

    def __call__(self, x: Array, y: Array, key: Array | None) -> Array:
        """y (..., F) -> (..., F); x and the key are not looked at."""
        flat = y.reshape(-1, y.shape[-1])
        down, down_bias, up, up_bias = (leaf.astype(y.dtype) for leaf in jax.tree.leaves(self))
        hidden = jax.nn.gelu(flat @ down + down_bias[None])
        return (flat + hidden @ up + up_bias[None]).reshape(y.shape)


def init_lora(kernel: Array, key: Array, rank: int, alpha: float, dropout: float) -> LoRAParams:
    """For a kernel (..., D, F): A uniform in +- D^-1/2, B = 0, so that nothing changes at first."""
    *layers, width, features = kernel.shape
    limit = width**-0.5
    down = jax.random.uniform(key, (*layers, width, rank), minval=-limit, maxval=limit)
    return LoRAParams(down, jnp.zeros((*layers, rank, features)), alpha / rank, dropout)


def init_bottleneck(kernel: Array, key: Array, width: int) -> BottleneckParams:
    """For a kernel (..., D, F): small V, all else 0, so that nothing changes at first."""
    *layers, _, features = kernel.shape
    down = BOTTLENECK_INIT_STD * jax.random.normal(key, (*layers, features, width))
    up = jnp.zeros((*layers, width, features))
    return BottleneckParams(down, jnp.zeros((*layers, width)), up, jnp.zeros((*layers, features)))


def linear_paths(params: Params, path: str = "") -> Iterator[str]:
    """The path of every affine map: "stack/layers/attention/query"."""
    if isinstance(params, dict):
        if "kernel" in params and params["kernel"].ndim > 1:
            yield path
        for name, inner in params.items():
            yield from linear_paths(inner, f"{path}/{name}".lstrip("/"))


def map_linears(params: Params, transform: Callable[[str, dict], dict], path: str = "") -> Params:
    """The parameters with those of each affine map replaced by `change(path, its own)`."""
    if not isinstance(params, dict):
        return params
    found: dict[str, Any] = {
        name: map_linears(inner, transform, f"{path}/{name}".lstrip("/")) for name, inner in params.items()
    }
    return transform(path, found) if "kernel" in found and found["kernel"].ndim > 1 else found


def merge_lora(params: Params) -> Params:
    """W <- W + (alpha / R) A B, and nothing beside it: the same function at no cost. Bottlenecks stay, as they must."""

    def change(path: str, own: dict) -> dict:
        if LOW_RANK not in own:
            return own
        rest = {name: leaf for name, leaf in own.items() if name != LOW_RANK}
        return rest | {"kernel": own["kernel"] + own[LOW_RANK].delta.astype(own["kernel"].dtype)}

    return map_linears(params, change)


def unmerge_lora(params: Params, adapted: Params) -> Params:
    """What `merge_lora` made, taken apart again with the low-rank maps of `adapted`: W <- W - (alpha / R) A B."""
    beside: dict[str, dict] = {}
    map_linears(adapted, lambda path, own: beside.setdefault(path, own))

    def change(path: str, own: dict) -> dict:
        known = beside[path].get(LOW_RANK)
        if known is None:
            return own
        return own | {"kernel": own["kernel"] - known.delta.astype(own["kernel"].dtype), LOW_RANK: known}

    return map_linears(params, change)

"""Layer norm (Ba, Kiros and Hinton 2016), RMS norm (Zhang and Sennrich 2019), and residual sub-layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.linear import merge_leading_axes
from jaxlm.types import Array


@dataclass(frozen=True)
class Norm:
    """The kind and the position of normalization.

    Attributes:
      position: "pre": before each sub-layer and once more after the stack; "post": after each residual sum.
      kind: "layer": (x - mean) / standard deviation * scale + bias; "rms": x / root mean square * scale.
      epsilon: added to the variance or mean square.
    """

    position: Literal["post", "pre"] = "post"
    kind: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-5

    def make_layer(self, dtype: str, name: str | None = None) -> Callable[[Array], Array]:
        """Return the Linen module, with outputs of `dtype` and float32 statistics."""
        kind = nn.LayerNorm if self.kind == "layer" else nn.RMSNorm
        return kind(epsilon=self.epsilon, dtype=jnp.dtype(dtype), name=name)


class Residual(nn.Module):
    """x + dropout(f(x)) with the norm before f ("pre") or after the sum ("post")."""

    norm: Norm
    dropout: float
    dtype: str

    def __call__(self, x: Array, sublayer: Callable[[Array], Array]) -> Array:
        """Any shape (..., D), which `sublayer` preserves."""
        return self.with_output(x, lambda y: (sublayer(y), None))[0]

    @nn.compact
    def with_output(self, x: Array, sublayer: Callable[[Array], tuple[Array, Any]]) -> tuple[Array, Any]:
        """Like `__call__` of a `sublayer` with a second output, which is returned too."""
        norm, dropout = self.norm.make_layer(self.dtype, name="norm"), Dropout(self.dropout)
        x_RD, is_pre = merge_leading_axes(x), self.norm.position == "pre"
        y, output = sublayer(norm(x_RD).reshape(x.shape) if is_pre else x)
        sum_RD = x_RD + dropout(merge_leading_axes(y))
        return (sum_RD if is_pre else norm(sum_RD)).reshape(x.shape), output

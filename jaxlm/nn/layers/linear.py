"""Affine map and feed-forward block, computed as rank 2 matrix products.

Flattening (..., D) to (-1, D) before every product is worth a quarter of a training step on a CPU: XLA otherwise
transposes and recomputes the rank 3 element-wise chain in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.distributed.sharding import num_shards
from jaxlm.nn.layers.adapters import BOTTLENECK, LOW_RANK
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.weights.weight_formats import concat_kernels, kernel_matmul, param_or_quantized
from jaxlm.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
}

GATED_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}
"""Gated forms (Shazeer 2020): f(x W_gate) * (x W_up). The GELU is the one by tanh."""


class Linear(nn.Module):
    """y = x W + b with W (D, features) and b (features,) kept in float32; zero b.

    W starts Xavier-uniform or, where a `init_std` is given, from a normal with that standard deviation.
    """

    features: int
    bias: bool = True
    dtype: str = "float32"
    init_std: float | None = None

    @nn.compact
    def kernel_and_bias(self, in_features: int) -> tuple[Any, Array | None]:
        """W (width, features), or what stands for it (`jaxlm.nn.weights.quantization`), and b (features,)."""
        normal = nn.initializers.normal(self.init_std or 0.0)
        start = nn.initializers.xavier_uniform() if self.init_std is None else normal
        kernel = param_or_quantized(self, "kernel", start, (in_features, self.features))
        if not self.bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))

    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., features)."""
        return self.apply_adapters(x, _affine(x, *self.kernel_and_bias(x.shape[-1]), jnp.dtype(self.dtype)))

    def apply_adapters(self, x: Array, y: Array) -> Array:
        """y = x W + b as what fine-tuning has put beside the map changes it (`jaxlm.nn.layers.adapters`)."""
        for name in (LOW_RANK, BOTTLENECK):
            if self.has_variable("params", name):
                key = self.make_rng("dropout") if self.has_rng("dropout") else None
                y = self.get_variable("params", name)(x, y, key)
        return y


def fused_projection(x: Array, *maps: Linear) -> list[Array]:
    """Several maps of one x, all with a bias or all without, as a single product: faster than one after the other.

    Their parameters stay apart; inside a decoding loop XLA joins them once, before it. Where their columns may be split
    over devices the products are apart too, since joining would move the weights from device to device; and where the
    positions may be, of which keys and values then are wanted everywhere and queries are not.
    """
    if num_shards(x, "heads") > 1 or num_shards(x, "sequence") > 1:
        return [one(x) for one in maps]
    kernels, biases = zip(*(one.kernel_and_bias(x.shape[-1]) for one in maps), strict=True)
    bias = None if biases[0] is None else jnp.concatenate(biases)
    y = _affine(x, concat_kernels(kernels), bias, jnp.dtype(maps[0].dtype))
    ends = [sum(one.features for one in maps[: count + 1]) for count in range(len(maps) - 1)]
    return [one.apply_adapters(x, part) for one, part in zip(maps, jnp.split(y, ends, axis=-1), strict=True)]


def _affine(x: Array, kernel: Any, bias: Array | None, dtype: Any) -> Array:
    y = kernel_matmul(merge_leading_axes(x), kernel, dtype)
    if bias is not None:
        y = y + bias.astype(dtype).reshape(*(1,) * (y.ndim - 1), -1)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def merge_leading_axes(x: Array) -> Array:
    """(..., D) -> (-1, D). As it is where positions may be split over devices: rows and positions, each of them split,
    cannot be one dimension without moving them."""
    return x if num_shards(x, "sequence") > 1 else x.reshape(-1, x.shape[-1])


class FeedForward(nn.Module):
    """FFN(x) = W2 dropout(f(W1 x + b1)) + b2 (Vaswani et al. 2017, equation 2; f is theirs with "relu").

    With an activation of `GATED_ACTIVATIONS`, f(W1 x + b1) is f(W_gate x + b_gate) * (W1 x + b1). `init_std`
    and `out_init_std` are those of W1 and W2 at the start, see `Linear`.
    """

    width: int
    hidden: int
    activation: str = "relu"
    dropout: float = 0.0
    dtype: str = "float32"
    bias: bool = True
    init_std: float | None = None
    out_init_std: float | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        x_RD, inner = merge_leading_axes(x), (self.hidden, self.bias, self.dtype, self.init_std)
        if self.activation in GATED_ACTIVATIONS:
            gate, up = fused_projection(x_RD, Linear(*inner, name="gate"), Linear(*inner, name="up"))
            hidden = GATED_ACTIVATIONS[self.activation](gate) * up
        else:
            hidden = ACTIVATIONS[self.activation](Linear(*inner, name="up")(x_RD))
        hidden = Dropout(self.dropout)(hidden)
        return Linear(self.width, self.bias, self.dtype, self.out_init_std, name="down")(hidden).reshape(x.shape)

"""Linear map and feed-forward layer, computed as rank 2 matrix products.

Flattening (..., D) to (-1, D) before every product saves a quarter of a training step on a CPU: XLA otherwise
transposes and recomputes the rank 3 element-wise operations in the backward pass.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.distributed.platforms import choices_for
from jaxlm.distributed.sharding import num_shards
from jaxlm.nn.layers.adapters import BOTTLENECK, LOW_RANK
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.weights.weight_formats import concat_kernels, kernel_matmul, param_or_quantized, stored_param
from jaxlm.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
}

GATED_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}
"""Gated activations (Shazeer 2020): f(x W_gate) * (x W_up). The GELU is the tanh approximation."""


class Linear(nn.Module):
    """y = x W + b with W (D, F) and b (F,), float32 parameters, F = `features`.

    W is initialized Xavier-uniform, or normal with standard deviation `init_std`; b is zero.
    """

    features: int
    bias: bool = True
    dtype: str = "float32"
    init_std: float | None = None

    @nn.compact
    def kernel_and_bias(self, in_features: int) -> tuple[Any, Array | None]:
        """Return W (D, F), or an inference format of it (`jaxlm.nn.weights`), and b (F,)."""
        normal = nn.initializers.normal(self.init_std or 0.0)
        init_kernel = nn.initializers.xavier_uniform() if self.init_std is None else normal
        kernel = param_or_quantized(self, "kernel", init_kernel, (in_features, self.features))
        init_bias, shape = nn.initializers.zeros_init(), (self.features,)
        return kernel, stored_param(self, "bias", init_bias, shape) if self.bias else None

    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., F)."""
        return self.apply_adapters(x, affine(x, *self.kernel_and_bias(x.shape[-1]), jnp.dtype(self.dtype)))

    def apply_adapters(self, x: Array, y: Array) -> Array:
        """Return the output y = x W + b as changed by the adapters of the map, if any (`jaxlm.nn.layers.adapters`)."""
        for name in (LOW_RANK, BOTTLENECK):
            if self.has_variable("params", name):
                key = self.make_rng("dropout") if self.has_rng("dropout") else None
                y = self.get_variable("params", name)(x, y, key)
        return y


def fused_projection(x: Array, *maps: Linear) -> list[Array]:
    """Return several maps of one x, all with a bias or all without, computed as a single, faster product.

    On a mesh that splits heads the products are separate, since concatenation would move weights between devices; and
    on one that splits positions, since keys and values are gathered, and queries are not.
    """
    if num_shards(x, "heads") > 1 or num_shards(x, "sequence") > 1:
        return [linear(x) for linear in maps]
    kernels, biases = zip(*(linear.kernel_and_bias(x.shape[-1]) for linear in maps), strict=True)
    bias = None if biases[0] is None else jnp.concatenate(biases)
    y = affine(x, concat_kernels(kernels), bias, jnp.dtype(maps[0].dtype))
    ends = [sum(linear.features for linear in maps[: count + 1]) for count in range(len(maps) - 1)]
    return [linear.apply_adapters(x, part) for linear, part in zip(maps, jnp.split(y, ends, axis=-1), strict=True)]


def affine(x: Array, kernel: Any, bias: Array | None, dtype: Any) -> Array:
    """Return x W + b, computed as a product of rank 2: (..., D) -> (..., F) in `dtype`."""
    y = kernel_matmul(merge_leading_axes(x), kernel, dtype)
    if bias is not None:
        y = y + bias.astype(dtype).reshape(*(1,) * (y.ndim - 1), -1)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def merge_leading_axes(x: Array) -> Array:
    """(..., D) -> (-1, D). Unchanged if positions are split over devices: merging split axes would move rows."""
    return x if num_shards(x, "sequence") > 1 else x.reshape(-1, x.shape[-1])


class FeedForward(nn.Module):
    """FFN(x) = W2 dropout(f(W1 x + b1)) + b2 (Vaswani et al. 2017, equation 2), W1 of `init_std`, W2 of `out_init_std`.

    With an activation of `GATED_ACTIVATIONS`, f(W1 x + b1) is f(W_gate x + b_gate) * (W1 x + b1).
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
        x_RD = merge_leading_axes(x)
        linear = functools.partial(Linear, bias=self.bias, dtype=self.dtype)
        hidden = functools.partial(linear, self.hidden, init_std=self.init_std)
        if self.activation in GATED_ACTIVATIONS:
            gate, up = hidden(name="gate"), hidden(name="up")
            fuse = choices_for(x_RD).fused_gates
            gate_RF, up_RF = fused_projection(x_RD, gate, up) if fuse else (gate(x_RD), up(x_RD))
            hidden_RF = GATED_ACTIVATIONS[self.activation](gate_RF) * up_RF
        else:
            activate = ACTIVATIONS[self.activation]
            activate = jax.checkpoint(activate) if choices_for(x_RD).activation_remat else activate
            hidden_RF = activate(hidden(name="up")(x_RD))
        hidden_RF = Dropout(self.dropout)(hidden_RF)
        return linear(self.width, init_std=self.out_init_std, name="down")(hidden_RF).reshape(x.shape)

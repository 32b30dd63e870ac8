"""Affine map and feed-forward block, computed as rank 2 matrix products.

Flattening (..., D) to (-1, D) before every product is worth a quarter of a training step on a CPU: XLA otherwise
transposes and recomputes the rank 3 element-wise chain in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn.adapters import BOTTLENECK, LOW_RANK
from jaxlm.nn.dropout import Dropout
from jaxlm.nn.quantized import joined, product, weights
from jaxlm.parallel import shards_of
from jaxlm.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
}
GATED: dict[str, Callable[[Array], Array]] = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}
"""Gated forms (Shazeer 2020): f(x W_gate) * (x W_up). The GELU is the one by tanh."""


class Linear(nn.Module):
    """y = x W + b with W (D, features) and b (features,) kept in float32; zero b.

    W starts Xavier-uniform or, where a `deviation` is given, from a normal with that standard deviation.
    """

    features: int
    bias: bool = True
    dtype: str = "float32"
    deviation: float | None = None

    @nn.compact
    def weights(self, width: int) -> tuple[Any, Array | None]:
        """W (width, features), or what stands for it (`jaxlm.nn.quantized`), and b (features,)."""
        normal = nn.initializers.normal(self.deviation or 0.0)
        start = nn.initializers.xavier_uniform() if self.deviation is None else normal
        kernel = weights(self, "kernel", start, (width, self.features))
        if not self.bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))

    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., features)."""
        return self.tuned(x, _affine(x, *self.weights(x.shape[-1]), jnp.dtype(self.dtype)))

    def tuned(self, x: Array, y: Array) -> Array:
        """y = x W + b as what fine-tuning has put beside the map changes it (`jaxlm.nn.adapters`)."""
        for name in (LOW_RANK, BOTTLENECK):
            if self.has_variable("params", name):
                key = self.make_rng("dropout") if self.has_rng("dropout") else None
                y = self.get_variable("params", name)(x, y, key)
        return y


def joint(x: Array, *maps: Linear) -> list[Array]:
    """Several maps of one x, all with a bias or all without, as a single product: faster than one after the other.

    Their parameters stay apart; inside a decoding loop XLA joins them once, before it. Where their columns may be split
    over devices the products are apart too, since joining would move the weights from device to device; and where the
    positions may be, of which keys and values then are wanted everywhere and queries are not.
    """
    if shards_of(x, "heads") > 1 or shards_of(x, "sequence") > 1:
        return [one(x) for one in maps]
    kernels, biases = zip(*(one.weights(x.shape[-1]) for one in maps), strict=True)
    bias = None if biases[0] is None else jnp.concatenate(biases)
    y = _affine(x, joined(kernels), bias, jnp.dtype(maps[0].dtype))
    ends = [sum(one.features for one in maps[: count + 1]) for count in range(len(maps) - 1)]
    return [one.tuned(x, part) for one, part in zip(maps, jnp.split(y, ends, axis=-1), strict=True)]


def _affine(x: Array, kernel: Any, bias: Array | None, dtype: Any) -> Array:
    y = product(flat(x), kernel, dtype)
    if bias is not None:
        y = y + bias.astype(dtype).reshape(*(1,) * (y.ndim - 1), -1)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def flat(x: Array) -> Array:
    """(..., D) -> (-1, D). As it is where positions may be split over devices: rows and positions, each of them split,
    cannot be one dimension without moving them."""
    return x if shards_of(x, "sequence") > 1 else x.reshape(-1, x.shape[-1])


class FeedForward(nn.Module):
    """FFN(x) = W2 dropout(f(W1 x + b1)) + b2 (Vaswani et al. 2017, equation 2; f is theirs with "relu").

    With an activation of `GATED`, f(W1 x + b1) is f(W_gate x + b_gate) * (W1 x + b1). `deviation` and `out_deviation`
    are those of W1 and W2 at the start, see `Linear`.
    """

    width: int
    hidden: int
    activation: str = "relu"
    dropout: float = 0.0
    dtype: str = "float32"
    bias: bool = True
    deviation: float | None = None
    out_deviation: float | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        x_RD, inner = flat(x), (self.hidden, self.bias, self.dtype, self.deviation)
        if self.activation in GATED:
            gate, up = joint(x_RD, Linear(*inner, name="gate"), Linear(*inner, name="up"))
            hidden = GATED[self.activation](gate) * up
        else:
            hidden = ACTIVATIONS[self.activation](Linear(*inner, name="up")(x_RD))
        hidden = Dropout(self.dropout)(hidden)
        return Linear(self.width, self.bias, self.dtype, self.out_deviation, name="down")(hidden).reshape(x.shape)

"""Affine map and feed-forward block, always computed as rank 2 matrix products.

Flattening (..., D) to (-1, D) before every product is worth a quarter of a training step on a CPU: XLA otherwise
transposes and recomputes the rank 3 element-wise chain in the backward pass.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn.dropout import Dropout
from jaxlm.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
}


class Linear(nn.Module):
    """y = x W + b with W (D, features) and b (features,) kept in float32; Xavier-uniform W, zero b."""

    features: int
    bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def weights(self, width: int) -> tuple[Array, Array | None]:
        """W (width, features) and b (features,), in the dtype of the product."""
        dtype = jnp.dtype(self.dtype)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (width, self.features)).astype(dtype)
        if not self.bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(dtype)

    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., features)."""
        return _affine(x, *self.weights(x.shape[-1]))


def joint(x: Array, *maps: Linear) -> list[Array]:
    """Several maps of one x, all with a bias, as a single product: faster than one after the other.

    Their parameters stay apart; inside a decoding loop XLA joins them once, before it.
    """
    kernels, biases = zip(*(one.weights(x.shape[-1]) for one in maps), strict=True)
    y = _affine(x, jnp.concatenate(kernels, axis=1), jnp.concatenate(biases))
    ends = [sum(one.features for one in maps[: count + 1]) for count in range(len(maps) - 1)]
    return jnp.split(y, ends, axis=-1)


def _affine(x: Array, kernel: Array, bias: Array | None) -> Array:
    y = x.reshape(-1, x.shape[-1]).astype(kernel.dtype) @ kernel
    if bias is not None:
        y = y + bias[None]
    return y.reshape(*x.shape[:-1], kernel.shape[1])


class FeedForward(nn.Module):
    """FFN(x) = W2 dropout(f(W1 x + b1)) + b2 (Vaswani et al. 2017, equation 2; f is theirs with "relu")."""

    width: int
    hidden: int
    activation: str = "relu"
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        hidden = Linear(self.hidden, dtype=self.dtype, name="up")(x.reshape(-1, x.shape[-1]))
        hidden = Dropout(self.dropout)(ACTIVATIONS[self.activation](hidden))
        return Linear(self.width, dtype=self.dtype, name="down")(hidden).reshape(x.shape)

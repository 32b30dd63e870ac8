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
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., features)."""
        dtype = jnp.dtype(self.dtype)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (x.shape[-1], self.features))
        y = x.reshape(-1, x.shape[-1]).astype(dtype) @ kernel.astype(dtype)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(dtype)[None]
        return y.reshape(*x.shape[:-1], self.features)


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

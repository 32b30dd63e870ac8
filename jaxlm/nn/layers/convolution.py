"""Gated convolutions over the tokens of a row (Dauphin et al. 2017; Gehring et al. 2017, section 3).

    [a_t; b_t] = W [x_{t-k+1}; ...; x_t] + c          causal; a centered one reads x_{t-k/2} .. x_{t+k/2}
    h_t = a_t * sigmoid(b_t)                          the gated linear unit
    x_t <- (h_t + x_t) / sqrt(2)                      a projection of x_t if the widths differ

The state of a causal layer is its last k - 1 inputs. A convolution runs over neighbors, so the tokens of a row must
stand before its padding (`jaxlm.nn.attention.mask.tokens_before_padding`).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.linear import Linear, affine
from jaxlm.nn.weights.weight_formats import WeightFormat
from jaxlm.types import Array, ArrayOrNone

RESIDUAL_SCALE = 0.5**0.5
"""The factor of a sum of two terms that keeps their variance."""


class NormalizedLinear(Linear):
    """y = g (x V) / |V| + b with weight normalization (Salimans and Kingma 2016): |V| by column, g = |V| at first."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., F)."""
        kernel, bias = self.kernel_and_bias(x.shape[-1])
        weights_DF = kernel.unbox() if isinstance(kernel, WeightFormat) else kernel.astype(jnp.float32)
        norm_F = jnp.sqrt(jnp.square(weights_DF).sum(0))
        gain_F = self.param("gain", lambda _: norm_F)
        y = affine(x, kernel, None, jnp.dtype(self.dtype))

        def broadcast(vector_F: Array) -> Array:
            return vector_F.astype(y.dtype).reshape(*(1,) * (y.ndim - 1), -1)

        y = y * broadcast(gain_F / norm_F)
        return self.apply_adapters(x, y if bias is None else y + broadcast(bias))


def token_windows(x_BTD: Array, previous_BKD: Array, segment_BT: ArrayOrNone = None) -> Array:
    """Return the inputs of a causal convolution with kernel K + 1: (B, T, (K + 1) D), the oldest token first.

    previous_BKD: what stands before the first token. Tokens of other segments than that of t are zeros.
    """
    count, length = previous_BKD.shape[1], x_BTD.shape[1]
    history_BCD = jnp.concatenate([previous_BKD.astype(x_BTD.dtype), x_BTD], axis=1)
    taps = [history_BCD[:, start : start + length] for start in range(count + 1)]
    if segment_BT is not None:
        segment_BC = jnp.pad(segment_BT, ((0, 0), (count, 0)))
        same = [segment_BC[:, start : start + length] == segment_BT for start in range(count + 1)]
        taps = [jnp.where(is_same_BT[..., None], tap, 0) for is_same_BT, tap in zip(same, taps, strict=True)]
    return jnp.concatenate(taps, axis=-1)


def last_tokens(x_BTD: Array, previous_BKD: Array, count_B: Array) -> Array:
    """Return the last K tokens, (B, K, D), after the first `count_B` of `x_BTD`."""
    history_BCD = jnp.concatenate([previous_BKD, x_BTD.astype(previous_BKD.dtype)], axis=1)
    index_BK = count_B[:, None] + jnp.arange(previous_BKD.shape[1])[None]
    return jnp.take_along_axis(history_BCD, index_BK[..., None], axis=1)


class GatedConvolutions(nn.Module):
    """A stack of gated convolutions with residual connections.

    Attributes:
      layers: the width and the kernel size k of each layer, in tokens.
      width: width of the input, from which and to which the stack projects.
      causal: whether layers read no token after t; otherwise k must be odd.
      dropout: dropout rate of the input of each convolution.
    """

    layers: tuple[tuple[int, int], ...]
    width: int
    causal: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    def empty_state(self, rows: int) -> tuple[Array, ...]:
        """Return the state before the first token: zeros (rows, k - 1, width of the layer's input) of each layer."""
        inputs = [self.layers[0][0], *(width for width, _ in self.layers)]
        return tuple(
            jnp.zeros((rows, kernel - 1, size), jnp.dtype(self.dtype))
            for size, (_, kernel) in zip(inputs, self.layers, strict=False)
        )

    @nn.compact
    def __call__(
        self, x_BTD: Array, state: tuple[Array, ...], valid_BT: Array, segment_BT: ArrayOrNone = None,
        attend: Callable[[int, Array], Array] = lambda _, h_BTF: h_BTF,
    ) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
        """Read T tokens, which stand before all padding: return (B, T, D) and the new state.

        attend: applied to h of each layer, given its number, before the residual connection (cross-attention).
        """
        h_BTF = self._linear(self.layers[0][0], "in_projection")(x_BTD)
        count_B, new_state = valid_BT.sum(1, dtype=jnp.int32), []
        for index, ((width, kernel), previous_BKD) in enumerate(zip(self.layers, state, strict=True)):
            residual_BTF = h_BTF if h_BTF.shape[-1] == width else self._linear(width, f"residual_{index}")(h_BTF)
            h_BTF = Dropout(self.dropout)(jnp.where(valid_BT[..., None], h_BTF, 0))
            new_state.append(last_tokens(h_BTF, previous_BKD, count_B))
            after = 0 if self.causal else kernel // 2
            h_BTF = jnp.pad(h_BTF, ((0, 0), (0, after), (0, 0)))
            window = token_windows(h_BTF, previous_BKD, segment_BT)[:, after:]
            a_BTF, b_BTF = jnp.split(self._linear(2 * width, f"convolution_{index}", gain=4.0)(window), 2, axis=-1)
            h_BTF = (attend(index, a_BTF * jax.nn.sigmoid(b_BTF)) + residual_BTF) * RESIDUAL_SCALE
        return self._linear(self.width, "out_projection")(h_BTF), tuple(new_state)

    def _linear(self, features: int, name: str, gain: float = 1.0) -> Callable[[Array], Array]:
        """A map whose initial weights keep the variance of inputs after dropout (Gehring et al. 2017, section 3.5)."""

        def apply(x: Array) -> Array:
            init_std = (gain * (1 - self.dropout) / x.shape[-1]) ** 0.5
            return NormalizedLinear(features, dtype=self.dtype, init_std=init_std, name=name)(x)

        return apply

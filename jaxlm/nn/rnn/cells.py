"""Recurrent cells: the next carry from the products W x_t + b and U h_{t-1}.

A cell is a frozen dataclass without parameters: `jaxlm.nn.rnn.layers` creates them from the shapes that the cell gives.
G is the axis of all gates concatenated, gates * D. Gates are in PyTorch's order, so that weights are converted by
transposing matrices. PyTorch has two bias vectors where only their sum matters; here it is one, and a second one for
the GRU gate where it does matter.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.types import Array

EPSILON = 1e-5
"""Added to the variance, as in PyTorch's LayerNorm."""


@struct.dataclass
class Carry:
    """The state of one layer between positions; `memory_BD`, the LSTM's c, is None in the other cells."""

    hidden_BD: Array
    memory_BD: Array | None = None


CellVectors = dict[str, Array]
"""Vectors inside the recurrence: biases (D,) and the gains of layer normalization."""


@dataclass(frozen=True)
class Cell:
    """Base of all cells of width D.

    Attributes:
      norm_groups: numbers of adjacent gates, G / D in all; layer normalization treats each group as one vector.
      additive: whether the products with x and h enter as their sum only, so that both have the same gradient.
    """

    width: int

    norm_groups: ClassVar[tuple[int, ...]] = (1,)
    additive: ClassVar[bool] = True

    def vector_shapes(self, layer_norm: bool) -> dict[str, tuple[int, float]]:
        """Return name -> (size, initial value) of the vectors inside the recurrence."""
        return {"recurrent_scale": (sum(self.norm_groups) * self.width, 1.0)} if layer_norm else {}

    def initial_bias(self) -> Array:
        """Return the initial bias b, (G,)."""
        return jnp.zeros(sum(self.norm_groups) * self.width)

    def initial_carry(self, rows: int) -> Carry:
        """Return the carry before the first position: zeros."""
        return Carry(jnp.zeros((rows, self.width)))

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        """Return the next carry from W x_t + b, U h_{t-1} (normalized before) and the carry; element-wise in B."""
        raise NotImplementedError


@dataclass(frozen=True)
class Elman(Cell):
    """h_t = f(W x_t + U h_{t-1} + b), f = tanh (Elman 1990) or relu (Le, Jaitly and Hinton 2015)."""

    activation: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self) -> None:
        if self.activation not in ("tanh", "relu"):
            raise UserError(f'an Elman cell with activation "{self.activation}": expected "tanh" or "relu"')

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        return Carry((jnp.tanh if self.activation == "tanh" else jax.nn.relu)(x_BG + h_BG))


@dataclass(frozen=True)
class LSTM(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with forget gates: Gers et al. 2000).

        i, f, g, o = split(W x_t + U h_{t-1} + b)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    `forget_bias` is the initial value of b at f: with 1 the cell remembers from the start (Jozefowicz et al. 2015).
    With layer normalization the last line is h_t = sigmoid(o) * tanh(LN(c_t)) (Ba et al. 2016, equation 22).
    """

    forget_bias: float = 1.0

    norm_groups: ClassVar[tuple[int, ...]] = (4,)

    def vector_shapes(self, layer_norm: bool) -> dict[str, tuple[int, float]]:
        memory = {"memory_scale": (self.width, 1.0), "memory_bias": (self.width, 0.0)}
        return {**super().vector_shapes(layer_norm), **(memory if layer_norm else {})}

    def initial_bias(self) -> Array:
        return jnp.zeros((4, self.width)).at[1].set(self.forget_bias).reshape(-1)

    def initial_carry(self, rows: int) -> Carry:
        return Carry(jnp.zeros((rows, self.width)), jnp.zeros((rows, self.width)))

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        i_BD, f_BD, g_BD, o_BD = jnp.split(x_BG + h_BG, 4, -1)
        memory_BD = jax.nn.sigmoid(f_BD) * carry.memory_BD + jax.nn.sigmoid(i_BD) * jnp.tanh(g_BD)
        normed_BD = memory_BD
        if "memory_scale" in vectors:
            normed_BD = normalize_gates(memory_BD, vectors["memory_scale"], (1,)) + vectors["memory_bias"][None]
        return Carry(jax.nn.sigmoid(o_BD) * jnp.tanh(normed_BD), memory_BD)


@dataclass(frozen=True)
class GRU(Cell):
    """Gated recurrent unit (Cho et al. 2014) with the reset after the product, as in PyTorch and cuDNN.

    r, z = sigmoid of the first two of (W x_t + b) + U h_{t-1}
    n    = tanh of the third, W_n x_t + b_n + r * (U_n h_{t-1} + recurrent_bias)
    h_t  = (1 - z) * n + z * h_{t-1}
    """

    norm_groups: ClassVar[tuple[int, ...]] = (2, 1)
    additive: ClassVar[bool] = False

    def vector_shapes(self, layer_norm: bool) -> dict[str, tuple[int, float]]:
        return {"recurrent_bias": (self.width, 0.0), **super().vector_shapes(layer_norm)}

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        (r_BD, z_BD, n_BD), (hr_BD, hz_BD, hn_BD) = jnp.split(x_BG, 3, -1), jnp.split(h_BG, 3, -1)
        reset_BD, keep_BD = jax.nn.sigmoid(r_BD + hr_BD), jax.nn.sigmoid(z_BD + hz_BD)
        new_BD = jnp.tanh(n_BD + reset_BD * (hn_BD + vectors["recurrent_bias"][None]))
        return Carry(new_BD + keep_BD * (carry.hidden_BD - new_BD))


def normalize_gates(x: Array, scale_G: Array | None, groups: tuple[int, ...]) -> Array:
    """Return scale * (x - mean) / sqrt(variance + epsilon) by group of gates, the last axis; x if scale is None."""
    if scale_G is None:
        return x
    width, parts, start = x.shape[-1] // sum(groups), [], 0
    for gates in groups:
        part = x[..., start : start + gates * width]
        part = part - part.mean(-1, keepdims=True)
        parts.append(part * jax.lax.rsqrt((part * part).mean(-1, keepdims=True) + EPSILON))
        start += gates * width
    return jnp.concatenate(parts, -1) * scale_G.reshape((1,) * (x.ndim - 1) + (-1,))

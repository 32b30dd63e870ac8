"""The recurrent cells: what becomes of a carry when the products with x and h are known.

A cell is a frozen dataclass. It holds no parameters: `jaxlm.nn.rnn.layers` makes them, and a cell says how many gates
of its width there are and what to do with them. G is the axis of all gates side by side, G = gates x D. Gates come in
PyTorch's order, so that weights are exchanged by transposing a matrix. PyTorch has two bias vectors where only their
sum matters; here it is one, and a second one for the one gate of the GRU where it does matter.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.types import Array

EPSILON = 1e-5
"""Added to the variance, as in PyTorch's LayerNorm."""


@struct.dataclass
class Carry:
    """What one layer hands from position to position; `memory_BD`, the LSTM's c, is None in the other cells."""

    hidden_BD: Array
    memory_BD: Array | None = None


CellVectors = dict[str, Array]
"""Vectors that act inside the recurrence: biases (D,) and the gains of layer normalisation."""


class Cell(Protocol):
    """What `jaxlm.nn.rnn.layers.Recurrent` asks of a cell."""

    width: int
    norm_groups: ClassVar[tuple[int, ...]]
    """Gates side by side; layer normalisation takes the gates of one group together."""
    additive: ClassVar[bool]
    """True where the products with x and with h enter as their sum alone: both then have the same gradient."""

    def vector_shapes(self, layer_norm: bool) -> dict[str, tuple[int, float]]:
        """Name -> (size, first value) of the vectors inside the recurrence."""
        ...

    def initial_bias(self) -> Array:
        """The first value of the bias (G,)."""
        ...

    def initial_carry(self, rows: int) -> Carry:
        """The carry before the first position."""
        ...

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        """The next carry from W x_t + b, U h_{t-1} and the carry; everything in it is element-wise in B."""
        ...


@dataclass(frozen=True)
class Elman:
    """h_t = f(W x_t + U h_{t-1} + b), f = tanh (Elman 1990) or relu (Le, Jaitly and Hinton 2015)."""

    width: int
    activation: Literal["tanh", "relu"] = "tanh"

    norm_groups: ClassVar[tuple[int, ...]] = (1,)
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.activation not in ("tanh", "relu"):
            raise UserError(f'an Elman cell with activation "{self.activation}": expected "tanh" or "relu"')

    def vector_shapes(self, layer_norm: bool) -> dict[str, tuple[int, float]]:
        """None but the gain of U h."""
        return {"recurrent_scale": (self.width, 1.0)} if layer_norm else {}

    def initial_bias(self) -> Array:
        """Zero."""
        return jnp.zeros(self.width)

    def initial_carry(self, rows: int) -> Carry:
        """h_0 = 0."""
        return Carry(jnp.zeros((rows, self.width)))

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        """See the class."""
        h_BG = normalize_gates(h_BG, vectors.get("recurrent_scale"), self.norm_groups)
        return Carry((jnp.tanh if self.activation == "tanh" else jax.nn.relu)(x_BG + h_BG))


@dataclass(frozen=True)
class LSTM:
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with forget gates: Gers et al. 2000).

        i, f, g, o = split(W x_t + U h_{t-1} + b)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    `forget_bias` is b's first value at f: with 1 the cell remembers from the start (Jozefowicz et al. 2015).
    With layer normalisation the last line is h_t = sigmoid(o) * tanh(LN(c_t)) (Ba et al. 2016, equation 22).
    """

    width: int
    forget_bias: float = 1.0

    norm_groups: ClassVar[tuple[int, ...]] = (4,)
    additive: ClassVar[bool] = True

    def vector_shapes(self, layer_norm: bool) -> dict[str, tuple[int, float]]:
        """None but gains and the bias of the normalised memory."""
        if not layer_norm:
            return {}
        memory = {"memory_scale": (self.width, 1.0), "memory_bias": (self.width, 0.0)}
        return {"recurrent_scale": (4 * self.width, 1.0), **memory}

    def initial_bias(self) -> Array:
        """Zero, but at the forget gate."""
        return jnp.zeros((4, self.width)).at[1].set(self.forget_bias).reshape(-1)

    def initial_carry(self, rows: int) -> Carry:
        """h_0 = c_0 = 0."""
        return Carry(jnp.zeros((rows, self.width)), jnp.zeros((rows, self.width)))

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        """See the class."""
        h_BG = normalize_gates(h_BG, vectors.get("recurrent_scale"), self.norm_groups)
        i_BD, f_BD, g_BD, o_BD = jnp.split(x_BG + h_BG, 4, -1)
        memory_BD = jax.nn.sigmoid(f_BD) * carry.memory_BD + jax.nn.sigmoid(i_BD) * jnp.tanh(g_BD)
        shown_BD = memory_BD
        if "memory_scale" in vectors:
            shown_BD = normalize_gates(memory_BD, vectors["memory_scale"], (1,)) + vectors["memory_bias"][None]
        return Carry(jax.nn.sigmoid(o_BD) * jnp.tanh(shown_BD), memory_BD)


@dataclass(frozen=True)
class GRU:
    """Gated recurrent unit (Cho et al. 2014), reset after the product, as PyTorch and cuDNN have it.

    r, z = sigmoid of the first two of (W x_t + b) + U h_{t-1}
    n    = tanh of the third, W_n x_t + b_n + r * (U_n h_{t-1} + recurrent_bias)
    h_t  = (1 - z) * n + z * h_{t-1}
    """

    width: int

    norm_groups: ClassVar[tuple[int, ...]] = (2, 1)
    additive: ClassVar[bool] = False

    def vector_shapes(self, layer_norm: bool) -> dict[str, tuple[int, float]]:
        """The bias that r multiplies, and the gain of U h."""
        scale = {"recurrent_scale": (3 * self.width, 1.0)} if layer_norm else {}
        return {"recurrent_bias": (self.width, 0.0), **scale}

    def initial_bias(self) -> Array:
        """Zero."""
        return jnp.zeros(3 * self.width)

    def initial_carry(self, rows: int) -> Carry:
        """h_0 = 0."""
        return Carry(jnp.zeros((rows, self.width)))

    def step(self, x_BG: Array, h_BG: Array, carry: Carry, vectors: CellVectors) -> Carry:
        """See the class."""
        h_BG = normalize_gates(h_BG, vectors.get("recurrent_scale"), self.norm_groups)
        (r_BD, z_BD, n_BD), (hr_BD, hz_BD, hn_BD) = jnp.split(x_BG, 3, -1), jnp.split(h_BG, 3, -1)
        reset_BD, keep_BD = jax.nn.sigmoid(r_BD + hr_BD), jax.nn.sigmoid(z_BD + hz_BD)
        new_BD = jnp.tanh(n_BD + reset_BD * (hn_BD + vectors["recurrent_bias"][None]))
        return Carry(new_BD + keep_BD * (carry.hidden_BD - new_BD))


def normalize_gates(x: Array, scale_G: Array | None, groups: tuple[int, ...]) -> Array:
    """scale * (x - mean) / sqrt(variance + epsilon) over the gates of each group (Ba et al. 2016); x if scale is None.

    The last axis of x is that of the gates; a group counts how many of them are taken together.
    """
    if scale_G is None:
        return x
    width, parts, at = x.shape[-1] // sum(groups), [], 0
    for gates in groups:
        part = x[..., at : at + gates * width]
        part = part - part.mean(-1, keepdims=True)
        parts.append(part * jax.lax.rsqrt((part * part).mean(-1, keepdims=True) + EPSILON))
        at += gates * width
    return jnp.concatenate(parts, -1) * scale_G.reshape((1,) * (x.ndim - 1) + (-1,))

"""Recurrent networks of any cell: layers, directions, and what keeps them regular.

Everything that does not wait for the position before is done for all positions at once: a layer is one product
x W + b, the loop of `jaxlm.nn.rnn.scan` around h U, and in the backward pass one product each for dW, dU and dx.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.sharding import constrain
from jaxlm.errors import UserError
from jaxlm.nn.layers.dropout import DropConnect, Dropout, LockedDropout
from jaxlm.nn.rnn import cudnn_lstm
from jaxlm.nn.rnn.cells import GRU, LSTM, Carry, CellVectors, Elman, normalize_gates
from jaxlm.nn.rnn.scan import StepMask, unroll
from jaxlm.types import Array

RNNState = tuple[Carry, ...]
"""A carry for each layer from the bottom; of a bidirectional layer first the forward one, then the backward one."""


@struct.dataclass
class LayerWeights:
    """What one layer has in one direction: W (width of x, G), U (D, G), b (G,), the gain of W x, the cell's vectors."""

    W: Array
    U: Array
    bias: Array
    input_scale: Array | None
    vectors: CellVectors


class DirectionParams(nn.Module):
    """The parameters of one layer in one direction; its matrices start uniform in +-`init_scale`."""

    cell: Elman | LSTM | GRU
    layer_norm: bool
    weight_drop: float
    init_scale: float

    @nn.compact
    def __call__(self, in_features: int) -> LayerWeights:
        """The parameters for inputs of that width, U with its weight drop."""
        gates = sum(self.cell.norm_groups) * self.cell.width

        def uniform(key: Array, shape: tuple[int, int]) -> Array:
            return jax.random.uniform(key, shape, minval=-self.init_scale, maxval=self.init_scale)

        W = self.param("input", uniform, (in_features, gates))
        U = self.param("recurrent", uniform, (self.cell.width, gates))
        bias = self.param("bias", lambda key: self.cell.initial_bias())
        scale = self.param("input_scale", nn.initializers.ones_init(), (gates,)) if self.layer_norm else None
        small = {
            name: self.param(name, nn.initializers.constant(first), (size,))
            for name, (size, first) in self.cell.vector_shapes(self.layer_norm).items()
        }
        return LayerWeights(W, DropConnect(self.weight_drop)(U), bias, scale, small)


class Recurrent(nn.Module):
    """A pile of recurrent layers: x (B, T, any width) -> hidden (B, T, D), D the cell's width (twice it if two-way).

    Attributes:
      cell: `Elman(width)`, `LSTM(width)` or `GRU(width)` of `jaxlm.nn.rnn.cells`.
      layers: how many, the output of each the input of the next.
      bidirectional: a second cell reads each layer's input from the end, and both outputs stand side by side
        (Schuster and Paliwal 1997). Neither sees padding, wherever it is.
      residual: each layer above the first adds its input to its output (Wu et al. 2016, equation 5).
      layer_norm: W x and U h are each normalised, and the LSTM's memory (Ba et al. 2016, section 3.1).
      dropout: on the input of each layer above the first, so never on what is carried on (Zaremba et al. 2014).
      variational: one dropout mask for the whole sequence (Gal and Ghahramani 2016).
      weight_drop: rate of DropConnect on U, one mask a call (Merity et al. 2018).
      init_scale: matrices start uniform in +- this; None: D^-0.5, as in PyTorch.
      dtype: of the products; gates, carries and outputs are float32 whatever it says.
    """

    cell: Elman | LSTM | GRU
    layers: int = 1
    bidirectional: bool = False
    residual: bool = False
    layer_norm: bool = False
    dropout: float = 0.0
    variational: bool = False
    weight_drop: float = 0.0
    init_scale: float | None = None
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """Of the output."""
        return self.cell.width * (2 if self.bidirectional else 1)

    def start(self, rows: int) -> RNNState:
        """The state before the first position: zeros, axis 0 the batch."""
        return tuple(self.cell.initial_carry(rows) for _ in range(self.layers * (2 if self.bidirectional else 1)))

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        state: RNNState,
        valid_BT: Array,
        perturbation_BTD: Array | None = None,
        segment_BT: Array | None = None,
    ) -> tuple[Array, RNNState]:
        """Read T positions -> the top layer's output (B, T, D) and the state after them.

        Where `valid_BT` is False the state stays as it was and the output means nothing. Where the number in
        `segment_BT` changes, the state starts anew. `perturbation_BTD` is added to the top cell's h_t before
        it is carried on: the gradient of a loss with respect to it is dL/dh_t with all its ways through later
        positions.
        """
        ways = 2 if self.bidirectional else 1
        scale = self.cell.width**-0.5 if self.init_scale is None else self.init_scale
        after: list[Carry] = []
        for layer in range(self.layers):
            if layer > 0:
                x_BTD = (LockedDropout if self.variational else Dropout)(self.dropout)(x_BTD)
            top = perturbation_BTD is not None and layer == self.layers - 1
            nudges_BTD = jnp.split(perturbation_BTD, ways, -1) if top else [None] * ways
            weights = [
                DirectionParams(self.cell, self.layer_norm, self.weight_drop, scale, name=f"layer_{layer}{way}")(
                    x_BTD.shape[-1]
                )
                for way in ("", "_reverse")[:ways]
            ]
            before = state[layer * ways : (layer + 1) * ways]
            hidden_BTD, carries = self._run_layer(weights, x_BTD, before, valid_BT, nudges_BTD, segment_BT)
            x_BTD = hidden_BTD + x_BTD if self.residual and layer > 0 else hidden_BTD
            after.extend(carries)
        return x_BTD, tuple(after)

    def step(self, x_BD: Array, state: RNNState, valid_B: Array) -> tuple[Array, RNNState]:
        """One position: (B, any width) -> (B, D), with the parameters and the numbers of `__call__`."""
        if self.bidirectional:
            raise UserError(
                "a bidirectional network cannot be read a position at a time: its backward half begins at the end; "
                "set bidirectional=False in a decoder"
            )
        hidden_B1D, state = self(x_BD[:, None], state, valid_B[:, None])
        return hidden_B1D[:, 0], state

    def _run_layer(self, weights, x_BTD, initial_carries, valid_BT, perturbations_BTD, segment_BT):
        """All directions of one layer, one after the other or by cuDNN -> (hidden_BTD, a carry for each)."""

        def loops(x_BTD, before):
            done = [
                self._run_direction(*one, x_BTD, valid_BT, segment_BT, reverse)
                for reverse, one in enumerate(zip(weights, before, perturbations_BTD, strict=True))
            ]
            hidden_BTD = jnp.concatenate([hidden_BTD for hidden_BTD, _ in done], -1)
            return hidden_BTD, tuple(carry for _, carry in done)

        plain = not self.layer_norm and perturbations_BTD[0] is None and segment_BT is None and self.dtype == "float32"
        if not (plain and isinstance(self.cell, LSTM) and cudnn_lstm.is_available()):
            return loops(x_BTD, initial_carries)

        def by_cudnn(x_BTD, before):
            packed = cudnn_lstm.pack_params([(one.W, one.U, one.bias) for one in weights])
            return cudnn_lstm.run_layer(packed, x_BTD, before, valid_BT.sum(1, dtype=jnp.int32))

        return jax.lax.cond(cudnn_lstm.supports_padding(valid_BT), by_cudnn, loops, x_BTD, initial_carries)

    def _run_direction(self, weights, initial_carry, perturbation_BTD, x_BTD, valid_BT, segment_BT, reverse):
        """One direction of one layer by `unroll` -> (hidden_BTD, carry)."""
        dtype = jnp.dtype(self.dtype)
        # A loop over positions has to have them all: where they were split over devices they are gathered.
        x_TBD = jnp.swapaxes(constrain(x_BTD, "batch", None, None), 0, 1).astype(dtype)
        # Not flattened to rank 2 by hand: the batch is the middle axis here, and a merged axis cannot be sharded.
        x_TBG = jnp.einsum("tbd,dg->tbg", x_TBD, weights.W.astype(dtype), preferred_element_type=jnp.float32)
        x_TBG = normalize_gates(x_TBG, weights.input_scale, self.cell.norm_groups) + weights.bias[None, None]
        begins = None if segment_BT is None else _segment_starts(segment_BT, valid_BT, bool(reverse)).T
        nudge_TBD = None if perturbation_BTD is None else jnp.swapaxes(perturbation_BTD, 0, 1)
        U, marks = weights.U.astype(dtype), StepMask(valid_BT.T, begins)
        hidden_TBD, carry = unroll(self.cell, bool(reverse), U, weights.vectors, x_TBG, initial_carry, marks, nudge_TBD)
        return jnp.swapaxes(hidden_TBD, 0, 1), carry


def _segment_starts(segment_BT: Array, valid_BT: Array, reverse: bool) -> Array:
    """True at the valid tokens whose segment is not that of the token read before; never at the first one read."""
    changes_BT = jnp.diff(segment_BT, axis=1) != 0
    edge = ((0, 0), (0, 1)) if reverse else ((0, 0), (1, 0))
    return jnp.pad(changes_BT, edge) & valid_BT

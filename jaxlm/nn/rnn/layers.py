"""Recurrent networks of any cell: layers, directions and regularization.

All that does not depend on the previous position is computed for all positions at once: a layer is one product
x W + b and the loop of `jaxlm.nn.rnn.scan` around h U; its backward pass is one product each for dW, dU and dx.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.sharding import constrain
from jaxlm.errors import UserError
from jaxlm.nn.layers.dropout import DropConnect, Dropout, LockedDropout
from jaxlm.nn.rnn import cudnn_lstm
from jaxlm.nn.rnn.cells import GRU, LSTM, Carry, CellVectors, Elman, normalize_gates
from jaxlm.nn.rnn.scan import StepInputs, unroll
from jaxlm.types import Array

RNNState = tuple[Carry, ...]
"""A carry per layer from the bottom; of a bidirectional layer first the forward one, then the backward one."""


@struct.dataclass
class LayerWeights:
    """One direction of a layer: W (width of x, G), U (D, G), b (G,), the gain of W x, and the vectors of the cell."""

    W: Array
    U: Array
    bias: Array
    input_scale: Array | None
    vectors: CellVectors


class DirectionParams(nn.Module):
    """The parameters of one direction of a layer; matrices are initialized uniformly in +-`init_scale`."""

    cell: Elman | LSTM | GRU
    layer_norm: bool
    weight_drop: float
    init_scale: float

    @nn.compact
    def __call__(self, in_features: int) -> LayerWeights:
        """Return the parameters for inputs of width `in_features`, U after weight drop."""
        gates = sum(self.cell.norm_groups) * self.cell.width

        def uniform(key: Array, shape: tuple[int, int]) -> Array:
            return jax.random.uniform(key, shape, minval=-self.init_scale, maxval=self.init_scale)

        W = self.param("input", uniform, (in_features, gates))
        U = self.param("recurrent", uniform, (self.cell.width, gates))
        bias = self.param("bias", lambda key: self.cell.initial_bias())
        scale = self.param("input_scale", nn.initializers.ones_init(), (gates,)) if self.layer_norm else None
        vectors = {
            name: self.param(name, nn.initializers.constant(value), (size,))
            for name, (size, value) in self.cell.vector_shapes(self.layer_norm).items()
        }
        return LayerWeights(W, DropConnect(self.weight_drop)(U), bias=bias, input_scale=scale, vectors=vectors)


class Recurrent(nn.Module):
    """A stack of recurrent layers: x (B, T, any width) -> hidden (B, T, D), D the width of the output.

    Attributes:
      cell: `Elman(width)`, `LSTM(width)` or `GRU(width)` of `jaxlm.nn.rnn.cells`.
      layers: number of layers.
      bidirectional: a second cell reads the input of each layer from the end, and both outputs are concatenated
        (Schuster and Paliwal 1997). Padding is skipped anywhere in a row.
      residual: each layer above the first adds its input to its output (Wu et al. 2016, equation 5).
      layer_norm: whether W x, U h and the LSTM's memory have a layer norm (Ba et al. 2016, section 3.1).
      dropout: dropout rate of the input of each layer above the first, never of a carry (Zaremba et al. 2014).
      variational: whether one dropout mask serves the whole sequence (Gal and Ghahramani 2016).
      weight_drop: DropConnect rate of the recurrent matrix U, one mask per call (Merity et al. 2018).
      init_scale: matrices are initialized uniformly in +- init_scale; None: (width of the cell)^-0.5, as in PyTorch.
      dtype: dtype of the matrix products; gates, carries and outputs are always float32.
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
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def width(self) -> int:
        """Width of the output: that of the cell, twice it if bidirectional."""
        return self.cell.width * (2 if self.bidirectional else 1)

    def start(self, rows: int) -> RNNState:
        """Return the state before the first position: zeros."""
        return tuple(self.cell.initial_carry(rows) for _ in range(self.layers * (2 if self.bidirectional else 1)))

    @nn.compact
    def __call__(
        self, x_BTD: Array, state: RNNState, valid_BT: Array, perturbation_BTD: Array | None = None,
        segment_BT: Array | None = None,
    ) -> tuple[Array, RNNState]:  # fmt: skip
        """Read T positions: return the output of the top layer (B, T, D) and the new state.

        Args:
          valid_BT: False leaves the state unchanged; the output there is undefined.
          perturbation_BTD: added to h_t of the top layer before it is carried on. The gradient of a loss with respect
            to it is dL/dh_t, through all later positions.
          segment_BT: the state is reset where this number changes.
        """
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        directions = len(suffixes)
        scale = self.cell.width**-0.5 if self.init_scale is None else self.init_scale
        new_state: list[Carry] = []
        for layer in range(self.layers):
            if layer > 0:
                x_BTD = (LockedDropout if self.variational else Dropout)(self.dropout)(x_BTD)
            is_perturbed = perturbation_BTD is not None and layer == self.layers - 1
            perturbations = jnp.split(perturbation_BTD, directions, -1) if is_perturbed else [None] * directions
            weights = [
                DirectionParams(
                    self.cell, self.layer_norm, weight_drop=self.weight_drop, init_scale=scale,
                    name=f"layer_{layer}{suffix}",
                )(x_BTD.shape[-1])
                for suffix in suffixes
            ]  # fmt: skip
            carries = state[layer * directions : (layer + 1) * directions]
            hidden_BTD, carries = self._run_layer(weights, x_BTD, carries, valid_BT, perturbations, segment_BT)
            x_BTD = hidden_BTD + x_BTD if self.residual and layer > 0 else hidden_BTD
            new_state.extend(carries)
        return x_BTD, tuple(new_state)

    def step(self, x_BD: Array, state: RNNState, valid_B: Array) -> tuple[Array, RNNState]:
        """Read one position, (B, any width) -> (B, D), with the same parameters and results as `__call__`."""
        if self.bidirectional:
            raise UserError(
                "a bidirectional network cannot be read a position at a time: its backward half begins at the end; "
                "set bidirectional=False in a decoder"
            )
        hidden_B1D, state = self(x_BD[:, None], state, valid_B[:, None])
        return hidden_B1D[:, 0], state

    def _run_layer(self, weights, x_BTD, carries, valid_BT, perturbations, segment_BT):
        """All directions of a layer, one after the other or by cuDNN -> hidden_BTD and a carry for each."""
        is_plain = not self.layer_norm and perturbations[0] is None and segment_BT is None and self.dtype == "float32"
        # A single position is one product: packing the parameters for it would cost more.
        is_long = x_BTD.shape[1] > 1
        if is_plain and is_long and isinstance(self.cell, LSTM) and cudnn_lstm.is_available(x_BTD):
            packed = cudnn_lstm.pack_params([(direction.W, direction.U, direction.bias) for direction in weights])
            return cudnn_lstm.run_layer(packed, x_BTD, carries, valid_BT)
        outputs = [
            self._run_direction(*direction, x_BTD, valid_BT, segment_BT, reverse=index == 1)
            for index, direction in enumerate(zip(weights, carries, perturbations, strict=True))
        ]
        hidden_BTD = jnp.concatenate([hidden_BTD for hidden_BTD, _ in outputs], -1)
        return hidden_BTD, tuple(carry for _, carry in outputs)

    def _run_direction(self, weights, carry, perturbation_BTD, x_BTD, valid_BT, segment_BT, reverse):
        """One direction of a layer by `unroll` -> hidden_BTD and the last carry."""
        dtype = jnp.dtype(self.dtype)
        # The loop over positions needs all of them: if they are split over devices, they are gathered.
        x_TBD = jnp.swapaxes(constrain(x_BTD, "batch", None, None), 0, 1).astype(dtype)
        # Not flattened to rank 2 by hand: the batch is the middle axis here, and a merged axis cannot be sharded.
        x_TBG = jnp.einsum("tbd,dg->tbg", x_TBD, weights.W.astype(dtype), preferred_element_type=jnp.float32)
        x_TBG = normalize_gates(x_TBG, weights.input_scale, self.cell.norm_groups) + weights.bias[None, None]
        reset_TB = None if segment_BT is None else _segment_starts(segment_BT, valid_BT, reverse).T
        perturbation_TBD = None if perturbation_BTD is None else jnp.swapaxes(perturbation_BTD, 0, 1)
        inputs = StepInputs(x_TBG, valid_BT.T, reset=reset_TB, perturbation=perturbation_TBD)
        hidden_TBD, carry = unroll(self.cell, reverse, weights.U.astype(dtype), weights.vectors, carry, inputs)
        return jnp.swapaxes(hidden_TBD, 0, 1), carry


def _segment_starts(segment_BT: Array, valid_BT: Array, reverse: bool) -> Array:
    """True at the valid tokens whose segment is not that of the token read before; never at the first one read."""
    changes_BT = jnp.diff(segment_BT, axis=1) != 0
    edge = ((0, 0), (0, 1)) if reverse else ((0, 0), (1, 0))
    return jnp.pad(changes_BT, edge) & valid_BT

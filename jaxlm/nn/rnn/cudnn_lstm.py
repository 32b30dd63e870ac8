"""An LSTM layer by cuDNN on an NVIDIA GPU, with the parameters of `jaxlm.nn.rnn.layers`.

cuDNN runs a whole layer in one kernel and supports padding on the right only. The packing of the parameters is tested
on a CPU against JAX's own reference of the call; the call itself has never run, for lack of a GPU.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxlm.nn.rnn.cells import Carry
from jaxlm.types import Array


def is_available() -> bool:
    """Return whether the only device is a GPU with JAX's cuDNN binding: the call has no sharding rule for several."""
    if jax.default_backend() != "gpu" or jax.device_count() > 1:
        return False
    from jax.experimental import rnn

    return getattr(rnn, "gpu_rnn", None) is not None


def supports_padding(valid_BT: Array) -> Array:
    """Return a scalar, True if all padding is on the right and every row has a token."""
    return ~jnp.any(valid_BT[:, 1:] & ~valid_BT[:, :-1]) & jnp.all(valid_BT[:, 0])


def pack_params(directions: Sequence[tuple[Array, Array, Array]]) -> Array:
    """Return (W, U, b) of each direction as one vector: all W^T and U^T, then the biases of W x and of U h (zero)."""
    matrices = [matrix.T.reshape(-1) for W, U, _ in directions for matrix in (W, U)]
    biases = [bias for _, _, b in directions for bias in (b, jnp.zeros_like(b))]
    return jnp.concatenate([*matrices, *biases])


def run_layer(
    packed: Array, x_BTD: Array, initial_carries: Sequence[Carry], length_B: Array
) -> tuple[Array, tuple[Carry, ...]]:
    """Run a layer over the first `length_B` tokens of each row: return hidden_BTD and a carry per direction."""
    from jax.experimental import rnn

    hidden, memory = (jnp.stack([getattr(c, name) for c in initial_carries]) for name in ("hidden_BD", "memory_BD"))
    width, directions = initial_carries[0].hidden_BD.shape[1], len(initial_carries)
    hidden_BTD, hidden, memory = rnn.lstm(
        x_BTD, hidden, memory, packed, length_B, x_BTD.shape[2], width, 1, 0.0, directions == 2
    )
    return hidden_BTD, tuple(Carry(hidden[i], memory[i]) for i in range(directions))

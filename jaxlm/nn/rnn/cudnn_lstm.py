"""An LSTM layer by cuDNN on an NVIDIA GPU, with the parameters of `jaxlm.nn.rnn.layers`.

cuDNN runs a whole layer in one kernel; it knows padding on the right and nothing else. The packing of the parameters
is tested on a CPU against JAX's own reference of this call. The call itself has not been run: no GPU was at hand.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxlm.nn.rnn.cells import Carry
from jaxlm.types import Array


def is_available() -> bool:
    """Whether the one device is a GPU with JAX's binding to cuDNN: the call has no sharding rule for several."""
    if jax.default_backend() != "gpu" or jax.device_count() > 1:
        return False
    from jax.experimental import rnn

    return getattr(rnn, "gpu_rnn", None) is not None


def supports_padding(valid_BT: Array) -> Array:
    """Scalar, True where cuDNN can read a batch: all padding on the right, and a token in every row."""
    return ~jnp.any(valid_BT[:, 1:] & ~valid_BT[:, :-1]) & jnp.all(valid_BT[:, 0])


def pack_params(directions: Sequence[tuple[Array, Array, Array]]) -> Array:
    """(W, U, b) of each direction -> cuDNN's one vector: all matrices, transposed, then two biases a direction.

    cuDNN has, like PyTorch, a bias for W x and one for U h; the second is zero here.
    """
    matrices = [matrix.T.reshape(-1) for W, U, _ in directions for matrix in (W, U)]
    biases = [bias for _, _, b in directions for bias in (b, jnp.zeros_like(b))]
    return jnp.concatenate([*matrices, *biases])


def run_layer(
    packed: Array, x_BTD: Array, initial_carries: Sequence[Carry], length_B: Array
) -> tuple[Array, tuple[Carry, ...]]:
    """One layer over the first `length_B` tokens of each row -> (hidden_BTD, a carry for each direction)."""
    from jax.experimental import rnn

    hidden, memory = (jnp.stack([getattr(c, name) for c in initial_carries]) for name in ("hidden_BD", "memory_BD"))
    width, ways = initial_carries[0].hidden_BD.shape[1], len(initial_carries)
    hidden_BTD, hidden, memory = rnn.lstm(
        x_BTD, hidden, memory, packed, length_B, x_BTD.shape[2], width, 1, 0.0, ways == 2
    )
    return hidden_BTD, tuple(Carry(hidden[way], memory[way]) for way in range(ways))

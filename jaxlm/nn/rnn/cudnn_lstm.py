"""An LSTM layer by cuDNN on NVIDIA GPUs, with the parameters of `jaxlm.nn.rnn.layers`.

cuDNN runs a whole layer in one kernel and reads the first tokens of each row. Padding may be anywhere: the valid tokens
of a row are moved to its front and their outputs back, so no program has to ask, and wait, where the padding is. The
packing of the parameters is tested on a CPU against JAX's own reference of the call; the call itself has never run, for
lack of a GPU.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlm.distributed.sharding import num_shards, partition_spec, platform_of
from jaxlm.nn.attention.mask import tokens_before_padding
from jaxlm.nn.rnn.cells import Carry
from jaxlm.types import Array


def is_available(x_BTD: Array) -> bool:
    """Return whether the program is for GPUs of this machine that share the rows evenly, and JAX has its cuDNN binding.

    A program that is compiled for a GPU on another machine has no cuDNN available.
    """
    if not platform_of(x_BTD) == jax.default_backend() == "gpu":
        return False
    from jax.experimental import rnn

    return getattr(rnn, "gpu_rnn", None) is not None and x_BTD.shape[0] % num_shards(x_BTD, "batch") == 0


def pack_params(directions: Sequence[tuple[Array, Array, Array]]) -> Array:
    """Return (W, U, b) of each direction as one vector: all W^T and U^T, then the biases of W x and of U h (zero)."""
    matrices = [matrix.T.reshape(-1) for W, U, _ in directions for matrix in (W, U)]
    biases = [bias for _, _, b in directions for bias in (b, jnp.zeros_like(b))]
    return jnp.concatenate([*matrices, *biases])


def run_layer(
    packed: Array, x_BTD: Array, carries: tuple[Carry, ...], valid_BT: Array
) -> tuple[Array, tuple[Carry, ...]]:
    """Run a layer over the valid tokens: return hidden_BTD and a carry per direction. Each device computes its rows."""
    mesh = jax.typeof(x_BTD).sharding.mesh
    if mesh.size <= 1:
        return _run_on_device(packed, x_BTD, carries, valid_BT)
    rows = functools.partial(partition_spec, mesh=mesh)
    x_spec = rows(("batch", None, None), x_BTD.shape)
    carry_specs = jax.tree.map(lambda leaf: rows(("batch", None), leaf.shape), carries)
    in_specs = PartitionSpec(), x_spec, carry_specs, rows(("batch", None), valid_BT.shape)
    layer = jax.shard_map(
        _run_on_device, mesh=mesh, in_specs=in_specs, out_specs=(x_spec, carry_specs), check_vma=False
    )
    return layer(packed, x_BTD, carries, valid_BT)


def _run_on_device(packed, x_BTD, carries, valid_BT):
    from jax.experimental import rnn

    hidden, memory = (jnp.stack([getattr(c, name) for c in carries]) for name in ("hidden_BD", "memory_BD"))
    width, directions = carries[0].hidden_BD.shape[1], len(carries)
    order = tokens_before_padding(valid_BT)
    length_B = valid_BT.sum(1, dtype=jnp.int32)
    hidden_BTD, hidden, memory = rnn.lstm(
        order.sort_features(x_BTD), hidden, memory, packed, jnp.maximum(length_B, 1), x_BTD.shape[2], width, 1,
        0.0, directions == 2,
    )  # fmt: skip
    is_empty_B1 = length_B[:, None] == 0  # cuDNN takes no empty row
    after = (Carry(hidden[i], memory[i]) for i in range(directions))
    keep_empty = functools.partial(jax.tree.map, lambda old_BD, new_BD: jnp.where(is_empty_B1, old_BD, new_BD))
    return order.restore(hidden_BTD), tuple(map(keep_empty, carries, after))

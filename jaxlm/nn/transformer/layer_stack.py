"""A stack of equal layers with one parameter layout, run as a scan or as a Python loop.

The parameters of all layers are stacked on a leading axis L. A checkpoint is therefore independent of whether layers
were scanned (one layer is compiled, for deep models) or unrolled (faster decoding, and shallow models).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, SequenceKey

from jaxlm.distributed.platforms import PlatformChoices, choices_for, device_memory
from jaxlm.distributed.sharding import all_gather_params, constrain, num_shards, save_all_but_gathered
from jaxlm.nn.attention.kernels import save_attention
from jaxlm.nn.attention.kv_cache import KVCache
from jaxlm.nn.attention.multi_head import resolve_heads
from jaxlm.nn.layers.linear import GATED_ACTIVATIONS
from jaxlm.nn.weights.weight_formats import (
    PackedInt8,
    PackedKernel,
    WeightFormat,
    note_layer,
    to_cpu_format,
    weight_path,
    weight_users,
)
from jaxlm.types import Array

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, save_attention
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""The activations saved for the backward pass, by `Stack.remat`."""


class Stack(nn.Module):
    """`depth` copies of an unbound `block`, applied one after the other: block(x, *shared) -> x.

    scan: compile one layer and scan over it (True: unless the platform gains by unrolling), else unroll.
    remat: which activations to recompute in the backward pass (Chen et al. 2016): none (False), all but the products
    with parameters and the results of attention kernels ("dots"), all ("full"), or "dots" where the platform has no
    room for all (True).
    """

    block: nn.Module
    depth: int
    scan: bool = False
    remat: bool | str = False

    @nn.compact
    def __call__(self, x: Array, *shared: Any) -> Array:
        """Return the output of the last layer; `shared` is passed to every layer. For training and for encoders."""
        block = self.block.clone(parent=None, name=None)

        def init_layers(key):
            return jax.vmap(lambda k: block.init(k, x, *shared)["params"])(jax.random.split(key, self.depth))

        # Not `self.param` if they exist: it compares leaves with those of `init_layers`, and int8 weights differ.
        has_params = self.has_variable("params", "layers")
        params_L = self.get_variable("params", "layers") if has_params else self.param("layers", init_layers)
        x = constrain(x, "batch", "sequence", None)
        keys_L = jax.random.split(self.make_rng("dropout"), self.depth) if self.has_rng("dropout") else None

        def layer(x, params, key):
            note_layer(params_L, params)
            rngs = None if key is None else {"dropout": key}
            # With FSDP, gather the weights of this layer here, in the dtype of the products.
            gathered = all_gather_params(params, getattr(block, "dtype", None))
            y: Any = block.apply({"params": gathered}, x, *shared, rngs=rngs)
            return constrain(y, "batch", "sequence", None)

        room = device_memory(x) / max(kept_bytes(self.block, x) * self.depth, 1)
        scan, remat = scan_and_remat(self.scan, self.remat, self.depth, room, choices_for(x))
        scan &= not isinstance(params_L, tuple)
        if remat:
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat])
        elif num_shards(x, "embed") > 1:
            # Gathered weights must not be saved for the backward pass: that would undo FSDP. Gather them again.
            layer = jax.checkpoint(layer, policy=save_all_but_gathered)
        if scan:
            return jax.lax.scan(lambda x, layer_inputs: (layer(x, *layer_inputs), None), x, (params_L, keys_L))[0]
        for depth in range(self.depth):
            x = layer(x, layer_slice(params_L, depth), None if keys_L is None else keys_L[depth])
        return x

    def empty_cache(self, rows: int, capacity: int) -> KVCache:
        """Return the cache of all layers, of blocks with `attention`."""
        attention = self.block.attention
        width, heads = resolve_heads(attention.width, attention.heads, attention.kv_heads, attention.head_dim)
        return KVCache.empty(rows, capacity, self.depth, heads=heads, head_dim=width, dtype=attention.dtype)

    def attention_weights(self, x: Array, *shared: Any) -> Array:
        """Return the attention weights of all layers, (B, L, N, T, T), of blocks with `with_attention_weights`."""
        weights = []
        for layer in self.layers():
            x, weight_BNTT = layer("with_attention_weights", x, *shared)
            weights.append(weight_BNTT)
        return jnp.stack(weights, 1)

    def layers(self) -> Iterator[Any]:
        """Yield a function per layer: layer(method, *arguments) calls that method of the block with its parameters."""
        block: nn.Module = self.block.clone(parent=None, name=None)
        params_L: Any = self.get_variable("params", "layers")
        for depth in range(self.depth):
            note_layer(params_L, params := layer_slice(params_L, depth))
            variables = {"params": params}
            yield lambda method, *inputs, variables=variables: block.apply(variables, *inputs, method=method)


def scan_and_remat(
    scan: bool, remat: bool | str, depth: int, room: float, choices: PlatformChoices
) -> tuple[bool, str]:
    """Return whether a stack is scanned, and the name of its policy of recomputation ("" without one).

    room: the memory of the device over the bytes of the stack's activations without recomputation.
    """
    scan = scan and depth > choices.unrolled_depth
    if remat is True:
        return scan, "" if not scan and 1.0 <= choices.kept_share * room else "dots"
    name = remat or (choices.scan_remat if scan else "none")
    return scan, "" if name == "none" else name


def kept_bytes(block: Any, x_BTD: Array) -> int:
    """Return about what one unrolled layer without recomputation keeps on each device for the backward pass."""
    if not hasattr(block, "ffn") or not hasattr(block, "attention"):
        return 0
    num_attentions, is_gated = 1 + hasattr(block, "source_attention"), block.ffn.activation in GATED_ACTIVATIONS
    positions = x_BTD.size // x_BTD.shape[-1] // num_shards(x_BTD, "batch") // num_shards(x_BTD, "sequence")
    return positions * kept_numbers(x_BTD.shape[-1], block.ffn.hidden, num_attentions, is_gated) * x_BTD.dtype.itemsize


def kept_numbers(width: int, hidden: int, num_attentions: int, is_gated: bool) -> int:
    """Return the numbers per position that XLA keeps of a layer: of each sub-layer its norm and its sum, of attention
    queries, keys, values and output, of the feed-forward layer the operands and results of its activation."""
    return (2 + 6 * num_attentions) * width + (2 + is_gated) * hidden


def decoding_params(params: Any, call: Callable[[Any], Any]) -> Any:
    """Return the parameters for a decoding loop: layers apart, and on a CPU with kernels in its format.

    Otherwise the loop would copy each slice of a stack in every iteration, and each call would reformat kernels.
    `call` is what is done with them, traced to find the weights of jaxlm's own layers: all others stay as they are.
    """
    if _is_prepared(params):
        return params
    users = weight_users(call, params)
    stacked = [path for path, uses in users.items() if "stack" in uses]

    def unstack(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, dict):
            return node
        if path[-1:] != ("layers",) or all(leaf[: len(path)] != path for leaf in stacked):
            return {name: unstack(value, (*path, name)) for name, value in node.items()}
        layers = [layer_slice(node, index) for index in range(jax.tree.leaves(node)[0].shape[0])]
        return tuple({name: unstack(value, (*path, name)) for name, value in layer.items()} for layer in layers)

    def pack(path: tuple, leaf: Any) -> Any:
        uses = users.get(weight_path(path), set())
        is_own = isinstance(leaf, WeightFormat) or "read" in uses
        if not is_own or not uses & {"kernel", "table"}:
            return leaf
        return to_cpu_format(leaf, is_table="kernel" not in uses)

    unstacked = unstack(params, ())
    return jax.tree_util.tree_map_with_path(pack, unstacked, is_leaf=lambda node: isinstance(node, WeightFormat))


def _is_prepared(params: Any) -> bool:
    """Return True if `decoding_params` made the parameters: only it packs kernels and keeps layers apart."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, WeightFormat))
    if any(isinstance(leaf, PackedInt8 | PackedKernel) for _, leaf in leaves):
        return True
    keys = (pair for path, _ in leaves for pair in pairwise(path))
    return any(key == DictKey("layers") and isinstance(after, SequenceKey) for key, after in keys)


def layer_slice(params_L: Any, depth: int) -> Any:
    """Return one layer of stacked or unstacked parameters."""
    return params_L[depth] if isinstance(params_L, tuple) else jax.tree.map(lambda leaf: leaf[depth], params_L)

"""A stack of equal layers with one parameter layout, run as a scan or as a Python loop.

The parameters of all layers are stacked on a leading axis L. A checkpoint is therefore independent of whether layers
were scanned (one layer is compiled, for deep models) or unrolled (faster decoding, and shallow models).
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.distributed.sharding import all_gather_params, constrain, num_shards, save_all_but_gathered
from jaxlm.nn.attention.kv_cache import KVCache
from jaxlm.nn.attention.multi_head import resolve_heads
from jaxlm.nn.weights.weight_formats import to_cpu_format
from jaxlm.types import Array

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""The activations saved for the backward pass, by `Stack.remat`."""


class Stack(nn.Module):
    """`depth` copies of an unbound `block`, applied one after the other: block(x, *shared) -> x.

    scan: compile one layer and scan over it, else unroll. remat: which activations to recompute in the backward pass
    (Chen et al. 2016): none (False), all but the products with parameters ("dots", True), or all ("full").
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
            rngs = None if key is None else {"dropout": key}
            # With FSDP, gather the weights of this layer here, in the dtype of the products.
            gathered = all_gather_params(params, getattr(block, "dtype", None))
            y: Any = block.apply({"params": gathered}, x, *shared, rngs=rngs)
            return constrain(y, "batch", "sequence", None)

        if self.remat:
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES["dots" if self.remat is True else self.remat])
        elif num_shards(x, "embed") > 1:
            # Gathered weights must not be saved for the backward pass: that would undo FSDP. Gather them again.
            layer = jax.checkpoint(layer, policy=save_all_but_gathered)
        if self.scan and not isinstance(params_L, tuple):
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
            variables = {"params": layer_slice(params_L, depth)}
            yield lambda method, *inputs, variables=variables: block.apply(variables, *inputs, method=method)


def unstack_layers(params: Any) -> Any:
    """Return the parameters for a decoding loop, which would otherwise slice the stack and reformat kernels."""
    if not isinstance(params, dict):
        return params
    # Of the tables only the one of the logits is multiplied with: the embedding, unless there is an output table.
    logits_table = "embedding" if isinstance(params.get("output", {}), dict) else "output"
    unstacked = {
        name: to_cpu_format(value, is_table=name == logits_table)
        if name in ("kernel", logits_table) and not isinstance(value, dict)
        else unstack_layers(value)
        for name, value in params.items()
    }
    if "layers" in params and not isinstance(params["layers"], tuple):
        depth = jax.tree.leaves(params["layers"])[0].shape[0]
        unstacked["layers"] = tuple(unstack_layers(layer_slice(params["layers"], index)) for index in range(depth))
    return unstacked


unstack_layers_jit = jax.jit(unstack_layers)
"""`unstack_layers` as one program, for a loop outside of jit."""


def layer_slice(params_L: Any, depth: int) -> Any:
    """Return one layer of stacked or unstacked parameters."""
    return params_L[depth] if isinstance(params_L, tuple) else jax.tree.map(lambda leaf: leaf[depth], params_L)

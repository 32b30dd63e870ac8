"""A pile of equal blocks with one parameter layout, whether it is run as a scan or as a Python loop.

The parameters of all layers are stacked on a leading axis L. A checkpoint therefore does not know whether layers were
scanned (one block compiled, for deep models) or unrolled (faster decoding and shallow models).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.distributed.sharding import all_gather_params, constrain, num_shards, save_all_but_gathered
from jaxlm.nn.weights.weight_formats import table_to_cpu_format, to_cpu_format
from jaxlm.types import Array

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What is kept for the backward pass, by the values of `Stack.remat`."""


class Stack(nn.Module):
    """`depth` copies of `block`, applied one after the other: block(x, *shared) -> x.

    Attributes:
      block: the layer, an unbound Linen module.
      depth: number of layers, L.
      scan: compile one layer and scan over it, else unroll.
      remat: what of a layer's activations is computed again in the backward pass instead of kept (Chen et al. 2016):
        nothing (False), all but the products with parameters ("dots", True), or everything ("full").
    """

    block: nn.Module
    depth: int
    scan: bool = False
    remat: bool | str = False

    @nn.compact
    def __call__(self, x: Array, *shared: Any) -> Array:
        """x and what every layer sees alike -> x after the last layer. For training and for encoders."""
        block = self.block.clone(parent=None, name=None)

        def create(key):
            return jax.vmap(lambda k: block.init(k, x, *shared)["params"])(jax.random.split(key, self.depth))

        # Not `self.param` where they are given: it would compare leaves, and weights of eight bits have other ones.
        known = self.has_variable("params", "layers")
        params_L = self.get_variable("params", "layers") if known else self.param("layers", create)
        x = _constrain_activations(x)
        keys_L = jax.random.split(self.make_rng("dropout"), self.depth) if self.has_rng("dropout") else None

        def layer(x, params, key):
            rngs = None if key is None else {"dropout": key}
            used = all_gather_params(params, getattr(block, "dtype", None))
            after: Any = block.apply({"params": used}, x, *shared, rngs=rngs)
            return _constrain_activations(after)

        if self.remat:
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES["dots" if self.remat is True else self.remat])
        elif num_shards(x, "embed") > 1:
            layer = jax.checkpoint(layer, policy=save_all_but_gathered)
        if self.scan and not isinstance(params_L, tuple):
            return jax.lax.scan(lambda x, layer_in: (layer(x, *layer_in), None), x, (params_L, keys_L))[0]
        for depth in range(self.depth):
            x = layer(x, layer_slice(params_L, depth), None if keys_L is None else keys_L[depth])
        return x

    def attention_weights(self, x: Array, *shared: Any) -> Array:
        """How much each position looks at each, by layer and head (B, L, N, T, T), of blocks that can tell."""
        weights = []
        for layer in self.layers():
            x, weight_BNTT = layer("with_attention_weights", x, *shared)
            weights.append(weight_BNTT)
        return jnp.stack(weights, 1)

    def layers(self) -> Iterator[Any]:
        """Each layer's own function: layer(method, *arguments) runs that method of the block with its parameters."""
        block: nn.Module = self.block.clone(parent=None, name=None)
        params_L: Any = self.get_variable("params", "layers")
        for depth in range(self.depth):
            yield partial(_apply_method, block, layer_slice(params_L, depth))


def _constrain_activations(x: Array) -> Array:
    """What goes from layer to layer: a row of numbers for each token, whole."""
    return constrain(x, "batch", "sequence", None)


def _apply_method(block: nn.Module, params: Any, method: str, *arguments: Any) -> Any:
    return block.apply({"params": params}, *arguments, method=method)


def unstack_layers(params: Any) -> Any:
    """The parameters as a decoding loop wants them: of each layer by themselves, on a CPU with their kernels turned.

    The loop would else copy each slice at every turn, and whoever calls it, at every call.
    """
    if not isinstance(params, dict):
        return params
    # Only the table that is multiplied with: the embeddings are, unless there is one for the output alone.
    scored = "embedding" if isinstance(params.get("output", {}), dict) else "output"
    apart = {name: _to_inference_format(name, value, scored) for name, value in params.items()}
    if "layers" in params and not isinstance(params["layers"], tuple):
        depth = jax.tree.leaves(params["layers"])[0].shape[0]
        apart["layers"] = tuple(unstack_layers(layer_slice(params["layers"], at)) for at in range(depth))
    return apart


def _to_inference_format(name: str, value: Any, logits_table: str) -> Any:
    if isinstance(value, dict):
        return unstack_layers(value)
    return to_cpu_format(value) if name == "kernel" else table_to_cpu_format(value) if name == logits_table else value


unstack_layers_jit = jax.jit(unstack_layers)
"""`unstack_layers` in one program, for a loop outside of jit; what is unstacked already comes back without a copy."""


def layer_slice(params_L: Any, depth: int) -> Any:
    """One layer's slice of stacked parameters, or its part of unstacked ones."""
    if isinstance(params_L, tuple):
        return params_L[depth]
    return jax.tree.map(lambda leaf: leaf[depth], params_L)

"""Losses as (sum, count) pairs: added over micro-batches, devices and segments, and divided once at the end.

`cross_entropy` is the chunked loss over a vocabulary, `classification_loss` the plain one for small numbers of classes.
Shape letters of this file: G groups of tokens, M = B T / G positions per group, R positions of a group per chunk.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.platforms import choices_for
from jaxlm.distributed.sharding import num_shards
from jaxlm.nn.layers.position_chunks import ChunkLoop, constrain_groups, to_groups
from jaxlm.types import Array, State

NEVER_LOGIT = -1e9
"""The logit of an outcome that cannot be, such as a choice that a row lacks, if -inf would give a NaN gradient.

An outcome of less than half of it, -inf too, has no part in a loss: a uniform distribution leaves it out, and a label
that cannot be is ignored as if it were not valid.
"""


@struct.dataclass
class Loss:
    """Sums over the valid tokens, in nats.

    Attributes:
      total: the sum to minimize.
      nll: the plain negative log-likelihood, for the log; it has no gradient.
      count: the number of tokens.
      state: of continuous streams, the model's state for the next batch.
      figures: further figures for the log by name, each [sum, count] (`mean_figure`).
    """

    total: Array
    nll: Array
    count: Array
    state: State = None
    figures: dict[str, Array] = struct.field(default_factory=dict)


def mean_figure(value_B: Array, mask_B: Array) -> Array:
    """A figure of `Loss`, float32 [sum, count] of the values under the mask; it has no gradient."""
    total = jnp.where(mask_B, value_B, 0.0).sum()
    return jax.lax.stop_gradient(jnp.stack([total, mask_B.sum()]).astype(jnp.float32))


def cross_entropy(
    readout: Callable[[Array], Array], features_BTD: Array, label_BT: Array, valid_BT: Array,
    label_smoothing: float = 0.0, is_sparse: bool = False,
) -> Loss:  # fmt: skip
    """Return the cross-entropy of the labels against (1 - e) one-hot + e uniform (Szegedy et al. 2016, section 7).

    The logits of all B x T positions never exist together: a loop over chunks of positions computes the loss and, in
    the same pass, the gradients of the features and of the parameters of `readout`. `ChunkLoop` says which positions
    it takes; is_sparse: few of them are valid (masked tokens).
    If tokens are sharded, positions form G groups that do not cross devices. All groups are processed in parallel, in
    as many steps as the group with the most valid positions needs, and gradients are summed over groups at the end.
    """
    readout, loop, inputs, _ = chunk_inputs(readout, features_BTD, label_BT, valid_BT, is_sparse)
    total, nll, count = _chunked_cross_entropy(readout, (label_smoothing, loop), *inputs)
    return Loss(total=total, nll=nll, count=count)


def chunk_inputs(
    readout: Callable[[Array], Array], features_BTD: Array, label_BT: Array, valid_BT: Array, is_sparse: bool = False
) -> tuple[Callable, ChunkLoop, tuple[Any, ...], list[int]]:
    """The inputs of a loop over chunks of positions: the readout with its parameters as a second argument, the loop,
    (parameters, features, labels, valid mask, outcomes that cannot be), and the groups of each axis.
    """
    shards = (num_shards(features_BTD, name) for name in ("batch", "sequence"))
    groups = list(map(math.gcd, label_BT.shape, shards))
    features, label_GM, valid_GM = (to_groups(x, *groups) for x in (features_BTD, label_BT, valid_BT))
    vocab = jax.eval_shape(readout, features[:1, :1]).shape[-1]
    loop = ChunkLoop.for_logits(label_GM.shape[1], vocab, features.shape[-1], choices_for(features_BTD), is_sparse)
    # Seen with features of 0, where no logit of a model that diverges could be mistaken for one of them.
    never_V = readout(jnp.zeros_like(features[:1, :1]))[0, 0] <= NEVER_LOGIT / 2
    converted, weights = jax.closure_convert(readout, features[:1, : loop.size])
    valid_GM &= ~never_V[label_GM]
    return converted, loop, (weights, features, label_GM, valid_GM, never_V), groups


def _possible_share(is_never: Array) -> Array:
    """Return V divided by the number of outcomes that can be, (..., V) -> (...): exactly 1 if all can."""
    return is_never.shape[-1] / (~is_never).sum(-1).astype(jnp.float32)


def _chunk_sums(
    logits_GRV: Array, label_GR: Array, valid_GR: Array, smoothing: float, never_V: Array
) -> tuple[Any, ...]:
    """Sums of a chunk (total, nll, count), each (G,), exp(logits - max) and its sum over V."""
    max_GR1 = logits_GRV.max(-1, keepdims=True)
    exp_GRV = jnp.exp(logits_GRV - max_GR1)
    sum_GR = exp_GRV.sum(-1)
    log_z_GR = jnp.log(sum_GR) + max_GR1[..., 0]
    label_logit_GR = jnp.take_along_axis(logits_GRV, label_GR[..., None], axis=-1)[..., 0]
    total_G = nll_G = jnp.where(valid_GR, log_z_GR - label_logit_GR, 0.0).sum(1)
    if smoothing:
        # A maximum with a vector of 0 and -inf: a selection by Booleans costs 4 % of the loss on a CPU.
        floor_V = jnp.where(never_V, 0.0, -jnp.inf)[None, None]
        mean_GR = jnp.maximum(logits_GRV, floor_V).mean(-1) * _possible_share(never_V)
        uniform_G = jnp.where(valid_GR, log_z_GR - mean_GR, 0.0).sum(1)
        total_G = (1.0 - smoothing) * nll_G + smoothing * uniform_G
    return (total_G, nll_G, valid_GR.sum(1, dtype=jnp.float32)), exp_GRV, sum_GR


def grouped_logits(readout: Callable, features: Array, weights: Any) -> Array:
    """(G, R, V) from a readout of one group, (1, R, D)."""
    if len(features) == 1:
        return readout(features, *weights)
    return jax.vmap(lambda features: readout(features[None], *weights)[0])(features)


def _logits_vjp(readout: Callable, features: Array, weights: Any) -> tuple[Array, Callable]:
    """`grouped_logits` and its pullback to the features and, per group (G, ...), the weights."""

    def pull_group(features: Array, d_logits_RV: Array) -> tuple[Array, Any]:
        return jax.vjp(lambda x, w: readout(x[None], *w)[0], features, weights)[1](d_logits_RV)

    if len(features) > 1:
        # Differentiated group by group, so that vmap keeps the weights' gradients of the groups apart.
        return grouped_logits(readout, features, weights), lambda d_logits: jax.vmap(pull_group)(features, d_logits)
    logits_GRV, pull = jax.vjp(lambda x, w: readout(x, *w), features, weights)

    def pull_single(d_logits_GRV: Array) -> tuple[Array, Any]:
        d_features, d_weights = pull(d_logits_GRV)
        return d_features, jax.tree.map(lambda leaf: leaf[None], d_weights)

    return logits_GRV, pull_single


def run_with_gradients(
    readout: Callable, loop: ChunkLoop, inputs: tuple[Any, ...], differentiate: Callable, initial: Any
) -> tuple[Any, tuple[Any, Array]]:
    """Run a loop of carry, d_logits <- differentiate(carry, first position, logits, labels, valid mask) over chunks.

    inputs: (weights, features, labels, valid mask). Returns the last carry and the gradients of weights and features.
    """
    weights, features, label_GM, valid_GM = inputs

    def chunk(carry, first, features, label_GR, valid_GR):
        carry, d_features, d_weights = carry
        logits_GRV, pull = _logits_vjp(readout, features, weights)
        carry, d_logits_GRV = differentiate(carry, first, logits_GRV, label_GR, valid_GR)
        d_chunk, d_chunk_weights = pull(d_logits_GRV)
        d_features = jax.lax.dynamic_update_slice_in_dim(d_features, d_chunk, first, 1)
        return carry, d_features, jax.tree.map(lambda a, b: constrain_groups(a + b), d_weights, d_chunk_weights)

    # One gradient of the weights per group, on its device: they are summed over devices once, after the loop.
    d_weights = jax.tree.map(lambda w: constrain_groups(jnp.zeros_like(w, shape=(len(features), *w.shape))), weights)
    initial = initial, loop.pad(jnp.zeros_like(features)), d_weights
    last, d_features, d_weights = loop.run(chunk, features, label_GM, valid_GM, initial)
    d_weights = jax.tree.map(lambda d_weights_G: d_weights_G.sum(0), d_weights)
    return last, (d_weights, loop.inverse(valid_GM)(d_features))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_cross_entropy(readout, options, weights, features, label_GM, valid_GM, never_V):
    smoothing, loop = options

    def chunk(carry, first, features, label_GR, valid_GR):
        logits_GRV = grouped_logits(readout, features, weights)
        sums_G, *_ = _chunk_sums(logits_GRV, label_GR, valid_GR, smoothing, never_V)
        return jax.tree.map(jnp.add, carry, sums_G)

    sums_G = loop.run(chunk, features, label_GM, valid_GM, (jnp.zeros(len(features)),) * 3)
    return jax.tree.map(jnp.sum, sums_G)


def _chunked_cross_entropy_fwd(readout, options, weights, features, label_GM, valid_GM, never_V):
    smoothing, loop = options

    def differentiate(all_sums_G, first, logits_GRV, label_GR, valid_GR):
        sums_G, exp_GRV, sum_GR = _chunk_sums(logits_GRV, label_GR, valid_GR, smoothing, never_V)
        # d_logits = softmax - target, with (1 - e) + e / V at the label and e / V elsewhere; 0 at invalid positions.
        valid = valid_GR.astype(logits_GRV.dtype)
        uniform = smoothing / logits_GRV.shape[-1]
        is_label_GRV = jax.lax.broadcasted_iota(label_GR.dtype, logits_GRV.shape, 2) == label_GR[..., None]
        label_GR1, other = (valid * (1.0 - smoothing + uniform))[..., None], (valid * uniform)[..., None]
        if smoothing:  # V counts the outcomes that can be
            share = _possible_share(never_V)
            label_GR1 += other * (share - 1.0)
            other = other * jnp.where(never_V, 0.0, share)[None, None]
        d_logits_GRV = exp_GRV * (valid / sum_GR)[..., None] - jnp.where(is_label_GRV, label_GR1, other)
        return jax.tree.map(jnp.add, all_sums_G, sums_G), d_logits_GRV

    inputs = weights, features, label_GM, valid_GM
    sums_G, gradients = run_with_gradients(readout, loop, inputs, differentiate, (jnp.zeros(len(features)),) * 3)
    return jax.tree.map(jnp.sum, sums_G), gradients


def _chunked_cross_entropy_bwd(readout, options, residuals: Any, cotangents: tuple[Array, ...]):
    # The residuals are the gradients already; only the loss's own cotangent, a scalar, is missing.
    d_weights, d_features = jax.tree.map(lambda grad: (grad * cotangents[0]).astype(grad.dtype), residuals)
    return d_weights, d_features, None, None, None


_chunked_cross_entropy.defvjp(_chunked_cross_entropy_fwd, _chunked_cross_entropy_bwd)


def classification_loss(logits: Array, label: Array, label_smoothing: float = 0.0) -> Loss:
    """Return the cross-entropy of logits (..., C) against (1 - e) one-hot + e uniform; a label of -1 is ignored."""
    log_p = jax.nn.log_softmax(logits)
    label_log_p = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[..., None], -1)[..., 0]
    is_labeled = (label >= 0) & ~(label_log_p <= NEVER_LOGIT / 2)  # NaN counts
    total = nll = -jnp.where(is_labeled, label_log_p, 0.0).sum()
    if label_smoothing:
        is_never = logits <= NEVER_LOGIT / 2
        mean = jnp.where(is_never, 0.0, log_p).mean(-1) * _possible_share(is_never)
        uniform = -jnp.where(is_labeled, mean, 0.0).sum()
        total = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    return Loss(total=total, nll=nll, count=is_labeled.sum(dtype=jnp.float32))

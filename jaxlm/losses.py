"""Losses as (sum, count) pairs: added over micro-batches, devices and segments, and divided once, last.

Shape letters of this file: G groups of tokens, M = B T / G positions of a group, R of them in one chunk.

The loss of labels that few enough logits stand for to be held at once: tags of words, classes of texts.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.sharding import UNCONSTRAINED, constrain, num_shards
from jaxlm.types import Array, State

MAX_CHUNK_LOGITS = 2**21
"""Logits that one chunk of the loss may hold on one device: 8 MiB of float32, about a core's share of cache."""

MAX_CHUNK_LOGITS_WIDE = 2**25
"""The same where the features are wide, 128 MiB."""


@struct.dataclass
class Loss:
    """Sums over the valid tokens, in nats. Training minimises `total`; `nll`, the plain negative log-likelihood, is a
    figure for the log and has no gradient. `state` is what the next batch goes on from, where streams are carried."""

    total: Array
    nll: Array
    count: Array
    state: State = None


def cross_entropy(
    readout: Callable[[Array], Array],
    features_BTD: Array,
    label_BT: Array,
    valid_BT: Array,
    label_smoothing: float = 0.0,
) -> Loss:
    """Cross-entropy of the labels against (1 - e) one-hot + e uniform (Szegedy et al. 2016, section 7).

    The logits of all B x T positions never exist together: the loss walks over the valid positions in chunks and, in
    the same pass, turns each chunk's logits into the gradient of its features and of the readout's parameters. Nothing
    is recomputed, nothing of size B x T x V is kept, whatever the readout is, and padding costs nothing.

    Where tokens may be spread over G devices, each of G groups of neighbours is walked by itself and all in step, so
    that no position leaves its device, and what devices have in common is added up once, at the end. The number of
    steps is that of the fullest group.
    """
    groups = [
        math.gcd(size, num_shards(features_BTD, name))
        for size, name in zip(label_BT.shape, ("batch", "sequence"), strict=True)
    ]
    features, label_GM, valid_GM = (_to_groups(x, *groups) for x in (features_BTD, label_BT, valid_BT))
    vocab = jax.eval_shape(readout, features[:1, :1]).shape[-1]
    size = _chunk_size(label_GM.shape[1], vocab, features.shape[-1])
    readout, weights = jax.closure_convert(readout, features[:1, :size])
    total, nll = _chunked_cross_entropy(readout, label_smoothing, size, weights, features, label_GM, valid_GM)
    return Loss(total, nll, valid_BT.sum(dtype=jnp.float32))


def _to_groups(x: Array, row_groups: int, position_groups: int) -> Array:
    """(B, T, ...) -> (G, M, ...), the groups in the order in which devices hold rows and positions."""
    (rows, length), more = x.shape[:2], x.shape[2:]
    if position_groups == 1:
        return x.reshape(row_groups, -1, *more)
    x = x.reshape(row_groups, rows // row_groups, position_groups, length // position_groups, *more)
    return _constrain_groups(jnp.swapaxes(x, 1, 2).reshape(row_groups * position_groups, -1, *more))


def _constrain_groups(x: Array) -> Array:
    return constrain(x, "group", *(UNCONSTRAINED,) * (x.ndim - 1))


def _chunk_size(positions: int, vocab: int, width: int) -> int:
    """Positions of a chunk: as many as `LOGITS_IN_FLIGHT` allows, but not much fewer than the features are wide.

    Every chunk reads the readout's table and adds to its gradient, V x D numbers each, against R x V logits: with R far
    below D the tables would cost more than the logits (a third of the loss at V = 10,000, D = 650).
    """
    size = max(MAX_CHUNK_LOGITS // vocab, min(width, MAX_CHUNK_LOGITS_WIDE // vocab), 1)
    return -(-positions // max(round(positions / size), 1))


@struct.dataclass
class _LoopCarry:
    """What the loop over chunks carries. `d_features` is in the order of the walk, `d_weights` has each group's part.

    Gradients may be None.
    """

    total_G: Array
    nll_G: Array
    d_features: Array | None = None
    d_weights: Any = None


def _loop_over_chunks(
    chunk: Callable, size: int, features: Array, label_GM: Array, valid_GM: Array, initial: _LoopCarry
) -> _LoopCarry:
    """walk <- chunk(walk, first position, its features, labels, valid mask), over the valid positions of each group."""
    count_G1 = valid_GM.sum(1, keepdims=True, dtype=jnp.int32)
    spare = -label_GM.shape[1] % size
    order = jnp.pad(_valid_first(valid_GM), ((0, 0), (0, spare)))
    features, label_GM = _gather_positions(features, order), _gather_positions(label_GM, order)

    def step(index: Array, walk: _LoopCarry) -> _LoopCarry:
        first = index * size
        part, label_GR = (jax.lax.dynamic_slice_in_dim(x, first, size, 1) for x in (features, label_GM))
        return chunk(walk, first, part, label_GR, first + jnp.arange(size)[None] < count_G1)

    return jax.lax.fori_loop(0, (count_G1.max() + size - 1) // size, step, initial)


def _valid_first(valid_GM: Array) -> Array:
    """The positions of each group: first the valid ones, then the others."""
    return jnp.argsort(~valid_GM, axis=1, stable=True)


_gather_positions = jax.vmap(lambda x, index_M: jnp.take(x, index_M, axis=0, mode="clip"))


def _chunk_sums(
    logits_GRV: Array, label_GR: Array, valid_GR: Array, smoothing: float
) -> tuple[Array, Array, Array, Array]:
    """Smoothed and plain sums of one chunk (G,); exp(logits - highest) and its sum over V, of which the gradient is."""
    highest_GR1 = logits_GRV.max(-1, keepdims=True)
    exp_GRV = jnp.exp(logits_GRV - highest_GR1)
    sum_GR = exp_GRV.sum(-1)
    log_z_GR = jnp.log(sum_GR) + highest_GR1[..., 0]
    picked_GR = jnp.take_along_axis(logits_GRV, label_GR[..., None], axis=-1)[..., 0]
    total_G = nll_G = jnp.where(valid_GR, log_z_GR - picked_GR, 0.0).sum(1)
    if smoothing:
        uniform_G = jnp.where(valid_GR, log_z_GR - logits_GRV.mean(-1), 0.0).sum(1)
        total_G = (1.0 - smoothing) * nll_G + smoothing * uniform_G
    return total_G, nll_G, exp_GRV, sum_GR


def _grouped_logits(readout: Callable, features: Array, weights: Any) -> Array:
    """(G, R, V) from a readout that takes one group, (1, R, D)."""
    if len(features) == 1:
        return readout(features, *weights)
    return jax.vmap(lambda features: readout(features[None], *weights)[0])(features)


def _logits_vjp(readout: Callable, features: Array, weights: Any) -> tuple[Array, Callable]:
    """`_logits`, and what gives the gradients of the features and, each group's own part (G, ...), of the weights."""

    def one(features: Array, d_logits_RV: Array) -> tuple[Array, Any]:
        return jax.vjp(lambda x, w: readout(x[None], *w)[0], features, weights)[1](d_logits_RV)

    if len(features) > 1:
        return _grouped_logits(readout, features, weights), lambda d_logits_GRV: jax.vmap(one)(features, d_logits_GRV)
    logits_GRV, pull = jax.vjp(lambda x, w: readout(x, *w), features, weights)

    def alone(d_logits_GRV: Array) -> tuple[Array, Any]:
        d_features, d_weights = pull(d_logits_GRV)
        return d_features, jax.tree.map(lambda d_weights: d_weights[None], d_weights)

    return logits_GRV, alone


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked_cross_entropy(readout, smoothing, size, weights, features, label_GM, valid_GM):
    def chunk(walk, first, features, label_GR, valid_GR):
        total_G, nll_G, *_ = _chunk_sums(_grouped_logits(readout, features, weights), label_GR, valid_GR, smoothing)
        return _LoopCarry(walk.total_G + total_G, walk.nll_G + nll_G)

    zeros_G = jnp.zeros(len(features))
    walk = _loop_over_chunks(chunk, size, features, label_GM, valid_GM, _LoopCarry(zeros_G, zeros_G))
    return walk.total_G.sum(), walk.nll_G.sum()


def _chunked_cross_entropy_fwd(readout, smoothing, size, weights, features, label_GM, valid_GM):
    def chunk(walk, first, features, label_GR, valid_GR):
        logits_GRV, pull = _logits_vjp(readout, features, weights)
        total_G, nll_G, exp_GRV, sum_GR = _chunk_sums(logits_GRV, label_GR, valid_GR, smoothing)
        one_GR = valid_GR.astype(logits_GRV.dtype)
        rest = smoothing / logits_GRV.shape[-1]
        hit_GRV = jax.lax.broadcasted_iota(label_GR.dtype, logits_GRV.shape, 2) == label_GR[..., None]
        hit_GR1, miss_GR1 = (one_GR * (1.0 - smoothing + rest))[..., None], (one_GR * rest)[..., None]
        d_logits_GRV = exp_GRV * (one_GR / sum_GR)[..., None] - jnp.where(hit_GRV, hit_GR1, miss_GR1)
        d_part, d_weights = pull(d_logits_GRV)
        d_features = jax.lax.dynamic_update_slice_in_dim(walk.d_features, d_part, first, 1)
        d_weights = jax.tree.map(lambda some, more: _constrain_groups(some + more), walk.d_weights, d_weights)
        return _LoopCarry(walk.total_G + total_G, walk.nll_G + nll_G, d_features, d_weights)

    spare = [(0, 0), (0, -label_GM.shape[1] % size)] + [(0, 0)] * (features.ndim - 2)
    zeros_G, d_features = jnp.zeros(len(features)), jnp.pad(jnp.zeros_like(features), spare)
    d_weights = jax.tree.map(lambda w: _constrain_groups(jnp.zeros_like(w, shape=(len(features), *w.shape))), weights)
    begin = _LoopCarry(zeros_G, zeros_G, d_features, d_weights)
    walk = _loop_over_chunks(chunk, size, features, label_GM, valid_GM, begin)
    place_GM = jnp.argsort(_valid_first(valid_GM), axis=1)
    d_weights = jax.tree.map(lambda d_weights_G: d_weights_G.sum(0), walk.d_weights)
    return (walk.total_G.sum(), walk.nll_G.sum()), (d_weights, _gather_positions(walk.d_features, place_GM))


def _chunked_cross_entropy_bwd(readout, smoothing, size, residuals: Any, cotangents: tuple[Array, Array]):
    d_weights, d_features = jax.tree.map(lambda grad: (grad * cotangents[0]).astype(grad.dtype), residuals)
    return d_weights, d_features, None, None


_chunked_cross_entropy.defvjp(_chunked_cross_entropy_fwd, _chunked_cross_entropy_bwd)


def classification_loss(logits: Array, label: Array, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of logits (..., C) against (1 - e) one-hot + e uniform, where the label (...) is not -1."""
    labelled, log_p = label >= 0, jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[..., None], -1)[..., 0]
    total = nll = -jnp.where(labelled, picked, 0.0).sum()
    if label_smoothing:
        uniform = -jnp.where(labelled, log_p.mean(-1), 0.0).sum()
        total = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    return Loss(total, nll, labelled.sum(dtype=jnp.float32))

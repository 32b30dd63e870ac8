"""Losses as (sum, count) pairs: added over micro-batches, devices and segments, and divided once, last.

Shape letters of this file: G groups of rows, M = B T / G positions of a group, R of them in one chunk.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.parallel import devices_of
from jaxlm.types import Array, State

LOGITS_IN_FLIGHT = 2**21
"""Logits that one chunk of the loss may hold on one device: 8 MiB of float32, about a core's share of cache."""
WIDE_LOGITS = 2**25
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
    readout: Callable[[Array], Array], features_BTD: Array, label_BT: Array, valid_BT: Array, smoothing: float = 0.0
) -> Loss:
    """Cross-entropy of the labels against (1 - e) one-hot + e uniform (Szegedy et al. 2016, section 7).

    The logits of all B x T positions never exist together: the loss walks over the valid positions in chunks and, in
    the same pass, turns each chunk's logits into the gradient of its features and of the readout's parameters. Nothing
    is recomputed, nothing of size B x T x V is kept, whatever the readout is, and padding costs nothing.

    Where rows may be spread over G devices, each of G groups of neighbouring rows is walked by itself and all in step,
    so that no position leaves its device; the number of steps is that of the fullest group.
    """
    groups = math.gcd(label_BT.shape[0], devices_of(features_BTD))
    features, label_GM, valid_GM = (
        x.reshape(groups, -1, *x.shape[2:]) for x in (features_BTD, label_BT, valid_BT)
    )  # fmt: skip
    vocab = jax.eval_shape(readout, features[:1, :1]).shape[-1]
    size = _chunk_size(label_GM.shape[1], vocab, features.shape[-1])
    readout, weights = jax.closure_convert(readout, features[:, :size])
    total, nll = _chunked(readout, smoothing, size, weights, features, label_GM, valid_GM)
    return Loss(total, nll, valid_BT.sum(dtype=jnp.float32))


def _chunk_size(positions: int, vocab: int, width: int) -> int:
    """Positions of a chunk: as many as `LOGITS_IN_FLIGHT` allows, but not much fewer than the features are wide.

    Every chunk reads the readout's table and adds to its gradient, V x D numbers each, against R x V logits: with R far
    below D the tables would cost more than the logits (a third of the loss at V = 10,000, D = 650).
    """
    size = max(LOGITS_IN_FLIGHT // vocab, min(width, WIDE_LOGITS // vocab), 1)
    return -(-positions // max(round(positions / size), 1))


@struct.dataclass
class _Walk:
    """What the loop over chunks carries. `d_features` is in the order of the walk; gradients may be None."""

    total: Array
    nll: Array
    d_features: Array | None = None
    d_weights: Any = None


def _walk(chunk: Callable, size: int, features: Array, label_GM: Array, valid_GM: Array, begin: _Walk) -> _Walk:
    """walk <- chunk(walk, first position, its features, labels, valid mask), over the valid positions of each group."""
    count_G1 = valid_GM.sum(1, keepdims=True, dtype=jnp.int32)
    spare = -label_GM.shape[1] % size
    order = jnp.pad(_valid_first(valid_GM), ((0, 0), (0, spare)))
    features, label_GM = _take(features, order), _take(label_GM, order)

    def step(index: Array, walk: _Walk) -> _Walk:
        first = index * size
        part, label_GR = (jax.lax.dynamic_slice_in_dim(x, first, size, 1) for x in (features, label_GM))
        return chunk(walk, first, part, label_GR, first + jnp.arange(size)[None] < count_G1)

    return jax.lax.fori_loop(0, (count_G1.max() + size - 1) // size, step, begin)


def _valid_first(valid_GM: Array) -> Array:
    """The positions of each group: first the valid ones, then the others."""
    return jnp.argsort(~valid_GM, axis=1, stable=True)


_take = jax.vmap(lambda x, index_M: jnp.take(x, index_M, axis=0, mode="clip"))


def _sums(logits_GRV: Array, label_GR: Array, valid_GR: Array, smoothing: float) -> tuple[Array, Array, Array, Array]:
    """Smoothed and plain sums of one chunk; exp(logits - highest) and its sum over V, of which the gradient is made."""
    highest_GR1 = logits_GRV.max(-1, keepdims=True)
    exp_GRV = jnp.exp(logits_GRV - highest_GR1)
    sum_GR = exp_GRV.sum(-1)
    log_z_GR = jnp.log(sum_GR) + highest_GR1[..., 0]
    picked_GR = jnp.take_along_axis(logits_GRV, label_GR[..., None], axis=-1)[..., 0]
    total = nll = jnp.sum(jnp.where(valid_GR, log_z_GR - picked_GR, 0.0))
    if smoothing:
        uniform = jnp.sum(jnp.where(valid_GR, log_z_GR - logits_GRV.mean(-1), 0.0))
        total = (1.0 - smoothing) * nll + smoothing * uniform
    return total, nll, exp_GRV, sum_GR


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(readout, smoothing, size, weights, features, label_GM, valid_GM):
    def chunk(walk, first, features, label_GR, valid_GR):
        total, nll, *_ = _sums(readout(features, *weights), label_GR, valid_GR, smoothing)
        return _Walk(walk.total + total, walk.nll + nll)

    walk = _walk(chunk, size, features, label_GM, valid_GM, _Walk(jnp.zeros(()), jnp.zeros(())))
    return walk.total, walk.nll


def _chunked_forward(readout, smoothing, size, weights, features, label_GM, valid_GM):
    def chunk(walk, first, features, label_GR, valid_GR):
        logits_GRV, pullback = jax.vjp(lambda x, w: readout(x, *w), features, weights)
        total, nll, exp_GRV, sum_GR = _sums(logits_GRV, label_GR, valid_GR, smoothing)
        one_GR = valid_GR.astype(logits_GRV.dtype)
        rest = smoothing / logits_GRV.shape[-1]
        hit_GRV = jax.lax.broadcasted_iota(label_GR.dtype, logits_GRV.shape, 2) == label_GR[..., None]
        hit_GR1, miss_GR1 = (one_GR * (1.0 - smoothing + rest))[..., None], (one_GR * rest)[..., None]
        d_logits_GRV = exp_GRV * (one_GR / sum_GR)[..., None] - jnp.where(hit_GRV, hit_GR1, miss_GR1)
        d_part, d_weights = pullback(d_logits_GRV)
        d_features = jax.lax.dynamic_update_slice_in_dim(walk.d_features, d_part, first, 1)
        return _Walk(walk.total + total, walk.nll + nll, d_features, jax.tree.map(jnp.add, walk.d_weights, d_weights))

    spare = [(0, 0), (0, -label_GM.shape[1] % size)] + [(0, 0)] * (features.ndim - 2)
    d_features, d_weights = jnp.pad(jnp.zeros_like(features), spare), jax.tree.map(jnp.zeros_like, weights)
    begin = _Walk(jnp.zeros(()), jnp.zeros(()), d_features, d_weights)
    walk = _walk(chunk, size, features, label_GM, valid_GM, begin)
    place_GM = jnp.argsort(_valid_first(valid_GM), axis=1)
    return (walk.total, walk.nll), (walk.d_weights, _take(walk.d_features, place_GM))


def _chunked_backward(readout, smoothing, size, residuals: Any, cotangents: tuple[Array, Array]):
    d_weights, d_features = jax.tree.map(lambda grad: (grad * cotangents[0]).astype(grad.dtype), residuals)
    return d_weights, d_features, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)

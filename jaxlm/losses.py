"""Losses as (sum, count) pairs: added over micro-batches, devices and segments, and divided once, last."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.types import Array, State

LOGITS_IN_FLIGHT = 2**21
"""Logits that one chunk of the loss may hold: 8 MiB of float32, about a core's share of cache."""


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

    The logits of all B x T positions never exist together: the loss walks over chunks of T and, in the same pass, turns
    each chunk's logits into the gradient of its features and of the readout's parameters. Nothing is recomputed and
    nothing of size B x T x V is kept, whatever the readout is.
    """
    rows, length = label_BT.shape
    vocab = jax.eval_shape(readout, features_BTD[:1, :1]).shape[-1]
    width = _chunk_width(length, max(1, LOGITS_IN_FLIGHT // (rows * vocab)))
    readout, weights = jax.closure_convert(readout, features_BTD[:, :width])
    chunks = tuple(_split(x, length // width) for x in (features_BTD, label_BT, valid_BT))
    total, nll = _chunked(readout, smoothing, weights, *chunks)
    return Loss(total, nll, valid_BT.sum(dtype=jnp.float32))


def _chunk_width(length: int, most: int) -> int:
    """The largest divisor of `length` that is at most `most`."""
    return max(width for width in range(1, min(length, most) + 1) if length % width == 0)


def _split(x_BT: Array, pieces: int) -> Array:
    """(B, T, ...) -> (pieces, B, T / pieces, ...)."""
    return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], pieces, -1, *x_BT.shape[2:]), 1, 0)


def _sums(logits_BTV: Array, label_BT: Array, valid_BT: Array, smoothing: float) -> tuple[Array, Array, Array, Array]:
    """Smoothed and plain sums of one chunk; exp(logits - highest) and its sum over V, of which the gradient is made."""
    highest_BT1 = logits_BTV.max(-1, keepdims=True)
    exp_BTV = jnp.exp(logits_BTV - highest_BT1)
    sum_BT = exp_BTV.sum(-1)
    log_z_BT = jnp.log(sum_BT) + highest_BT1[..., 0]
    picked_BT = jnp.take_along_axis(logits_BTV, label_BT[..., None], axis=-1)[..., 0]
    total = nll = jnp.sum(jnp.where(valid_BT, log_z_BT - picked_BT, 0.0))
    if smoothing:
        uniform = jnp.sum(jnp.where(valid_BT, log_z_BT - logits_BTV.mean(-1), 0.0))
        total = (1.0 - smoothing) * nll + smoothing * uniform
    return total, nll, exp_BTV, sum_BT


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(readout, smoothing, weights, features, label, valid):
    def chunk(sums, part):
        features_BTD, label_BT, valid_BT = part
        total, nll, *_ = _sums(readout(features_BTD, *weights), label_BT, valid_BT, smoothing)
        return (sums[0] + total, sums[1] + nll), None

    return jax.lax.scan(chunk, (jnp.zeros(()), jnp.zeros(())), (features, label, valid))[0]


def _chunked_forward(readout, smoothing, weights, features, label, valid):
    def chunk(carry, part):
        sums, grads = carry
        features_BTD, label_BT, valid_BT = part
        logits_BTV, pullback = jax.vjp(lambda x, w: readout(x, *w), features_BTD, weights)
        total, nll, exp_BTV, sum_BT = _sums(logits_BTV, label_BT, valid_BT, smoothing)
        one_BT = valid_BT.astype(logits_BTV.dtype)
        rest = smoothing / logits_BTV.shape[-1]
        hit_BTV = jax.lax.broadcasted_iota(label_BT.dtype, logits_BTV.shape, 2) == label_BT[..., None]
        hit_BT1, miss_BT1 = (one_BT * (1.0 - smoothing + rest))[..., None], (one_BT * rest)[..., None]
        d_logits_BTV = exp_BTV * (one_BT / sum_BT)[..., None] - jnp.where(hit_BTV, hit_BT1, miss_BT1)
        d_features_BTD, d_weights = pullback(d_logits_BTV)
        return ((sums[0] + total, sums[1] + nll), jax.tree.map(jnp.add, grads, d_weights)), d_features_BTD

    zeros = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, weights)
    (sums, d_weights), d_features = jax.lax.scan(chunk, zeros, (features, label, valid))
    return sums, (d_weights, d_features)


def _chunked_backward(readout, smoothing, residuals: Any, cotangents: tuple[Array, Array]):
    d_weights, d_features = jax.tree.map(lambda grad: (grad * cotangents[0]).astype(grad.dtype), residuals)
    return d_weights, d_features, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)

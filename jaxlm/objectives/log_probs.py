"""Log-probabilities of single tokens that can be differentiated, without the logits of all positions at once.

`cross_entropy` (`jaxlm.losses`) needs the sum alone, so that its forward pass computes the gradient too. The losses of
preferences and rewards are functions of the log-probabilities: the weight of each token is known after the forward
pass only, which keeps one normalizer per token; the backward pass computes the logits of each chunk once more.
Shape letters as in `jaxlm.losses`: G groups of tokens, M = B T / G positions per group, R positions per chunk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.losses import chunk_inputs, grouped_logits, logits_vjp
from jaxlm.nn.layers.position_chunks import constrain_groups, from_groups
from jaxlm.types import Array


def token_log_probs(readout: Callable[[Array], Array], features_BTD: Array, label_BT: Array, valid_BT: Array) -> Array:
    """Return log p(label_BT), float32 (B, T) in nats: 0 at invalid positions and at labels that cannot be.

    `readout` maps features (B, T, D) to float32 logits (B, T, V). Positions that are not valid cost nothing.
    """
    converted, loop, (*inputs, _), groups = chunk_inputs(readout, features_BTD, label_BT, valid_BT, is_sparse=True)
    return from_groups(_chunked_log_probs(converted, loop, *inputs), label_BT.shape, *groups)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_log_probs(readout, loop, weights, features, label_GM, valid_GM):
    return _chunked_log_probs_fwd(readout, loop, weights, features, label_GM, valid_GM)[0]


def _chunked_log_probs_fwd(readout, loop, weights, features, label_GM, valid_GM):
    def chunk(carry, first, features, label_GR, valid_GR):
        logits_GRV = grouped_logits(readout, features, weights)
        log_z_GR = jax.nn.logsumexp(logits_GRV, axis=-1)
        label_logit_GR = jnp.take_along_axis(logits_GRV, label_GR[..., None], axis=-1)[..., 0]
        log_prob_GR = jnp.where(valid_GR, label_logit_GR - log_z_GR, 0.0)
        return tuple(_update(whole, part, first) for whole, part in zip(carry, (log_prob_GR, log_z_GR), strict=True))

    zeros_GM = loop.pad(jnp.zeros(label_GM.shape))
    initial = (zeros_GM, zeros_GM)
    # Both in the order of the loop, valid positions first.
    log_prob_GM, log_z_GM = loop.run(chunk, features, label_GM, valid_GM, initial)
    log_prob_GM = loop.inverse(valid_GM)(log_prob_GM)
    return log_prob_GM, (weights, features, label_GM, valid_GM, log_z_GM)


def _chunked_log_probs_bwd(readout, loop, residuals: Any, d_log_prob_GM: Array):
    weights, features, label_GM, valid_GM, log_z_GM = residuals
    d_log_prob_GM = loop.in_order(d_log_prob_GM, valid_GM)

    def chunk(carry, first, features, label_GR, valid_GR):
        d_features, d_weights = carry
        logits_GRV, pull = logits_vjp(readout, features, weights)
        parts = (jax.lax.dynamic_slice_in_dim(x, first, loop.size, 1) for x in (d_log_prob_GM, log_z_GM))
        d_log_prob_GR, log_z_GR = parts
        # d log p(label) / d logits = one-hot - softmax
        is_label_GRV = jax.lax.broadcasted_iota(label_GR.dtype, logits_GRV.shape, 2) == label_GR[..., None]
        softmax_GRV = jnp.exp(logits_GRV - log_z_GR[..., None])
        weight_GR1 = jnp.where(valid_GR, d_log_prob_GR, 0.0)[..., None]
        d_chunk, d_chunk_weights = pull(weight_GR1 * (is_label_GRV - softmax_GRV))
        d_weights = jax.tree.map(lambda a, b: constrain_groups(a + b), d_weights, d_chunk_weights)
        return _update(d_features, d_chunk, first), d_weights

    d_features = loop.pad(jnp.zeros_like(features))
    # One gradient of the weights per group, on its device: they are summed over devices once, after the loop.
    d_weights = jax.tree.map(lambda w: constrain_groups(jnp.zeros_like(w, shape=(len(features), *w.shape))), weights)
    initial = (d_features, d_weights)
    d_features, d_weights = loop.run(chunk, features, label_GM, valid_GM, initial)
    d_weights = jax.tree.map(lambda d_weights_G: d_weights_G.sum(0), d_weights)
    return d_weights, loop.inverse(valid_GM)(d_features), None, None


_chunked_log_probs.defvjp(_chunked_log_probs_fwd, _chunked_log_probs_bwd)


def _update(whole: Array, part: Array, first: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, 1)

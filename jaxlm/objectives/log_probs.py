"""Log-probabilities that can be differentiated, without the logits of all positions at once: of tokens, and of answers.

`cross_entropy` (`jaxlm.losses`) needs the sum alone, so that its forward pass computes the gradient too. The losses of
preferences and rewards are functions of the log-probabilities: the weight of each token is known after the forward
pass only, which keeps one normalizer per token; the backward pass computes the logits of each chunk once more.
Shape letters as in `jaxlm.losses`: G groups of tokens, M = B T / G positions per group, R positions per chunk.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.losses import chunk_inputs, grouped_logits, run_with_gradients
from jaxlm.nn.layers.position_chunks import from_groups
from jaxlm.types import Array, ArrayOrNone, Batch, Params

PAIR_SIDES = ("chosen", "rejected")
"""The two answers of a pair, in the order of axis A."""


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
        parts = zip(carry, (log_prob_GR, log_z_GR), strict=True)
        return tuple(jax.lax.dynamic_update_slice_in_dim(whole, part, first, 1) for whole, part in parts)

    zeros_GM = loop.pad(jnp.zeros(label_GM.shape))
    # Both in the order of the loop, valid positions first.
    log_prob_GM, log_z_GM = loop.run(chunk, features, label_GM, valid_GM, (zeros_GM, zeros_GM))
    log_prob_GM = loop.inverse(valid_GM)(log_prob_GM)
    return log_prob_GM, (weights, features, label_GM, valid_GM, log_z_GM)


def _chunked_log_probs_bwd(readout, loop, residuals: Any, d_log_prob_GM: Array):
    *_, valid_GM, log_z_GM = residuals
    d_log_prob_GM = loop.in_order(d_log_prob_GM, valid_GM)

    def differentiate(carry, first, logits_GRV, label_GR, valid_GR):
        parts = (jax.lax.dynamic_slice_in_dim(x, first, loop.size, 1) for x in (d_log_prob_GM, log_z_GM))
        d_log_prob_GR, log_z_GR = parts
        # d log p(label) / d logits = one-hot - softmax
        is_label_GRV = jax.lax.broadcasted_iota(label_GR.dtype, logits_GRV.shape, 2) == label_GR[..., None]
        softmax_GRV = jnp.exp(logits_GRV - log_z_GR[..., None])
        weight_GR1 = jnp.where(valid_GR, d_log_prob_GR, 0.0)[..., None]
        return carry, weight_GR1 * (is_label_GRV - softmax_GRV)

    _, gradients = run_with_gradients(readout, loop, residuals[:4], differentiate, ())
    return *gradients, None, None


_chunked_log_probs.defvjp(_chunked_log_probs_fwd, _chunked_log_probs_bwd)


@struct.dataclass
class AnswerLogProbs:
    """Of the A = 1 or 2 answers of each row: the sum over its tokens in nats, and their number, EOS counted.

    row_nll_B: mean -log p of all tokens of the first answer's row, the prompt too; None unless it was asked for.
    """

    total_BA: Array
    count_BA: Array
    row_nll_B: ArrayOrNone = None

    @property
    def mean_BA(self) -> Array:
        """Log-probability per token; 0 for a row without an answer."""
        return self.total_BA / jnp.maximum(self.count_BA, 1.0)


def stack_answers(batch: Batch) -> Batch:
    """Return the batch with the other answer of row b as row 2 b + 1: both stay on the device of the row."""
    if batch.other is None:
        return batch
    first = replace(batch, other=None)
    pairs = jax.tree.map(lambda a, b: jnp.stack([a, b], 1), first, with_other_answer(batch))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)  # (B, 2, ...) -> (2 B, ...)


def with_other_answer(batch: Batch) -> Batch:
    """Return the batch of the other answers alone; all else, such as a source, is that of the rows."""
    fields = {name: value for name, value in vars(batch.other).items() if value is not None}
    return replace(batch, **fields, other=None)


def target_features(model: Any, params: Params, rows: Batch, key: Array | None = None) -> Array:
    """Return the features (B, T, D) of the targets; dropout only with a key."""

    def features(module: Any, rows: Batch) -> Array:
        return module.extend(rows.target_BT, module.start(rows, 0), rows.target_valid_BT)[0]

    return model.apply({"params": params}, rows, method=features, rngs=None if key is None else {"dropout": key})


def feature_log_probs(
    model: Any, params: Params, features_BTD: Array, label_BT: Array, scored_BT: Array, temperature: float = 1.0
) -> Array:
    """Return log p(label) under softmax(logits / temperature), float32 (B, T) in nats, 0 where nothing is scored."""
    readout = partial(model.apply, {"params": params}, method="readout")
    scaled = readout if temperature == 1.0 else lambda features: readout(features) / temperature
    return token_log_probs(scaled, features_BTD, label_BT, scored_BT)


def answer_log_probs(
    model: Any, params: Params, batch: Batch, key: Array | None = None, whole_rows: bool = False
) -> AnswerLogProbs:
    """Return the log-probabilities of the answers of a batch, differentiable; dropout only with a key.

    whole_rows: also compute `row_nll_B`, which needs the log-probabilities of the prompts.
    """

    rows = stack_answers(batch)
    mask_RT = rows.label_valid_BT
    features_RTD, scored_RT = target_features(model, params, rows, key), rows.target_valid_BT if whole_rows else mask_RT
    log_prob_RT = feature_log_probs(model, params, features_RTD, rows.label_BT, scored_RT)
    shape = len(batch.target_BT), -1
    total_BA = jnp.where(mask_RT, log_prob_RT, 0.0).sum(1).reshape(shape)
    count_BA = mask_RT.sum(1, dtype=jnp.float32).reshape(shape)
    if not whole_rows:
        return AnswerLogProbs(total_BA, count_BA)
    nll_RA = -log_prob_RT.sum(1) / jnp.maximum(rows.target_valid_BT.sum(1), 1)
    return AnswerLogProbs(total_BA, count_BA, nll_RA.reshape(shape)[:, 0])

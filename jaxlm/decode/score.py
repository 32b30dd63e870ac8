"""Forced decoding: the log-probability of given targets, with the step scores of the searches.

One `extend` reads the whole target. Logits are computed for a few positions at a time, so [B, T, V] is never in memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxlm.decode.logit_masks import log_softmax_parts
from jaxlm.errors import UserError
from jaxlm.types import Array, Batch, Params

MAX_LOGITS = 2**24
"""The most logits in memory at a time (64 MiB of float32), but at least one position a row."""


@struct.dataclass
class TargetScores:
    """Log-probabilities (natural log) of each label, 0 on padding; their sum, and the number of labels in it."""

    token_logprob_BT: Array
    logprob_B: Array
    count_B: Array


def score_targets(model: Any, params: Params, batch: Batch) -> TargetScores:
    """Return log p(label | target up to its position, source) of each label that counts; EOS counts if it is one.

    Raises UserError if the batch lacks a target, labels, or their mask.
    """
    missing = [name for name in ("target_BT", "label_BT", "target_valid_BT") if getattr(batch, name) is None]
    if missing:
        raise UserError(f"the batch lacks {', '.join(missing)}: scoring needs the target, its labels and their mask")
    return _score_jit(model, params, batch)


@functools.partial(jax.jit, static_argnames=("model",))
def _score_jit(model: Any, params: Params, batch: Batch) -> TargetScores:
    target_BT, valid_BT, label_BT = batch.target_BT, batch.target_valid_BT, batch.label_BT
    is_scored_BT = batch.label_valid_BT
    state = model.apply({"params": params}, batch, 0, method="start")
    features_BTD, _ = model.apply({"params": params}, target_BT, state, valid_BT, method="extend")
    logprob_BT = jnp.where(is_scored_BT, label_logprob(model, params, features_BTD, label_BT), 0.0)
    return TargetScores(logprob_BT, logprob_BT.sum(axis=1), is_scored_BT.sum(axis=1))


def label_logprob(model: Any, params: Params, features_BTD: Array, label_BT: Array) -> Array:
    """Return log_softmax(readout(features))[label]_BT, float32, in chunks of T or by a model's own `logprob`."""
    if hasattr(model, "logprob"):
        return model.apply({"params": params}, features_BTD, label_BT, method="logprob")

    def readout(features: Array) -> Array:
        return model.apply({"params": params}, features, method="readout")

    rows, length = label_BT.shape
    size = jax.eval_shape(readout, features_BTD).shape[-1]
    chunk = max(1, min(length, MAX_LOGITS // (rows * size)))
    chunks = -(-length // chunk)  # rounded up: the last chunk is padded
    padding = ((0, 0), (0, chunks * chunk - length))
    label_BT = jnp.pad(label_BT, padding)
    features_BTD = jnp.pad(features_BTD, (*padding, *((0, 0),) * (features_BTD.ndim - 2)))

    def chunk_logprob(index: Array) -> Array:
        features_BCD = lax.dynamic_slice_in_dim(features_BTD, index * chunk, chunk, axis=1)
        label_BC = lax.dynamic_slice_in_dim(label_BT, index * chunk, chunk, axis=1)
        scaled_BCV, norm_BC1 = log_softmax_parts(readout(features_BCD))
        return (jnp.take_along_axis(scaled_BCV, label_BC[:, :, None], axis=2, mode="clip") - norm_BC1)[:, :, 0]

    logprob_NBC = lax.map(chunk_logprob, jnp.arange(chunks))
    # (N chunks, B, C) -> (B, N * C), without the padding
    return jnp.moveaxis(logprob_NBC, 0, 1).reshape(rows, chunks * chunk)[:, :length]

"""The loss of labels that few enough logits stand for to be held at once: tags of words, classes of texts."""

import jax
import jax.numpy as jnp

from jaxlm.losses import Loss
from jaxlm.types import Array


def label_loss(logits: Array, label: Array, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of logits (..., C) against (1 - e) one-hot + e uniform, where the label (...) is not -1."""
    labelled, log_p = label >= 0, jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[..., None], -1)[..., 0]
    total = nll = -jnp.where(labelled, picked, 0.0).sum()
    if smoothing:
        uniform = -jnp.where(labelled, log_p.mean(-1), 0.0).sum()
        total = (1.0 - smoothing) * nll + smoothing * uniform
    return Loss(total, nll, labelled.sum(dtype=jnp.float32))

"""The loss of labels that few enough logits stand for to be held at once: tags of words, classes of texts."""

import jax.numpy as jnp

from jaxlm.losses import Loss, cross_entropy
from jaxlm.types import Array


def label_loss(logits_BSC: Array, label_BS: Array, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of given logits, where the label is not -1: for few classes, whose logits are held at once."""
    labelled_BS = label_BS >= 0
    return cross_entropy(lambda logits: logits, logits_BSC, jnp.maximum(label_BS, 0), labelled_BS, smoothing)

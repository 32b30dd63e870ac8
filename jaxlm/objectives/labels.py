"""What is minimised where a source has labels: of each token, or of the whole text. Counts are of what is labelled."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxlm.losses import Loss, classification_loss
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class TokenClassification:
    """-log p(label_BS): cross-entropy of each labelled token, or the model's own `loss` where it has one (a CRF's is
    of the whole row). `smoothing` is of the labels, for cross-entropy only."""

    label_smoothing: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the tokens whose label is not -1; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        if hasattr(type(model), "loss"):
            return model.apply({"params": params}, batch, self.label_smoothing, method="loss", rngs=rngs)
        logits_BSC = model.apply({"params": params}, batch, rngs=rngs)
        return classification_loss(logits_BSC, batch.token_label_BS, self.label_smoothing)


@dataclass(frozen=True)
class SequenceClassification:
    """-log p(label_B): cross-entropy of the class of each labelled row, with `smoothing` of the labels.

    auxiliary: the weight of the mean -log p(next token) of each row, which a language model with a head learns beside
    (Radford et al. 2018, equation 5: 0.5).
    """

    label_smoothing: float = 0.0
    lm_weight: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the rows whose label is not -1; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        logits_BC, beside = outputs_and_lm_loss(model, params, batch, rngs, self.lm_weight, batch.label_B >= 0)
        loss = classification_loss(logits_BC, batch.label_B, self.label_smoothing)
        return replace(loss, total=loss.total + beside)


@dataclass(frozen=True)
class Regression:
    """(label_B - number told)^2 of each row that has one; `auxiliary` as in `Class`."""

    lm_weight: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the rows whose number is not NaN; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        asked_B = ~jnp.isnan(batch.label_B)
        number_B1, beside = outputs_and_lm_loss(model, params, batch, rngs, self.lm_weight, asked_B)
        error = jnp.where(asked_B, (jnp.where(asked_B, batch.label_B, 0.0) - number_B1[:, 0]) ** 2, 0.0).sum()
        return Loss(error + beside, error, asked_B.sum(dtype=jnp.float32))


def outputs_and_lm_loss(
    model: Any, params: Params, batch: Batch, rngs: Any, lm_weight: float, has_label_B: Array
) -> tuple[Array, Array | float]:
    """What a model says of each row, and the weighted auxiliary loss of the rows that are asked for, summed."""
    if not lm_weight:
        return model.apply({"params": params}, batch, rngs=rngs), 0.0
    said, nll_B = model.apply({"params": params}, batch, method="logits_and_lm_loss", rngs=rngs)
    return said, lm_weight * jnp.where(has_label_B, nll_B, 0.0).sum()

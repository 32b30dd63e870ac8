"""Supervised objectives for labeled sources: a class per token, a class per row, or a number per row."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxlm.losses import Loss, classification_loss
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class TokenClassification:
    """Cross-entropy -log p(token_label_BS) of every labeled token, or the model's own `loss` (a CRF's, per row)."""

    label_smoothing: float = 0.0

    learns_from: ClassVar[str] = "label"

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the tokens whose label is not -1; dropout only with a key."""
        rngs = None if key is None else {"dropout": key}
        if hasattr(type(model), "loss"):
            return model.apply({"params": params}, batch, self.label_smoothing, method="loss", rngs=rngs)
        logits_BSC = model.apply({"params": params}, batch, rngs=rngs)
        return classification_loss(logits_BSC, batch.token_label_BS, self.label_smoothing)


@dataclass(frozen=True)
class SequenceClassification:
    """Cross-entropy -log p(class_B) of every labeled row.

    Attributes:
      label_smoothing: weight of the uniform distribution in the target distribution.
      lm_weight: weight of the auxiliary language model loss, the mean -log p(next token) of each labeled row
        (Radford et al. 2018, equation 5: 0.5).
    """

    label_smoothing: float = 0.0
    lm_weight: float = 0.0

    learns_from: ClassVar[str] = "class"

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the rows whose class is not -1; dropout only with a key."""
        is_labeled_B = batch.class_B >= 0
        logits_BC, lm_loss = _outputs_and_lm_loss(model, params, batch, key, self.lm_weight, is_labeled_B)
        loss = classification_loss(logits_BC, batch.class_B, self.label_smoothing)
        return replace(loss, total=loss.total + lm_loss)


@dataclass(frozen=True)
class Regression:
    """Squared error (value_B - prediction)^2 of every labeled row; `lm_weight` as in `SequenceClassification`."""

    lm_weight: float = 0.0

    learns_from: ClassVar[str] = "number"

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the rows whose value is not NaN; dropout only with a key."""
        is_labeled_B = ~jnp.isnan(batch.value_B)
        output_B1, lm_loss = _outputs_and_lm_loss(model, params, batch, key, self.lm_weight, is_labeled_B)
        # NaN is replaced before the subtraction: the gradient of a masked NaN would be NaN as well.
        error_B = (jnp.where(is_labeled_B, batch.value_B, 0.0) - output_B1[:, 0]) ** 2
        error = jnp.where(is_labeled_B, error_B, 0.0).sum()
        return Loss(total=error + lm_loss, nll=error, count=is_labeled_B.sum(dtype=jnp.float32))


def _outputs_and_lm_loss(
    model: Any, params: Params, batch: Batch, key: Array | None, lm_weight: float, is_labeled_B: Array
) -> tuple[Array, Array | float]:
    """The outputs of the head (B, C), and the weighted language model loss summed over the labeled rows."""
    rngs = None if key is None else {"dropout": key}
    if not lm_weight:
        return model.apply({"params": params}, batch, rngs=rngs), 0.0
    outputs_BC, nll_B = model.apply({"params": params}, batch, method="logits_and_lm_loss", rngs=rngs)
    return outputs_BC, lm_weight * jnp.where(is_labeled_B, nll_B, 0.0).sum()

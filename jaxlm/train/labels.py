"""What is minimised where a source has labels: of each token, or of the whole text. Counts are of what is labelled."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxlm.label_loss import label_loss
from jaxlm.losses import Loss
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class Labels:
    """-log p(label_BS): cross-entropy of each labelled token, or the model's own `loss` where it has one (a CRF's is
    of the whole row). `smoothing` is of the labels, for cross-entropy only."""

    smoothing: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the tokens whose label is not -1; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        if hasattr(type(model), "loss"):
            return model.apply({"params": params}, batch, self.smoothing, method="loss", rngs=rngs)
        logits_BSC = model.apply({"params": params}, batch, rngs=rngs)
        return label_loss(logits_BSC, batch.label_BS, self.smoothing)


@dataclass(frozen=True)
class Class:
    """-log p(label_B): cross-entropy of the class of each labelled row, with `smoothing` of the labels.

    auxiliary: the weight of the mean -log p(next token) of each row, which a language model with a head learns beside
    (Radford et al. 2018, equation 5: 0.5).
    """

    smoothing: float = 0.0
    auxiliary: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the rows whose label is not -1; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        logits_BC, beside = told(model, params, batch, rngs, self.auxiliary, batch.label_B >= 0)
        loss = label_loss(logits_BC, batch.label_B, self.smoothing)
        return replace(loss, total=loss.total + beside)


@dataclass(frozen=True)
class Number:
    """(label_B - number told)^2 of each row that has one; `auxiliary` as in `Class`."""

    auxiliary: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the rows whose number is not NaN; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        asked_B = ~jnp.isnan(batch.label_B)
        number_B1, beside = told(model, params, batch, rngs, self.auxiliary, asked_B)
        error = jnp.where(asked_B, (jnp.where(asked_B, batch.label_B, 0.0) - number_B1[:, 0]) ** 2, 0.0).sum()
        return Loss(error + beside, error, asked_B.sum(dtype=jnp.float32))


def told(
    model: Any, params: Params, batch: Batch, rngs: Any, auxiliary: float, asked_B: Array
) -> tuple[Array, Array | float]:
    """What a model says of each row, and the weighted auxiliary loss of the rows that are asked for, summed."""
    if not auxiliary:
        return model.apply({"params": params}, batch, rngs=rngs), 0.0
    said, nll_B = model.apply({"params": params}, batch, method="with_language", rngs=rngs)
    return said, auxiliary * jnp.where(asked_B, nll_B, 0.0).sum()

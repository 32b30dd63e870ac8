"""What is minimised where a source has labels: of each token, or of the whole text. Counts are of what is labelled."""

from dataclasses import dataclass
from typing import Any

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
    """-log p(label_B): cross-entropy of the class of each labelled row, with `smoothing` of the labels."""

    smoothing: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the rows whose label is not -1; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        logits_BC = model.apply({"params": params}, batch, rngs=rngs)
        return label_loss(logits_BC, batch.label_B, self.smoothing)

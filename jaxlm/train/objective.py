"""What is minimised, as frozen configs: called with (model, parameters, batch, dropout key) -> `jaxlm.losses.Loss`."""

from dataclasses import dataclass
from typing import Any

from jaxlm.losses import Loss, cross_entropy
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of every next target token, with `smoothing` of the labels; the task of every sequence model."""

    smoothing: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the valid target tokens; without a key there is no dropout."""

        def features(module, batch):
            return module.extend(batch.target_BT, module.start(batch, 0), batch.target_valid_BT)[0]

        rngs = None if key is None else {"dropout": key}
        features_BTD = model.apply({"params": params}, batch, method=features, rngs=rngs)

        def readout(features):
            return model.apply({"params": params}, features, method="readout")

        return cross_entropy(readout, features_BTD, batch.label_BT, batch.target_valid_BT, self.smoothing)

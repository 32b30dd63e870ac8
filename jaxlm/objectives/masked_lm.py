"""What is minimised where text is hidden: the cross-entropy of the hidden tokens, and of whether two spans belong."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.losses import Loss, classification_loss, cross_entropy
from jaxlm.models.special_ids import numbered
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class MaskedLM:
    """-log p(label_BS) of the hidden tokens; the logits of all others are never made.

    next_sentence: in a batch of pairs -log p(label_B) is added, where a row counts as much as this share of its
      positions does in hidden tokens: with the share that is hidden, and full rows, the loss is the sum of the two
      means (Devlin et al. 2019, appendix A.2).
    """

    next_sentence_weight: float = 0.15

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the hidden tokens, whose number is the count; without a key there is no dropout."""
        rngs = None if key is None else {"dropout": key}
        features_BSD, logits_BC = model.apply({"params": params}, batch, method=features_and_nsp_logits, rngs=rngs)

        def readout(features: Array) -> Array:
            return model.apply({"params": params}, features, method="readout")

        asked_BS = batch.token_label_BS >= 0
        loss = cross_entropy(readout, features_BSD, jnp.maximum(batch.token_label_BS, 0), asked_BS)
        if logits_BC is None:
            return loss
        weight = self.next_sentence_weight * batch.token_label_BS.shape[1]
        return replace(loss, total=loss.total + weight * classification_loss(logits_BC, batch.label_B).total)


def features_and_nsp_logits(model: Any, batch: Batch) -> tuple[Array, Array | None]:
    """Features (B, S, D) and, of a batch of pairs, the logits (B, 2) of a second span that follows, or does not.

    Raises UserError for pairs and a model that has no head for them.
    """
    features_BSD = model.features(batch)
    if batch.label_B is None:
        return features_BSD, None
    if not numbered(model).nsp_head:
        raise UserError(
            "the rows are pairs of spans, and the model cannot tell whether they belong together: set "
            "--model.nsp-head, "
            "or --batching.no-next-sentence"
        )
    return features_BSD, model.next_sentence_logits(features_BSD, batch.source_valid_BS)

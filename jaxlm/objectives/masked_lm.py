"""Masked language modeling, with next sentence prediction on batches of sentence pairs (Devlin et al. 2019)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.losses import Loss, classification_loss, cross_entropy
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy -log p(token_label_BS) of the masked tokens; no other position has logits.

    next_sentence_weight: in a batch of pairs, -log p(class_B) is added with this weight times the row length.
      With the masking rate as the weight and full rows, the mean over masked tokens is then the sum of both
      mean losses (Devlin et al. 2019, appendix A.2).
    """

    next_sentence_weight: float = 0.15

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the masked tokens, whose number is the count; dropout only with a key."""
        rngs = None if key is None else {"dropout": key}
        features_BSD, logits_BC = model.apply({"params": params}, batch, method=features_and_nsp_logits, rngs=rngs)
        readout, label_BS = partial(model.apply, {"params": params}, method="readout"), batch.token_label_BS
        loss = cross_entropy(readout, features_BSD, jnp.maximum(label_BS, 0), label_BS >= 0, is_sparse=True)
        if logits_BC is None:
            return loss
        weight = self.next_sentence_weight * label_BS.shape[1]
        return replace(loss, total=loss.total + weight * classification_loss(logits_BC, batch.class_B).total)


def features_and_nsp_logits(model: Any, batch: Batch) -> tuple[Array, Array | None]:
    """Return features (B, S, D) and, of a batch of pairs, the next sentence logits (B, 2)."""
    features_BSD = model.features(batch)
    if batch.class_B is None:
        return features_BSD, None
    if not model.nsp_head:
        raise UserError(
            "the rows are pairs of spans, but the model has no head for next sentence prediction: "
            "set --model.nsp-head or --batching.no-next-sentence"
        )
    return features_BSD, model.next_sentence_logits(features_BSD, batch.source_valid_BS)

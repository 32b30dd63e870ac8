"""Ensembles: several trained models of one vocabulary, combined at every step of decoding.

probabilities    log p = log mean_m p_m         (arithmetic mean)
logarithms       log p = mean_m log p_m + const (geometric mean)
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.types import Array, Batch, SequenceModel


class Ensemble(SequenceModel):
    """Ensemble of sequence models, for decoding and scoring; train its members one by one.

    Features are the combined logits (B, T, V), and `readout` is the identity. Parameters: see `ensemble_params`.
    """

    members: tuple[nn.Module, ...]
    mean: Literal["probabilities", "logarithms"] = "probabilities"

    def max_target_tokens(self, source_tokens: Any = 0) -> Any:
        members = [member for member in self.members if isinstance(member, SequenceModel)]
        limits = [member.max_target_tokens(source_tokens) for member in members]
        return functools.reduce(np.minimum, [limit for limit in limits if limit is not None] or [None])

    def start(self, batch: Batch, capacity: int) -> tuple:
        return tuple(member.start(batch, capacity) for member in self.members)

    def extend(self, tokens_BT: Array, state: tuple, valid_BT: Array) -> tuple[Array, tuple]:
        logprobs, states = [], []
        for member, member_state in zip(self.members, state, strict=True):
            features_BTD, member_state = member.extend(tokens_BT, member_state, valid_BT)
            logprobs.append(jax.nn.log_softmax(member.readout(features_BTD).astype(jnp.float32)))
            states.append(member_state)
        logprob_MBTV = jnp.stack(logprobs)
        combined_BTV = logprob_MBTV.mean(0) if self.mean == "logarithms" else jax.nn.logsumexp(logprob_MBTV, axis=0)
        return combined_BTV, tuple(states)

    def readout(self, features: Array) -> Array:
        return features


def ensemble_params(members: list[Any]) -> dict[str, Any]:
    """Return the parameters of an `Ensemble`, `{"members_0": ..., "members_1": ...}`, from those of its members."""
    return {f"members_{index}": params for index, params in enumerate(members)}

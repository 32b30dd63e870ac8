"""Ensembles: several trained models of one vocabulary, combined at every step of decoding.

probabilities    log p = log mean_m p_m         (arithmetic mean)
logarithms       log p = mean_m log p_m + const (geometric mean)
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.types import Array, Batch, SequenceModel


class Ensemble(SequenceModel):
    """Ensemble of sequence models, for decoding and scoring; train its members one by one.

    The state is a tuple of the members' states. The features are the combined logits (B, T, V) already, and
    `readout` is the identity. The parameters are `{"members_0": ..., "members_1": ...}`, see `ensemble_params`.
    """

    members: tuple[nn.Module, ...]
    mean: Literal["probabilities", "logarithms"] = "probabilities"

    def start(self, batch: Batch, capacity: int) -> tuple:
        """Return the states of all members."""
        return tuple(member.start(batch, capacity) for member in self.members)

    def extend(self, tokens_BT: Array, state: tuple, valid_BT: Array) -> tuple[Array, tuple]:
        """Read T more target tokens: return the combined logits (B, T, V) and the new states."""
        logprobs, states = [], []
        for member, member_state in zip(self.members, state, strict=True):
            features_BTD, member_state = member.extend(tokens_BT, member_state, valid_BT)
            logprobs.append(jax.nn.log_softmax(member.readout(features_BTD).astype(jnp.float32)))
            states.append(member_state)
        logprob_MBTV = jnp.stack(logprobs)
        if self.mean == "logarithms":
            return logprob_MBTV.mean(0), tuple(states)
        return jax.nn.logsumexp(logprob_MBTV, axis=0), tuple(states)

    def readout(self, features: Array) -> Array:
        """Return the combined logits (..., V) unchanged."""
        return features


def ensemble_params(members: list[Any]) -> dict[str, Any]:
    """Return the parameters of an `Ensemble` from those of its members."""
    return {f"members_{index}": params for index, params in enumerate(members)}

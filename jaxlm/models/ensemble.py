"""Several trained models of one vocabulary that speak with one voice: the mean of what they would say.

probabilities    log p = log mean_m p_m         (what one expects of a draw among them)
logarithms       log p = mean_m log p_m + const (a geometric mean: what all of them can live with)
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.types import Array, Batch


class Ensemble(nn.Module):
    """Members under the one contract of `jaxlm.types.SequenceModel`, for decoding and scoring.

    The state is a tuple of theirs. Features are the joint logits (B, T, V) already, and `readout` hands them on: for
    training, train the members. The parameters are `{"members_0": ..., "members_1": ...}`: see `joined_params`.
    """

    members: tuple[nn.Module, ...]
    mean: Literal["probabilities", "logarithms"] = "probabilities"

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token."""
        logits_BTV, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return logits_BTV

    def start(self, batch: Batch, capacity: int) -> tuple:
        """The states of all members."""
        return tuple(member.start(batch, capacity) for member in self.members)

    def extend(self, tokens_BT: Array, state: tuple, valid_BT: Array) -> tuple[Array, tuple]:
        """Read T more target tokens -> joint logits (B, T, V) and the new states."""
        logits, states = [], []
        for member, old in zip(self.members, state, strict=True):
            features_BTD, new = member.extend(tokens_BT, old, valid_BT)
            logits.append(jax.nn.log_softmax(member.readout(features_BTD).astype(jnp.float32)))
            states.append(new)
        return self._average(jnp.stack(logits)), tuple(states)

    def readout(self, features: Array) -> Array:
        """The logits as they are."""
        return features

    def _average(self, logprob_MBTV: Array) -> Array:
        if self.mean == "logarithms":
            return logprob_MBTV.mean(0)
        return jax.nn.logsumexp(logprob_MBTV, axis=0)


def ensemble_params(members: list[Any]) -> dict[str, Any]:
    """The parameters of an `Ensemble` from those of its members."""
    return {f"members_{at}": params for at, params in enumerate(members)}

"""A language model with a value head: the policy and the critic of PPO (Schulman et al. 2017) on one trunk."""

from typing import Any

import flax.linen as nn

from jaxlm.models.finetune_heads import FineTunable
from jaxlm.types import Array, Batch, SequenceModel, State


class ActorCritic(FineTunable, SequenceModel):
    """The language model `model` with V_t = w . h_t, h_t the feature that predicts token t; w starts at 0."""

    num_extra_ids = 0

    def setup(self) -> None:
        self.value_D = self.param("value", nn.initializers.zeros_init(), (self.model.width,))

    def with_trunk(self, trunk: Any) -> "ActorCritic":
        return self.clone(model=trunk, parent=None)

    def values(self, features: Array) -> Array:
        """Map features (..., D) to the expected rest of the reward (...), float32."""
        return features.astype("float32") @ self.value_D

    def max_target_tokens(self, source_tokens: Any = 0) -> Any:
        return self.model.max_target_tokens(source_tokens)

    def start(self, batch: Batch, capacity: int) -> State:
        return self.model.start(batch, capacity)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        return self.model.extend(tokens_BT, state, valid_BT)

    def readout(self, features: Array) -> Array:
        return self.model.readout(features)

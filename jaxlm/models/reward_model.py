"""The reward model: a language model with one number in place of next-token logits (Stiennon et al. 2020).

    s = w . h_T        h_T the feature of the last token of prompt and answer, its EOS

The parameter w has no bias: differences of scores alone are learned (`jaxlm.objectives.reward_model`). `ActorCritic`
keeps the logits, and adds a number at each position: the policy and the critic of PPO on one trunk.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.linear import Linear
from jaxlm.types import Array, Batch, SequenceModel, State


class RewardModel(FineTunable):
    """The score of an answer to a prompt, read as one target; `model` is a language model without a source."""

    num_labels: int = 1
    dropout: float = 0.0

    num_extra_ids = 0

    def setup(self) -> None:
        """Raises UserError without a trunk."""
        if self.model is None:
            raise UserError("RewardModel has nothing to read with: train it with --finetuning.init WORKDIR")
        self.drop, self.head = Dropout(self.dropout), Linear(1, bias=False, init_std=self.init_std)

    def with_trunk(self, trunk: Any) -> "RewardModel":
        """Return this head on another trunk. Raises UserError if that is not a language model."""
        if not isinstance(trunk, SequenceModel):
            raise UserError(f"a {type(trunk).__name__} cannot score answers: expected a language model")
        return self.clone(model=trunk, parent=None)

    def max_target_tokens(self, source_tokens: Any = 0) -> Any:
        """Return the most target tokens, EOS included, of which it reads the EOS too; None: any number."""
        limit = self.model.max_target_tokens(source_tokens)
        return None if limit is None else limit - 1

    def __call__(self, batch: Batch) -> Array:
        """Return the score of each row (B,), float32; 0 for a row without a target."""
        # BOS, the target and EOS: a model that predicts does not read the EOS, this one ends with it.
        tokens_BT = jnp.concatenate([batch.target_BT[:, :1], batch.label_BT], 1)
        valid_BT = jnp.concatenate([batch.target_valid_BT[:, :1], batch.target_valid_BT], 1)
        features_BTD, _ = self.model.extend(tokens_BT, self.model.start(batch, 0), valid_BT)
        last_B = valid_BT.shape[1] - 1 - valid_BT[:, ::-1].argmax(1)
        last_BD = jnp.take_along_axis(features_BTD, last_B[:, None, None], 1)[:, 0].astype(jnp.float32)
        return jnp.where(valid_BT.any(1), self.head(self.drop(last_BD))[:, 0], 0.0)


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

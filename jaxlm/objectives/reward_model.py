"""The objective of reward models: the scores of two answers to one prompt (Bradley and Terry 1952)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.losses import Loss, mean_figure
from jaxlm.objectives.log_probs import PAIR_SIDES, stack_answers
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class BradleyTerry:
    """-log sigma(s_w - s_l - m) + c (s_w + s_l)^2 of the scores of a reward model for pairs of answers.

    The margin m is `value_B`, or 0 without that field.

    Attributes:
      center: c, the weight that draws the scores of a pair to a mean of 0 (Eisenstein et al. 2023: 0.01).
      dropout: whether the dropout of the model is used.
    """

    center: float = 0.0
    dropout: bool = False

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the pairs, whose number is the count."""
        rngs = {"dropout": key} if self.dropout and key is not None else None
        rows = stack_answers(batch)
        score_BA = model.apply({"params": params}, rows, rngs=rngs).reshape(-1, 2)
        is_pair_B = rows.label_valid_BT.any(1).reshape(-1, 2).all(1)
        margin_B = 0.0 if batch.value_B is None else jnp.nan_to_num(batch.value_B)
        loss_B = self.center * (score_BA[:, 0] + score_BA[:, 1]) ** 2 - jax.nn.log_sigmoid(
            score_BA[:, 0] - score_BA[:, 1] - margin_B
        )
        total = jnp.where(is_pair_B, loss_B, 0.0).sum()
        figures = {f"score/{side}": mean_figure(score_BA[:, a], is_pair_B) for a, side in enumerate(PAIR_SIDES)}
        figures["accuracy"] = mean_figure((score_BA[:, 0] > score_BA[:, 1]).astype(jnp.float32), is_pair_B)
        nll = jax.lax.stop_gradient(total)
        return Loss(total=total, nll=nll, count=is_pair_B.sum(dtype=jnp.float32), figures=figures)

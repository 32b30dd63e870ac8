"""The losses of preference pairs, as functions of the log-probabilities of both answers.

S sums the log-probabilities of an answer's tokens, its EOS included, n counts them; w is the chosen answer, l the
rejected one, r marks the reference model. Every loss is a function of the scores u of both answers:

| score u             | reference | per token | losses                             |
|---------------------|-----------|-----------|------------------------------------|
| S - S^r             | yes       | no        | dpo, robust, hinge, apo_zero       |
| (S - S^r) / n       | yes       | yes       | dpo_norm, ipo                      |
| S                   | no        | no        | cpo                                |
| S / n               | no        | yes       | simpo, orpo                        |

With z = beta (u_w - u_l) - gamma, smoothing e, and sigma the logistic function:

| loss          | per pair                                                | source                             |
|---------------|---------------------------------------------------------|------------------------------------|
| dpo, dpo_norm | -(1 - e) log sigma(z) - e log sigma(-z)                 | Rafailov et al. 2023; e: cDPO      |
| robust        | [-(1 - e) log sigma(z) + e log sigma(-z)] / (1 - 2 e)   | Chowdhury et al. 2024              |
| hinge         | max(0, 1 - z)                                           | Zhao et al. 2023 (SLiC)            |
| ipo           | (u_w - u_l - 1 / (2 beta))^2                            | Azar et al. 2024                   |
| apo_zero      | 1 - sigma(beta u_w) + sigma(beta u_l)                   | D'Oosterlinck et al. 2024          |
| cpo           | -log sigma(z)                                           | Xu et al. 2024                     |
| simpo         | -log sigma(z)                                           | Meng et al. 2024                   |
| orpo          | -beta log sigma(o_w - o_l), o = u - log(1 - e^u)        | Hong et al. 2024                   |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.types import Array


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs: (scores of the chosen answers (B,), of the rejected ones (B,), options) -> (B,), in nats.

    Attributes:
      uses_reference: whether the log-probabilities of the reference model are subtracted from the score.
      per_token: whether the score is divided by the number of tokens.
      options: the options that the loss reads in addition to `beta`.
    """

    loss: Callable[[Array, Array, Any], Array]
    uses_reference: bool = True
    per_token: bool = False
    options: tuple[str, ...] = ()


def _logistic(chosen_B: Array, rejected_B: Array, options: Any) -> Array:
    z_B = options.beta * (chosen_B - rejected_B) - options.gamma
    smoothing = options.label_smoothing
    return -(1.0 - smoothing) * jax.nn.log_sigmoid(z_B) - smoothing * jax.nn.log_sigmoid(-z_B)


def _robust(chosen_B: Array, rejected_B: Array, options: Any) -> Array:
    z_B, smoothing = options.beta * (chosen_B - rejected_B), options.label_smoothing
    loss_B = -(1.0 - smoothing) * jax.nn.log_sigmoid(z_B) + smoothing * jax.nn.log_sigmoid(-z_B)
    return loss_B / (1.0 - 2.0 * smoothing)


def _hinge(chosen_B: Array, rejected_B: Array, options: Any) -> Array:
    return jax.nn.relu(1.0 - options.beta * (chosen_B - rejected_B))


def _ipo(chosen_B: Array, rejected_B: Array, options: Any) -> Array:
    return (chosen_B - rejected_B - 1.0 / (2.0 * options.beta)) ** 2


def _apo_zero(chosen_B: Array, rejected_B: Array, options: Any) -> Array:
    return 1.0 - jax.nn.sigmoid(options.beta * chosen_B) + jax.nn.sigmoid(options.beta * rejected_B)


def _odds_ratio(chosen_B: Array, rejected_B: Array, options: Any) -> Array:
    return -options.beta * jax.nn.log_sigmoid(_log_odds(chosen_B) - _log_odds(rejected_B))


MAX_LOG_PROB = -1e-6
"""The odds of a probability of 1 are infinite: nearer to it they stay as they are here."""


def _log_odds(log_prob_B: Array) -> Array:
    """log p / (1 - p) of log p."""
    log_prob_B = jnp.minimum(log_prob_B, MAX_LOG_PROB)
    return log_prob_B - jnp.log1p(-jnp.exp(log_prob_B))


PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": PairLoss(_logistic, options=("label_smoothing",)),
    "dpo_norm": PairLoss(_logistic, per_token=True, options=("label_smoothing",)),
    "robust": PairLoss(_robust, options=("label_smoothing",)),
    "hinge": PairLoss(_hinge),
    "ipo": PairLoss(_ipo, per_token=True),
    "apo_zero": PairLoss(_apo_zero),
    "cpo": PairLoss(_logistic, uses_reference=False),
    "simpo": PairLoss(_logistic, uses_reference=False, per_token=True, options=("gamma",)),
    "orpo": PairLoss(_odds_ratio, uses_reference=False, per_token=True),
}
"""Name -> loss; see the tables above."""


def kto_loss(reward_B: Array, baseline_B: Array, is_desirable_B: Array, beta: float) -> Array:
    """Return the KTO loss of each answer before its weight (Ethayarajh et al. 2024).

    Args:
      reward_B: S - S^r of each answer.
      baseline_B: z0, an estimate of the KL divergence between policy and reference, in nats.
      is_desirable_B: the label of each answer.
    """
    sign_B = jnp.where(is_desirable_B, 1.0, -1.0)
    return 1.0 - jax.nn.sigmoid(beta * sign_B * (reward_B - baseline_B))


def bradley_terry_loss(chosen_B: Array, rejected_B: Array, margin_B: Array | float, center: float) -> Array:
    """Return -log sigma(s_w - s_l - m) + c (s_w + s_l)^2 of the scores of a reward model (Bradley and Terry 1952)."""
    centered_B = center * (chosen_B + rejected_B) ** 2
    return centered_B - jax.nn.log_sigmoid(chosen_B - rejected_B - margin_B)

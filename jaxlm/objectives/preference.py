"""Learning from preferences without a reward model: pairs of answers (DPO and its kin), and judged answers (KTO).

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
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.losses import Loss, mean_figure
from jaxlm.nn.layers.adapters import drop_adapters
from jaxlm.objectives.log_probs import PAIR_SIDES, answer_log_probs, with_other_answer
from jaxlm.types import Array, Batch, Params

ReferenceKind = Literal["stored", "live", "base"]

PairKind = Literal["dpo", "dpo_norm", "robust", "hinge", "ipo", "apo_zero", "cpo", "simpo", "orpo"]


@dataclass(frozen=True)
class PolicyObjective:
    """Base of the objectives that compare the log-probabilities of the model with those of a reference.

    Attributes:
      beta: scale of the log-probability ratios: the larger, the closer the model stays to the reference.
      reference: "stored": the log-probabilities of the reference are computed once, before the first step, and kept in
        the workdir; "live": it is a second set of parameters, which reads every batch; "base": it is the model without
        its LoRA matrices and adapters, which reads every batch too and takes no memory.
      reference_workdir: the run that is the stored reference; "": the initial parameters of this run.
      dropout: whether the dropout of the model is used. Without it the model equals its reference at step 0.
    """

    beta: float = 0.1
    reference: ReferenceKind = "stored"
    reference_workdir: str = ""
    dropout: bool = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"beta = {self.beta}: expected a number above 0")
        if self.reference != "stored" and self.reference_workdir:
            raise UserError(f"reference_workdir has no effect on reference = {self.reference!r}: choose 'stored'")

    @property
    def uses_reference(self) -> bool:
        """True if the loss needs log-probabilities of a reference."""
        return True

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """The loss of a prepared batch."""
        raise NotImplementedError

    def prepare_batch(self, model: Any, params: Params, batch: Batch) -> Batch:
        """Return the batch with all that depends on the whole of it, or on other parameters; it has no gradient.

        The train step calls this before it splits the batch into micro-batches.
        """
        if not self.uses_reference or batch.reference_logprob_BA is not None:
            return batch
        if self.reference != "base":
            raise UserError("the batch lacks the log-probabilities of the reference: `jaxlm.train` computes them")
        reference_BA = answer_log_probs(model, drop_adapters(params), batch).total_BA
        return replace(batch, reference_logprob_BA=jax.lax.stop_gradient(reference_BA))


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
"""Name -> loss: the tables at the top."""


@dataclass(frozen=True)
class PairwisePreference(PolicyObjective):
    """A loss of pairs of answers (the head of `jaxlm.objectives.preference` has the formulas), averaged over pairs.

    Attributes:
      kind: the loss.
      label_smoothing: share of the pairs that are taken to be labeled wrongly ("dpo": conservative DPO).
      gamma: target margin of "simpo".
      nll_weight: weight of the mean -log p per token of the chosen answer, which is added ("orpo" has it already).
      nll_of: the tokens of that mean: of the answer, or of the whole row, prompt included; "": "row" for "orpo" (Hong
        et al. 2024), else "answer".
    """

    kind: PairKind = "dpo"
    label_smoothing: float = 0.0
    gamma: float = 0.0
    nll_weight: float = 0.0
    nll_of: Literal["", "answer", "row"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("label_smoothing", "gamma"):
            if getattr(self, name) and name not in self._loss.options:
                kinds = [kind for kind, loss in PAIR_LOSSES.items() if name in loss.options]
                value = getattr(self, name)
                raise UserError(
                    f"{name} = {value} has no effect on {self.kind!r}: it is an option of {', '.join(kinds)}"
                )
        if not 0.0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing = {self.label_smoothing}: expected a share from 0 to less than 0.5")
        if self.kind == "orpo" and self.nll_weight:
            raise UserError("orpo has the weight 1 of the log-likelihood: leave nll_weight at 0, and change beta")

    @property
    def _loss(self) -> PairLoss:
        return PAIR_LOSSES[self.kind]

    @property
    def uses_reference(self) -> bool:
        return self._loss.uses_reference

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the pairs, whose number is the count.

        Figures: rewards (beta times the scores), their margin, the share of pairs with one above 0, log p, and lengths.
        """
        is_orpo = self.kind == "orpo"
        whole_rows = (self.nll_of or ("row" if is_orpo else "answer")) == "row" and (is_orpo or self.nll_weight > 0)
        answers = answer_log_probs(model, params, batch, key if self.dropout else None, whole_rows)
        score_BA = answers.total_BA - batch.reference_logprob_BA if self.uses_reference else answers.total_BA
        if self._loss.per_token:
            score_BA = score_BA / jnp.maximum(answers.count_BA, 1.0)
        loss_B = self._loss.loss(score_BA[:, 0], score_BA[:, 1], self)
        nll_B = -answers.mean_BA[:, 0]
        loss_B += (1.0 if is_orpo else self.nll_weight) * (answers.row_nll_B if whole_rows else nll_B)
        is_pair_B = (answers.count_BA > 0).all(1)  # rows that only fill a shape have no answers
        total, nll = (jnp.where(is_pair_B, x_B, 0.0).sum() for x_B in (loss_B, jax.lax.stop_gradient(nll_B)))
        reward_BA = self.beta * score_BA
        margin_B = reward_BA[:, 0] - reward_BA[:, 1]
        columns = {"rewards": reward_BA, "logp": answers.total_BA, "length": answers.count_BA}
        values = {f"{name}/{side}": x_BA[:, a] for name, x_BA in columns.items() for a, side in enumerate(PAIR_SIDES)}
        values |= {"margin": margin_B, "accuracy": (margin_B > 0).astype(jnp.float32)}
        figures = {name: mean_figure(value_B, is_pair_B) for name, value_B in values.items()}
        return Loss(total=total, nll=nll, count=is_pair_B.sum(dtype=jnp.float32), figures=figures)


@dataclass(frozen=True)
class KTO(PolicyObjective):
    """Kahneman-Tversky optimization of answers that are judged one by one (Ethayarajh et al. 2024).

    With r = S - S^r, the log-probability ratio of an answer (class_B 1: desirable, 0: undesirable), its loss is

        w_D (1 - sigma(beta (r - z0)))   desirable          w_U (1 - sigma(beta (z0 - r)))   undesirable

    where z0 = max(0, mean of r over the answers of other examples to the prompts of the batch) estimates the divergence
    from the reference. The mean is over the whole batch, before it is split into micro-batches; it has no gradient.

    Attributes:
      desirable_weight, undesirable_weight: w_D and w_U.
    """

    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def prepare_batch(self, model: Any, params: Params, batch: Batch) -> Batch:
        """Return the batch with z0 in `baseline_B`, and without the answers of other examples."""
        batch = super().prepare_batch(model, params, batch)
        others = answer_log_probs(model, params, with_other_answer(batch))
        has_answer_B = others.count_BA[:, 0] > 0
        ratio_B = jnp.where(has_answer_B, others.total_BA[:, 0] - batch.reference_logprob_BA[:, 1], 0.0)
        z0 = jnp.maximum(ratio_B.sum() / jnp.maximum(has_answer_B.sum(), 1), 0.0)
        baseline_B = jax.lax.stop_gradient(jnp.broadcast_to(z0, ratio_B.shape))
        return replace(batch, other=None, baseline_B=baseline_B)

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the rows with a judgment, whose number is the count."""
        answers = answer_log_probs(model, params, batch, key if self.dropout else None)
        reward_B = answers.total_BA[:, 0] - batch.reference_logprob_BA[:, 0]
        is_judged_B, is_desirable_B = batch.class_B >= 0, batch.class_B == 1
        sign_B = jnp.where(is_desirable_B, 1.0, -1.0)
        loss_B = 1.0 - jax.nn.sigmoid(self.beta * sign_B * (reward_B - batch.baseline_B))
        loss_B *= jnp.where(is_desirable_B, self.desirable_weight, self.undesirable_weight)
        nll_B = jax.lax.stop_gradient(-answers.mean_BA[:, 0])
        total, nll = (jnp.where(is_judged_B, x_B, 0.0).sum() for x_B in (loss_B, nll_B))
        values = {"rewards": self.beta * reward_B, "logp": answers.total_BA[:, 0], "length": answers.count_BA[:, 0]}
        sides = {"desirable": is_desirable_B, "undesirable": is_judged_B & ~is_desirable_B}
        figures = {
            f"{name}/{side}": mean_figure(value_B, is_side_B)
            for name, value_B in values.items()
            for side, is_side_B in sides.items()
        }
        figures["kl"] = mean_figure(batch.baseline_B, is_judged_B)
        return Loss(total=total, nll=nll, count=is_judged_B.sum(dtype=jnp.float32), figures=figures)

"""Objectives that learn from rewards: policy gradients of answers that the model itself has sampled.

A batch has G answers to each prompt, in adjacent rows, with a reward R each. lp_t is the log-probability of token t of
an answer under the model, old_t under the model that sampled it, ref_t under the reference, all of softmax(logits / T)
at the sampler's temperature T. With rho = exp(lp - old), the clipped term of an advantage A is

    c(rho, A) = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A)

| kind      | advantage of answer i               | loss                                               | source        |
|-----------|-------------------------------------|----------------------------------------------------|---------------|
| reinforce | R'_i - mean of R' over the batch    | c of the whole answer, mean over answers           | Williams 1992 |
| rloo      | R'_i - mean of R' over the others   | the same                                           | Ahmadian 2024 |
| grpo      | (R_i - mean of group) / (sd + 1e-4) | c + kl K of each token, mean over answers of means | Shao 2024     |
| dapo      | the same                            | the same tokens, mean over all tokens              | Yu 2025       |
| dr_grpo   | R_i - mean of the group             | their sum / max_tokens, mean over answers          | Liu 2025      |
| ppo       | A_t of each token, whitened         | c + value loss of each token, mean over all tokens | Schulman 2017 |

R' = R - kl sum_t (old_t - ref_t) has the divergence from the reference in the reward; K is k3 = exp(ref - lp) -
(ref - lp) - 1, times rho ("corrected": its gradient is that of the divergence). sd divides by n - 1. Advantages are
computed on the whole batch, before it is split into micro-batches, and have no gradient.

PPO needs an `ActorCritic`, whose V_t is the expected rest of the reward before token t. The reward of a token is
r_t = -kl (old_t - ref_t), of the last one R more; with V_t as of the sampling, delta_t = r_t + V_t+1 - V_t, and
A_t = sum_k gae_lambda^k delta_t+k, G_t = A_t + V_t (generalized advantage estimation with gamma 1, Schulman 2016).
Whitened means (A - mean) / sd over all tokens. With the value v of the parameters that learn, the value loss is
value_weight / 2 max((v - G_t)^2, (clip(v, V_t - value_clip, V_t + value_clip) - G_t)^2).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.losses import Loss, mean_figure
from jaxlm.objectives.log_probs import feature_log_probs, target_features
from jaxlm.types import Array, ArrayOrNone, Batch, Params


@dataclass(frozen=True)
class PolicyGradient:
    """A loss of sampled answers with rewards; the head of `jaxlm.objectives.policy_gradient` has the formulas.

    Attributes:
      kind: the loss.
      num_samples: G, the answers to each prompt of a batch.
      max_tokens: the most tokens of an answer, its end included.
      sampler: the temperature of the samples. Filters are refused: their samples are not those of the policy.
      kl: weight of the divergence from the reference; 0: no reference.
      kappa: the estimate of the divergence in the loss of tokens.
      epsilon, epsilon_high: bounds of the ratio below and above 1 (None: `epsilon`). The first update has the ratio 1.
      scale: the standard deviation that divides advantages: of the group, of the batch, none; "": as in the table.
      baseline: what "reinforce" subtracts.
      mask_cut: answers that reached `max_tokens` without an end have no loss.
      updates: updates on the samples of a rollout.
      reference: "live": the first parameters, kept in the workdir; "base": the model without LoRA and adapters.
      max_kl: divergence, in nats an answer of the validation split, above which the run stops; 0: none.
      gae_lambda, value_weight, value_clip: of "ppo".
    """

    kind: Literal["reinforce", "rloo", "grpo", "dapo", "dr_grpo", "ppo"] = "rloo"
    num_samples: int = 8
    max_tokens: int = 64
    sampler: Sampler = Sampler()
    kl: float = 0.05
    kappa: Literal["corrected", "k3"] = "corrected"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    scale: Literal["", "group", "batch", "none"] = ""
    baseline: Literal["batch", "none"] = "batch"
    mask_cut: bool = False
    updates: int = 1
    reference: Literal["live", "base"] = "live"
    max_kl: float = 0.0
    gae_lambda: float = 0.95
    value_weight: float = 0.1
    value_clip: float = 0.2

    def __post_init__(self) -> None:
        plain = Sampler(self.sampler.temperature)
        if changed := [f"{name}={x}" for name, x in vars(self.sampler).items() if x != getattr(plain, name)]:
            raise UserError(f"{', '.join(changed)}: samples would not be those of the policy that learns: leave it out")
        if self.sampler.greedy:
            raise UserError("temperature=0: all answers to a prompt would be equal: choose 1, or a number near it")
        if self.num_samples < (1 if self.kind in ("reinforce", "ppo") else 2):
            raise UserError(f"num_samples = {self.num_samples}: {self.kind} compares at least 2 answers to each prompt")
        if self.max_kl and not self.kl:
            raise UserError("max_kl needs the reference, which kl = 0 leaves out: set kl above 0")
        ppo, value_options = self.kind == "ppo", ("gae_lambda", "value_weight", "value_clip")
        effects = {"baseline": self.kind == "reinforce", "kappa": not (self.of_answers or ppo), "scale": not ppo}
        for name, has_effect in (effects | dict.fromkeys(value_options, ppo)).items():
            if not has_effect and getattr(self, name) != getattr(PolicyGradient, name):
                raise UserError(f"{name} = {getattr(self, name)!r} has no effect on {self.kind!r}: leave it out")

    @property
    def of_answers(self) -> bool:
        """True if the ratio is that of whole answers."""
        return self.kind in ("reinforce", "rloo")

    def log_probs(self, model: Any, params: Params, batch: Batch) -> tuple[Array, ArrayOrNone]:
        """log p of the answers' tokens at the sampler's temperature (B, T), 0 elsewhere, and for "ppo" V_t (B, T)."""
        features_BTD, temperature = target_features(model, params, batch), self.sampler.temperature
        scored = features_BTD, batch.label_BT, batch.label_valid_BT
        logp_BT = feature_log_probs(model, params, *scored, temperature)
        return logp_BT, model.apply({"params": params}, features_BTD, method="values") if self.kind == "ppo" else None

    def prepare_batch(self, model: Any, params: Params, batch: Batch) -> Batch:
        """Return the batch with `advantage_B`, or `advantage_BT`, from the rewards (`value_B`) of the whole batch."""
        if self.kind == "ppo":
            return self._estimate_advantages(batch)
        reward_PG = batch.value_B.reshape(-1, self.num_samples)  # P prompts of G answers
        if self.of_answers and self.kl:
            ratio_BT = jnp.where(batch.label_valid_BT, batch.old_logprob_BT - batch.reference_logprob_BT, 0.0)
            reward_PG -= self.kl * ratio_BT.sum(1).reshape(-1, self.num_samples)
        mean = reward_PG.mean() if self.kind == "reinforce" else reward_PG.mean(1, keepdims=True)
        advantage_PG = reward_PG if self.baseline == "none" else reward_PG - mean
        if self.kind == "rloo":
            advantage_PG *= self.num_samples / (self.num_samples - 1)
        if self.kind != "reinforce":  # the mean of equal numbers may differ from them by a rounding error
            advantage_PG = jnp.where((reward_PG == reward_PG[:, :1]).all(1, keepdims=True), 0.0, advantage_PG)
        scale = self.scale or ("group" if self.kind in ("grpo", "dapo") else "none")
        if scale == "group":
            advantage_PG /= reward_PG.std(1, ddof=1, keepdims=True) + 1e-4
        elif scale == "batch":
            advantage_PG /= (advantage_PG if self.of_answers else reward_PG).std(ddof=1) + 1e-4
        return replace(batch, advantage_B=jax.lax.stop_gradient(advantage_PG.reshape(-1)))

    def _estimate_advantages(self, batch: Batch) -> Batch:
        """The batch with the advantages and the returns of its tokens."""
        mask_BT = batch.label_valid_BT
        value_BT, place_T = jnp.where(mask_BT, batch.old_value_BT, 0.0), jnp.arange(mask_BT.shape[1])
        is_last_BT = mask_BT & (place_T[None] == jnp.where(mask_BT, place_T[None], 0).max(1, keepdims=True))
        delta_BT = jnp.where(is_last_BT, batch.value_B[:, None], 0.0) - value_BT
        delta_BT += jnp.pad(value_BT[:, 1:], ((0, 0), (0, 1)))
        if self.kl:
            delta_BT -= self.kl * (batch.old_logprob_BT - batch.reference_logprob_BT)
        distance_TT = place_T[:, None] - place_T[None]  # from token t (the column) on to a later one
        decay_TT = jnp.where(distance_TT >= 0, self.gae_lambda ** jnp.maximum(distance_TT, 0), 0.0)
        advantage_BT = jnp.matmul(jnp.where(mask_BT, delta_BT, 0.0), decay_TT, precision="highest")
        mean, count = jnp.mean(advantage_BT, where=mask_BT), mask_BT.sum()
        variance = jnp.var(advantage_BT, where=mask_BT) * count / jnp.maximum(count - 1, 1)
        white_BT = (advantage_BT - mean) * jax.lax.rsqrt(variance + 1e-8)
        return replace(batch, advantage_BT=white_BT, return_BT=advantage_BT + value_BT)

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the answers of a prepared batch ("dapo", "ppo": their tokens); figure: the share that is clipped."""
        mask_BT = batch.label_valid_BT
        logp_BT, value_BT = self.log_probs(model, params, batch)
        log_ratio = jnp.where(mask_BT, logp_BT - batch.old_logprob_BT, 0.0)
        ratio = jnp.exp(log_ratio.sum(1, keepdims=True) if self.of_answers else log_ratio)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        advantage = batch.advantage_BT if self.kind == "ppo" else batch.advantage_B[:, None]
        gain, clipped = ratio * advantage, jnp.clip(ratio, 1.0 - self.epsilon, 1.0 + high) * advantage
        loss, size_B = -jnp.minimum(gain, clipped), jnp.maximum(mask_BT.sum(1), 1)
        if self.kind == "ppo":
            near_BT = batch.old_value_BT + jnp.clip(value_BT - batch.old_value_BT, -self.value_clip, self.value_clip)
            errors = ((value_BT - batch.return_BT) ** 2, (near_BT - batch.return_BT) ** 2)
            loss += 0.5 * self.value_weight * jnp.maximum(*errors)
        elif self.kl and not self.of_answers:
            difference_BT = jnp.where(mask_BT, batch.reference_logprob_BT - logp_BT, 0.0)
            k3_BT = jnp.exp(difference_BT) - difference_BT - 1.0
            loss += self.kl * (ratio * k3_BT if self.kappa == "corrected" else k3_BT)
        counted = jnp.ones_like(ratio, bool) if self.of_answers else mask_BT
        total_B = jnp.where(counted, loss, 0.0).sum(1)
        divisor: Any = {"grpo": size_B, "dr_grpo": float(self.max_tokens)}.get(self.kind, 1.0)
        per_token = self.kind in ("dapo", "ppo")
        nll = jax.lax.stop_gradient(-logp_BT.sum(1) / (1.0 if per_token else size_B)).sum()
        count = mask_BT.sum(dtype=jnp.float32) if per_token else jnp.float32(len(mask_BT))
        return Loss((total_B / divisor).sum(), nll, count, figures={"clipped": mean_figure(clipped < gain, counted)})


def answer_batch(prompts: Batch, tokens_RL: Any, length_R: Any) -> Batch:
    """Return the rows to learn from, NumPy arrays: each prompt, padded on the left, with its R / B answers."""
    prompt_BP, valid_BP = np.asarray(prompts.target_BT), np.asarray(prompts.target_valid_BT)
    column_BP = np.arange(valid_BP.shape[1]) - (~valid_BP).sum(1, keepdims=True)  # padding moves to the left
    prompt_BP = np.where(column_BP >= 0, np.take_along_axis(prompt_BP, np.maximum(column_BP, 0), 1), 0)
    prompt_RP, valid_RP = (x.repeat(len(length_R) // len(x), 0) for x in (prompt_BP, column_BP >= 0))
    answer_RL = np.arange(tokens_RL.shape[1]) < length_R[:, None]
    before_RP = np.zeros((len(length_R), valid_BP.shape[1] - 1), bool)
    target_BT = np.concatenate([prompt_RP, tokens_RL[:, :-1]], 1).astype(np.int32)
    valid_BT = np.concatenate([valid_RP, answer_RL[:, 1:]], 1)
    label_BT, mask_BT = (np.concatenate([before_RP, x], 1) for x in (tokens_RL, answer_RL))
    batch = Batch(target_BT=target_BT, target_valid_BT=valid_BT, label_BT=label_BT.astype(np.int32))
    zero_B, zero_BT = np.zeros(len(length_R), np.float32), np.zeros(target_BT.shape, np.float32)
    batch = replace(batch, loss_mask_BT=mask_BT, value_B=zero_B, advantage_B=zero_B, old_value_BT=zero_BT)
    return replace(batch, old_logprob_BT=zero_BT, reference_logprob_BT=zero_BT)

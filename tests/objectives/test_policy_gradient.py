"""The losses of rewards against NumPy in float64, their gradients against finite differences, and their laws."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.preference_rows import Bigram, bigram_params
from fixtures.reward_rows import GROUP, reward_batch

from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.objectives.policy_gradient import PolicyGradient, answer_batch
from jaxlm.training.state import TrainState
from jaxlm.training.step import StepConfig, make_train_step
from jaxlm.types import Batch

BATCH, PARAMS = reward_batch(), bigram_params()
BASE = PolicyGradient(num_samples=GROUP, max_tokens=6, kl=0.3)
CASES = {
    "reinforce": replace(BASE, kind="reinforce"),
    "reinforce-no-baseline": replace(BASE, kind="reinforce", baseline="none", kl=0.0),
    "rloo": BASE,
    "rloo-batch": replace(BASE, scale="batch", epsilon=0.1),
    "rloo-temperature": replace(BASE, sampler=Sampler(temperature=0.7)),
    "grpo": replace(BASE, kind="grpo"),
    "grpo-k3": replace(BASE, kind="grpo", kappa="k3", scale="batch"),
    "dapo": replace(BASE, kind="dapo", kl=0.0, epsilon=0.1, epsilon_high=0.3),
    "dr_grpo": replace(BASE, kind="dr_grpo"),
}


def clipped_term(objective, ratio, a):
    high = objective.epsilon if objective.epsilon_high is None else objective.epsilon_high
    return -np.minimum(ratio * a, np.clip(ratio, 1 - objective.epsilon, 1 + high) * a)


def oracle(objective, params, batch):
    """The mean loss, formula by formula, with one loop over answers."""
    table, output = (np.asarray(params[name], np.float64) for name in ("table", "output"))
    logits_BTV = table[batch.target_BT] @ output / objective.sampler.temperature
    log_p_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    lp, old, ref = (
        [row[mask] for row, mask in zip(x, batch.loss_mask_BT, strict=True)]
        for x in (
            np.take_along_axis(log_p_BTV, batch.label_BT[..., None], -1)[..., 0],
            batch.old_logprob_BT.astype(np.float64),
            batch.reference_logprob_BT.astype(np.float64),
        )
    )
    whole = objective.kind in ("reinforce", "rloo")
    reward = batch.value_B.astype(np.float64)
    if whole and objective.kl:
        reward = reward - objective.kl * np.array([(o - r).sum() for o, r in zip(old, ref, strict=True)])
    advantage = []
    for i in range(len(reward)):
        group = reward[i // GROUP * GROUP : i // GROUP * GROUP + GROUP]
        if objective.kind == "reinforce":
            advantage.append(reward[i] - (reward.mean() if objective.baseline == "batch" else 0.0))
        elif objective.kind == "rloo":
            advantage.append(reward[i] - (group.sum() - reward[i]) / (GROUP - 1))
        else:
            scale = objective.scale or {"dr_grpo": "none"}.get(objective.kind, "group")
            sd = {"group": group.std(ddof=1) + 1e-4, "batch": reward.std(ddof=1) + 1e-4, "none": 1.0}[scale]
            advantage.append((reward[i] - group.mean()) / sd)
    if whole and objective.scale == "batch":
        advantage = np.array(advantage) / (np.std(advantage, ddof=1) + 1e-4)
    rows, clipped = [], partial(clipped_term, objective)
    for t, o, r, a in zip(lp, old, ref, advantage, strict=True):
        if whole:
            rows.append(clipped(np.exp((t - o).sum()), a))
            continue
        ratio, k3 = np.exp(t - o), np.exp(r - t) - (r - t) - 1
        rows.append(clipped(ratio, a) + objective.kl * k3 * (ratio if objective.kappa == "corrected" else 1))
    if whole:
        return np.mean(rows)
    if objective.kind == "dapo":
        return np.concatenate(rows).mean()
    return np.mean([row.sum() / (len(row) if objective.kind == "grpo" else objective.max_tokens) for row in rows])


def mean_loss(objective, params, batch):
    def loss(params):
        sums = objective(Bigram(), params, objective.prepare_batch(Bigram(), params, batch), None)
        return sums.total / sums.count

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_their_formulas(name):
    """Old log-probabilities are near the model's own in half of the rows: ratios inside and outside of the bounds."""
    objective = CASES[name]
    near, _ = objective.log_probs(Bigram(), PARAMS, BATCH)
    old_BT = np.where(np.arange(len(BATCH.value_B))[:, None] % 2 == 0, near + 0.02, BATCH.old_logprob_BT)
    batch = replace(BATCH, old_logprob_BT=np.where(BATCH.loss_mask_BT, old_BT, 0).astype(np.float32))
    loss, gradient = mean_loss(objective, PARAMS, batch)
    np.testing.assert_allclose(loss, oracle(objective, PARAMS, batch), rtol=1e-5, atol=1e-6)
    for leaf, index in (("table", (2, 1)), ("table", (6, 3)), ("output", (1, 5))):
        values = []
        for step in (1e-5, -1e-5):
            params = {key: value.astype(np.float64) for key, value in PARAMS.items()}
            params[leaf][index] += step
            values.append(oracle(objective, params, batch))
        expected = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(gradient[leaf][index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rloo", "grpo", "dapo"])
def test_accumulation_gives_the_update_of_the_whole_batch(name):
    """Groups are spread over the micro-batches: their statistics are from before."""
    results = []
    for grad_accum in (1, 4):
        step = make_train_step(Bigram(), CASES[name], optax.sgd(0.5), lambda _: 0.5, StepConfig(grad_accum=grad_accum))
        params = jax.tree.map(jnp.array, PARAMS)
        results.append(step(TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(0.5).init(params)), BATCH))
    (state, metrics), (other, others) = results
    for a, b in zip(jax.tree.leaves((state.params, metrics)), jax.tree.leaves((other.params, others)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_group_of_equal_rewards_gives_no_gradient():
    objective = replace(BASE, kind="grpo", kl=0.0)
    equal = replace(BATCH, value_B=np.full(len(BATCH.value_B), 0.1, np.float32))
    prepared = objective.prepare_batch(Bigram(), PARAMS, equal)
    assert not np.any(prepared.advantage_B)
    first = np.asarray(objective.prepare_batch(Bigram(), PARAMS, BATCH).advantage_B)
    assert not first[:GROUP].any() and first[GROUP:].all()


def test_rows_of_answers():
    """Prompts end in one column; labels are the answers; the token before the first answer token is the prompt's."""
    prompts = Batch(target_BT=np.array([[2, 5, 6], [2, 7, 0]]), target_valid_BT=np.array([[1, 1, 1], [1, 1, 0]], bool))
    tokens_RL, length_R = np.array([[8, 9, 3], [8, 3, 0], [4, 5, 6], [3, 0, 0]]), np.array([3, 2, 3, 1])
    batch = answer_batch(prompts, tokens_RL, length_R)
    assert batch.target_BT.tolist() == [[2, 5, 6, 8, 9], [2, 5, 6, 8, 3], [0, 2, 7, 4, 5], [0, 2, 7, 3, 0]]
    assert batch.target_valid_BT.astype(int).tolist() == [[1] * 5, [1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]
    labels = [row[mask].tolist() for row, mask in zip(batch.label_BT, batch.label_valid_BT, strict=True)]
    assert labels == [[8, 9, 3], [8, 3], [4, 5, 6], [3]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampler": Sampler(top_k=5, min_p=0.1)}, "top_k=5, min_p=0.1: samples would not be those of the policy"),
        ({"sampler": Sampler(repetition_penalty=1.1)}, "repetition_penalty=1.1"),
        ({"sampler": Sampler(temperature=0.0)}, "all answers to a prompt would be equal"),
        ({"num_samples": 1}, "rloo compares at least 2 answers"),
        ({"baseline": "none"}, "baseline = 'none' has no effect on 'rloo'"),
        ({"kappa": "k3"}, "kappa = 'k3' has no effect on 'rloo'"),
        ({"kl": 0.0, "max_kl": 3.0}, "max_kl needs the reference"),
    ],
    ids=["filters", "penalty", "greedy", "one-sample", "baseline", "kappa", "max-kl"],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PolicyGradient(**options)

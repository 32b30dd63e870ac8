"""PPO against NumPy in float64, its gradient against finite differences, and its laws."""

from dataclasses import replace
from functools import partial, reduce
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.preference_rows import Bigram, bigram_params
from fixtures.reward_rows import GROUP, reward_batch, toy_rewards
from fixtures.tiny_run import lines

import jaxlm
from jaxlm import ActorCritic, FineTuning, PolicyGradient, RunOptions, UserError
from jaxlm.training.state import TrainState
from jaxlm.training.step import StepConfig, make_train_step

MODEL = ActorCritic(Bigram())
OBJECTIVE = PolicyGradient(kind="ppo", num_samples=GROUP, kl=0.3, gae_lambda=0.8, value_weight=0.7, value_clip=0.1)


def parameters():
    rng = np.random.default_rng(5)
    return {"model": bigram_params(), "value": rng.normal(size=4).astype(np.float32)}


def values_of(params, batch):
    table, value_D = np.asarray(params["model"]["table"], np.float64), np.asarray(params["value"], np.float64)
    return table[batch.target_BT] @ value_D


def batch_near(params):
    """Old log-probabilities and values near the model's own in half of the rows, so that some are clipped."""
    batch = reward_batch()
    rng, even_B1 = np.random.default_rng(1), np.arange(len(batch.value_B))[:, None] % 2 == 0
    near_BT = np.asarray(OBJECTIVE.log_probs(MODEL, params, batch)[0]) + 0.02
    old_BT = np.where(batch.loss_mask_BT, np.where(even_B1, near_BT, batch.old_logprob_BT), 0.0)
    value_BT = values_of(params, batch) + rng.choice([0.02, -0.3, 0.4], batch.target_BT.shape)
    return replace(batch, old_logprob_BT=old_BT.astype(np.float32), old_value_BT=value_BT.astype(np.float32))


def oracle(params, batch):
    """The mean loss in float64, one loop over answers and one over tokens."""
    table, output = (np.asarray(params["model"][name], np.float64) for name in ("table", "output"))
    logits_BTV = table[batch.target_BT] @ output
    log_p_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    log_p_BT = np.take_along_axis(log_p_BTV, batch.label_BT[..., None], -1)[..., 0]
    columns = log_p_BT, values_of(params, batch), batch.old_logprob_BT, batch.reference_logprob_BT, batch.old_value_BT
    rows = []
    for row, mask in enumerate(batch.loss_mask_BT):
        lp, now, old, ref, value = (np.asarray(column[row][mask], np.float64) for column in columns)
        advantage, last = np.zeros(len(lp)), 0.0
        for t in reversed(range(len(lp))):
            is_last = t == len(lp) - 1
            reward = -OBJECTIVE.kl * (old[t] - ref[t]) + (batch.value_B[row] if is_last else 0.0)
            delta = reward + (0.0 if is_last else value[t + 1]) - value[t]
            advantage[t] = last = delta + OBJECTIVE.gae_lambda * last
        rows.append((lp, now, old, value, advantage, advantage + value))
    lp, now, old, value, advantage, target = (np.concatenate(column) for column in zip(*rows, strict=True))
    white = (advantage - advantage.mean()) / np.sqrt(advantage.var(ddof=1) + 1e-8)
    ratio, near = np.exp(lp - old), np.clip(now, value - OBJECTIVE.value_clip, value + OBJECTIVE.value_clip)
    policy = -np.minimum(ratio * white, np.clip(ratio, 1 - OBJECTIVE.epsilon, 1 + OBJECTIVE.epsilon) * white)
    critic = 0.5 * np.maximum((now - target) ** 2, (near - target) ** 2)
    return (policy + OBJECTIVE.value_weight * critic).mean()


def test_the_loss_equals_its_formula():
    """And its gradient finite differences, that of the value head too."""
    params = parameters()
    batch = batch_near(params)

    def loss(params):
        sums = OBJECTIVE(MODEL, params, OBJECTIVE.prepare_batch(MODEL, params, batch), None)
        return sums.total / sums.count

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, oracle(params, batch), rtol=1e-5, atol=1e-6)
    tree = partial(jax.tree.map, lambda x: np.array(x, np.float64), params)
    for path, index in ((("model", "table"), (6, 3)), (("model", "output"), (1, 5)), (("value",), 2)):
        sides = []
        for step in (1e-5, -1e-5):
            reduce(getitem, path, moved := tree())[index] += step
            sides.append(oracle(moved, batch))
        np.testing.assert_allclose(
            reduce(getitem, path, gradient)[index], (sides[0] - sides[1]) / 2e-5, rtol=1e-4, atol=1e-5
        )


def test_accumulation_gives_the_update_of_the_whole_batch():
    batch, results = batch_near(parameters()), []
    for grad_accum in (1, 4):
        step = make_train_step(MODEL, OBJECTIVE, optax.sgd(0.5), lambda _: 0.5, StepConfig(grad_accum=grad_accum))
        params = jax.tree.map(jnp.array, parameters())
        results.append(step(TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(0.5).init(params)), batch)[0].params)
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_learns_and_resumes_exactly(tmp_path):
    """From a language model, whose copy the value head reads; two updates on each rollout."""
    one = RunOptions(mesh={"data": 1})
    base = toy_rewards(PolicyGradient(num_samples=4, max_tokens=5), steps=1, evaluate_every=1, checkpoint_every=1)
    jaxlm.train(base, tmp_path / "base", run_options=one)
    experiment = toy_rewards(
        PolicyGradient(kind="ppo", num_samples=4, max_tokens=5, updates=2, value_weight=1.0), model=ActorCritic(),
        finetuning=FineTuning(init=str(tmp_path / "base")), steps=24, log_every=2, evaluate_every=12,
        checkpoint_every=12,
    )  # fmt: skip
    jaxlm.train(experiment, tmp_path / "whole", run_options=one)
    log = [line for line in lines(tmp_path / "whole") if "train/reward" in line]
    assert log[-1]["train/reward"] > log[0]["train/reward"] + 0.2 and "train/kl" in log[0]
    jaxlm.train(replace(experiment, steps=12), tmp_path / "run", run_options=one)
    jaxlm.train(experiment, tmp_path / "run", run_options=one)
    ours, theirs = (jax.tree.leaves(jaxlm.load(tmp_path / name, step=24).params) for name in ("run", "whole"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert jaxlm.load(tmp_path / "run").generate(["a b"], max_tokens=3)[0].text


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="scale = 'none' has no effect on 'ppo'"):
        PolicyGradient(kind="ppo", scale="none")
    with pytest.raises(UserError, match="value_clip = 0.5 has no effect on 'rloo'"):
        PolicyGradient(value_clip=0.5)
    with pytest.raises(UserError, match="ppo and ActorCritic need each other"):
        jaxlm.train(toy_rewards(PolicyGradient(kind="ppo", num_samples=4, max_tokens=5)), tmp_path / "run")

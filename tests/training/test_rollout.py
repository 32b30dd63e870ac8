"""Runs on rewards: samples are a function of (seed, step), resuming is exact, and what does not fit is refused."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
import pytest
from fixtures.preference_rows import TOY_MODEL, TOY_VOCAB
from fixtures.reward_rows import Capitals, ToyPrompts, toy_rewards
from fixtures.tiny_run import lines

import jaxlm
from jaxlm import FineTuning, LoRA, Packing, PolicyGradient, RunOptions, UserError, Words
from jaxlm.data.batching.eval_batches import collate_rows
from jaxlm.models.properties import dummy_batch, init_params
from jaxlm.objectives.next_token import NextToken
from jaxlm.training import rollout
from jaxlm.training.judges import AnswerJudge
from jaxlm.training.rollout import Rollouts

train = partial(jaxlm.train, run_options=RunOptions(mesh={"data": 1}))
OBJECTIVE = PolicyGradient(num_samples=4, max_tokens=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of ten steps, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(toy_rewards(), folder)


def test_a_run_learns_and_logs_its_figures(whole):
    folder, summary = whole
    log = lines(folder)
    assert log[0]["train/kl"] == 0.0 and log[-1]["valid/kl"] > 0  # the model is its reference at first
    assert summary["valid/reward"] > log[0]["train/reward"] + 0.2
    assert max(line.get("train/sampler/gap", 0.0) for line in log) < 1e-4
    names = {"length", "ended", "distinct/1", "distinct/2", "group/flat", "clipped"}
    assert {f"train/{name}" for name in names} <= set(log[0])
    scores = jaxlm.load(folder).evaluate("test")
    assert set(scores) >= {"reward", "words", "ended", "distinct/2"} and scores["reward"] > 0.5
    assert jaxlm.load(folder).predict(["a b"])[0].isupper() and jaxlm.load(folder).score(["a b A"])[0].logprob < 0


@pytest.mark.parametrize("updates", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_the_uninterrupted_one(whole, tmp_path, updates):
    """Parameters and log bit for bit, and so the samples."""
    objective = replace(OBJECTIVE, updates=updates)
    intervals = {"evaluate_every": 4, "checkpoint_every": 4, "log_every": 2} if updates > 1 else {}
    experiment, expected = toy_rewards(objective, **intervals), whole[0]
    if updates > 1:
        expected = tmp_path / "whole"
        train(experiment, expected)
    train(replace(experiment, steps=4 if updates > 1 else 5), tmp_path / "run")
    train(experiment, tmp_path / "run")
    resumed, uninterrupted = ([line for line in lines(f) if line["step"] > 5] for f in (tmp_path / "run", expected))
    assert resumed == uninterrupted
    for ours, theirs in zip(*(jax.tree.leaves(jaxlm.load(f, step=10).params) for f in (tmp_path / "run", expected)),
                            strict=True):  # fmt: skip
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def rollouts():
    """Rollouts of a random model, its parameters, and prompts of rows by number."""
    task = toy_rewards().task
    tokenizer = Words(TOY_VOCAB).fit(task.texts())
    params = init_params(TOY_MODEL, jax.random.key(0), dummy_batch())
    columns, rows = task.encode_split("train", tokenizer), list(task.train)

    def prompts(*numbers):  # eight rows: those after the last prompt only fill the shape
        return collate_rows(columns, np.array([*numbers, *[-1] * (8 - len(numbers))]), 4)

    made = Rollouts(OBJECTIVE, TOY_MODEL, tokenizer, task.encoder(tokenizer).stop_ids, task.judge, params)
    return lambda address, *numbers: made.roll_out(params, prompts(*numbers), rows, 4, address)


def test_samples_are_a_function_of_seed_step_and_example(rollouts):
    """Whatever else is in the batch; answers to one prompt differ."""
    (_, first, _), (batch, again, _) = rollouts("sample 0 3", 1, 5, 2), rollouts("sample 0 3", 5, 9)
    assert first[4:8] == again[:4] and len(set(again[:4])) > 1
    assert rollouts("sample 0 4", 5, 9)[1][:4] != again[:4]
    assert len(again) == 8 and len(batch.target_BT) == 32


def test_learner_and_sampler_agree(rollouts, monkeypatch):
    """The mean gap of the log-probabilities of an answer; larger ones stop the run."""
    figure = rollouts("sample 0 0", 0, 1, 2, 3)[2]["sampler/gap"]
    assert figure[0] / figure[1] <= 1e-4
    monkeypatch.setattr(rollout, "MAX_SAMPLER_GAP", -1.0)
    with pytest.raises(UserError, match="not those of the model that learns"):
        rollouts("sample 0 0", 0, 1, 2, 3)


@dataclass(frozen=True)
class Faulty(AnswerJudge):
    """A judge with a fault."""

    reward_of_all: float = 0.0

    def reward(self, prompt, answer, row):
        return self.reward_of_all


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"judge": Faulty(float("nan"))}, "the judge Faulty gave the reward nan for the answer '"),
        ({"objective": NextToken()}, "Rewards and PolicyGradient need each other"),
        ({"batching": Packing(length=8, tokens=64)}, "batching = Packing: answers have rows of their own"),
        ({"objective": replace(OBJECTIVE, updates=3)}, "steps, log_every, evaluate_every, checkpoint_every: expected"),
        ({"objective": replace(OBJECTIVE, reference="base")}, "set --finetuning.lora"),
    ],
    ids=["nan", "objective", "packing", "updates", "base"],
)
def test_parts_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(toy_rewards(**changes), tmp_path / "run")


@pytest.mark.slow
def test_the_run_stops_above_max_kl(tmp_path):
    """With the best checkpoint from before; the same call does not go on."""
    experiment = toy_rewards(replace(OBJECTIVE, max_kl=0.5), steps=30)
    summary = train(experiment, tmp_path / "run")
    assert summary["stopped"] == "max_kl" and summary["step"] < 30
    assert train(experiment, tmp_path / "run")["step"] == summary["step"]


@pytest.mark.slow
def test_a_run_on_several_devices(whole, tmp_path):
    """The first updates are those of one device, up to rounding: the samples are the same."""
    jaxlm.train(toy_rewards(steps=3), tmp_path / "run", run_options=RunOptions(mesh={"data": 2, "fsdp": 2}))
    names = "train/reward", "train/kl", "train/length", "train/gradient_norm"
    for ours, theirs in zip(lines(tmp_path / "run")[:3], lines(whole[0])[:3], strict=True):
        assert [ours[n] for n in names] == pytest.approx([theirs[n] for n in names], rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reinforce", "grpo", "dapo", "dr_grpo"])
def test_other_kinds_learn(tmp_path, kind):
    """With the base under LoRA as reference."""
    objective = replace(OBJECTIVE, kind=kind, reference="base", mask_cut=kind == "dapo")
    train(toy_rewards(objective, finetuning=FineTuning(lora=LoRA(rank=4)), steps=20), tmp_path / "run")
    log = [line for line in lines(tmp_path / "run") if "train/reward" in line]
    assert log[0]["train/kl"] == pytest.approx(0.0, abs=1e-6)
    assert np.mean([line["train/reward"] for line in log[-5:]]) > np.mean([line["train/reward"] for line in log[:5]])


def test_prompts_are_the_columns():
    task = toy_rewards().task
    tokenizer = Words(TOY_VOCAB).fit(task.texts())
    columns = task.encode_split("train", tokenizer)
    assert tokenizer.decode([columns["target"][5]]) == ["b d"] and columns["class"].flat.tolist() == list(range(16))
    with pytest.raises(UserError, match="expected one that can be called"):
        replace(task, judge=None)
    assert isinstance(task.judge, Capitals) and ToyPrompts(3).check().kept == 3

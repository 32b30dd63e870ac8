"""Runs on preferences: columns and batches, the three references, resuming, a reward model, and refused data."""

import shutil
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from fixtures.preference_rows import TOY_MODEL, TOY_TEMPLATE, TOY_VOCAB, ToyJudged, ToyPairs, toy_experiment
from fixtures.tiny_run import lines

import jaxlm
from jaxlm import FineTuning, LoRA, Packing, RunOptions, UserError, Words
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import first_nonzero
from jaxlm.models.reward_model import RewardModel
from jaxlm.objectives.preference import KTO, PairwisePreference
from jaxlm.objectives.reward_model import BradleyTerry
from jaxlm.tasks.preferences import Preferences

train = partial(jaxlm.train, run_options=RunOptions(mesh={"data": 1}))
LIVE = PairwisePreference(reference="live")
JUDGED = Preferences(ToyJudged(), ToyJudged(ToyPairs(8, 1)), ToyJudged(ToyPairs(8, 2)), chat_template=TOY_TEMPLATE)


def encode(task):
    tokenizer = Words(TOY_VOCAB).fit(task.texts())
    return tokenizer, task.encode_train(tokenizer, None, ReadStats())


def test_columns_of_pairs():
    """Both answers have the same prompt, and a batch has both in one shape."""
    experiment = toy_experiment()
    tokenizer, columns = encode(experiment.task)
    row = next(iter(experiment.task.train))
    assert tokenizer.decode([columns["target"][0], columns["other_target"][0]]) == [
        f"{row.prompt.text} {answer}" for answer in (row.chosen, row.rejected)
    ]
    for name in ("", "other_"):
        mask = columns[f"{name}loss_mask"]
        assert (first_nonzero(mask) == 2).all() and (mask.lengths == columns[f"{name}target"].lengths + 1).all()
    batch = experiment.batching.batches(columns)[0]
    assert batch.target_BT.shape == batch.other.target_BT.shape and batch.other.loss_mask_BT.any(1).all()
    assert (batch.value_B == 0).all()
    with pytest.raises(UserError, match="pairs of answers cannot share a row"):
        Packing(length=8, tokens=64).batches(columns)


def test_columns_of_judged_answers():
    """The other answer is that of another example, to another prompt, after the prompt of the row."""
    tokenizer, columns = encode(JUDGED)
    own, other, rows = columns["target"], columns["other_target"], list(JUDGED.train)
    prompts = [row.prompt.text for row in rows]
    for index in range(len(own)):
        assert (own[index][:2] == other[index][:2]).all()
        (answer,) = tokenizer.decode([other[index][2:]])
        assert any(row.answer == answer and row.prompt.text != prompts[index] for row in rows)
    assert columns["class"].flat.tolist() == [1, 0] * 32


@pytest.mark.parametrize(
    "source, message",
    [
        (ToyJudged(ToyPairs(8, prompts=("a b",))), "toy judgments: all 16 answers are to one prompt"),
        (ToyJudged(ToyPairs(8), all_good=True), "toy judgments: all 16 answers are good"),
    ],
    ids=["one-prompt", "one-label"],
)
def test_judged_answers_that_teach_nothing(source, message):
    with pytest.raises(UserError, match=message):
        encode(replace(JUDGED, train=source))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run of ten steps with a stored reference, its summary, and the folder."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    return folder, train(toy_experiment(), folder)


def params_of(folder):
    return jax.tree.leaves(jaxlm.load(folder, step=10).params)


def test_a_run_logs_its_figures(stored):
    folder, summary = stored
    log = lines(folder)
    assert log[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5)  # the model is its reference
    assert abs(log[0]["train/rewards/chosen"]) < 1e-5 and log[-1]["valid/accuracy"] > 0.7
    names = {"rewards/chosen", "rewards/rejected", "margin", "accuracy", "logp/chosen", "logp/rejected"}
    assert {f"train/{name}" for name in names | {"length/chosen", "length/rejected"}} <= set(log[0])
    assert summary["step"] == 10 and summary["train/margin"] > 0


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(stored, tmp_path, capfd):
    """With the reference of the first step: parameters and log bit for bit."""
    train(replace(toy_experiment(), steps=5), tmp_path / "run")
    assert "the loss of the first 8 rows is 0.69314" in capfd.readouterr().err
    train(toy_experiment(), tmp_path / "run")
    assert lines(tmp_path / "run") == lines(stored[0])
    for a, b in zip(params_of(tmp_path / "run"), params_of(stored[0]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_live_reference_equals_a_stored_one(stored, tmp_path):
    """Also after a restart, which reads the parameters of the first step."""
    train(replace(toy_experiment(LIVE), steps=5), tmp_path / "run")
    train(toy_experiment(LIVE), tmp_path / "run")
    for ours, theirs in zip(lines(tmp_path / "run")[1:], lines(stored[0])[1:], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4)  # in the first line the margins are rounding errors


@pytest.mark.slow
def test_the_base_under_lora_is_a_reference(tmp_path):
    """The adapted model equals its base at step 0, and moves away from it."""
    finetuning = FineTuning(lora=LoRA(rank=2))
    train(toy_experiment(PairwisePreference(reference="base"), finetuning=finetuning), tmp_path / "lora")
    log = lines(tmp_path / "lora")
    assert log[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert log[-1]["valid/margin"] > 0 and log[-1]["valid/loss"] < np.log(2)


@pytest.mark.slow
def test_kto_runs(tmp_path):
    train(toy_experiment(KTO(0.5), task=JUDGED, steps=5), tmp_path / "kto")
    log = lines(tmp_path / "kto")
    assert log[0]["train/loss"] == pytest.approx(0.5, abs=1e-5) and log[0]["train/kl"] < 1e-4
    assert log[-1]["valid/rewards/desirable"] > log[-1]["valid/rewards/undesirable"]


@pytest.mark.slow
def test_a_reward_model_scores_answers(tmp_path):
    experiment = toy_experiment(BradleyTerry(0.01), model=RewardModel(TOY_MODEL), best_metric="valid/accuracy")
    train(experiment, tmp_path / "reward")
    run = jaxlm.load(tmp_path / "reward")
    good, bad = (float(text) for text in run.predict(["a b\tA B", "a b\ta b"]))
    figures = run.evaluate("test")
    assert good > bad and figures["accuracy"] >= 0.75 and -1 <= figures["length_correlation"] <= 1
    assert run.predict([" ", "c d\tA"])[0] == ""


def test_references_that_do_not_fit(stored, tmp_path):
    for objective, changes, message in (
        (PairwisePreference(reference="base"), {}, "set --finetuning.lora"),
        (PairwisePreference(reference_workdir=str(stored[0])), {"task": JUDGED}, "another vocabulary"),
    ):
        if "task" in changes:  # other words
            pairs = ToyPairs(prompts=("x y", "z b"))
            changes = {"task": Preferences(pairs, pairs, pairs, chat_template=TOY_TEMPLATE)}
        with pytest.raises(UserError, match=message):
            train(toy_experiment(objective, **changes), tmp_path / "refused")


def test_a_damaged_reference_is_not_computed_again(stored, tmp_path):
    """The parameters that it belongs to are gone."""
    shutil.copytree(stored[0], tmp_path / "run")
    file = tmp_path / "run" / "reference" / "train.ids"
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(UserError, match="is damaged, and the parameters that it was computed with"):
        train(replace(toy_experiment(), steps=12), tmp_path / "run")

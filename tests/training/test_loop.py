"""The training loop: it resumes bit for bit, refuses what would mix two runs, stops when it should, and learns."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures.shared_steps import shared_steps  # noqa: F401 (a fixture)
from fixtures.tiny_run import CASES, EXPERIMENT, LSTM, MODEL, lines, overfit, stored

from jaxlm import runtime
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.data.sources.parallel import Tsv
from jaxlm.distributed.sharding import data_mesh, replicated_sharding, with_shardings
from jaxlm.errors import UserError
from jaxlm.inference.translate import translate
from jaxlm.models.properties import dummy_batch
from jaxlm.optim import AdamW, Constant, CosineDecay
from jaxlm.training import setup
from jaxlm.training.loop import TrainLoop, train
from jaxlm.training.run_options import RunOptions
from jaxlm.training.state import create_train_state
from jaxlm.workdir import Workdir


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Steps on eight pretended devices take their time; one of the cases does them."""
    monkeypatch.setattr(setup, "data_mesh", lambda: data_mesh(1))


def abstract_state(experiment):
    optimizer = experiment.optimizer.build(experiment.steps)
    shapes = jax.eval_shape(
        lambda: create_train_state(
            experiment.model, optimizer, dummy_batch(), experiment.seed, "ema" if experiment.ema_decay else ""
        )
    )
    return with_shardings(shapes, replicated_sharding(setup.data_mesh()))


def assert_same_run(experiment, found: Path, expected: Path) -> None:
    """Parameters, optimizer state, average, step; and every figure in metrics.jsonl that is not of the clock."""
    (a, step), (b, last) = (stored(folder, abstract_state(experiment)) for folder in (found, expected))
    assert step == last == experiment.steps
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)
    assert lines(found) == lines(expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of each case."""
    made = {}

    def folder(name) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            summary = train(CASES[name], made[name])
            assert summary["step"] == 20 and "stopped" not in summary
        return made[name]

    return folder


@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "plain")]
)
def test_ten_steps_and_ten_more_are_twenty(name, whole, tmp_path, monkeypatch):
    if name != "plain":
        monkeypatch.setattr(setup, "data_mesh", data_mesh)
    train(replace(CASES[name], steps=10), tmp_path / "run")
    assert train(CASES[name], tmp_path / "run")["step"] == 20
    assert_same_run(CASES[name], tmp_path / "run", whole(name))
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert steps == sorted(steps) and set(steps) == {5, 10, 15, 20}


KILLED = """
import os, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_disable_most_optimizations", True)
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.training.loop import train
from jaxlm.workdir import Workdir
from jaxlm.models.properties import dummy_batch
from fixtures.tiny_run import CASES

save = Checkpoints.save

def save_and_die(self, step, *arguments):
    save(self, step, *arguments)
    if step == 10:
        self.wait() if sys.argv[2] == "whole" else None
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_and_die
train(CASES["plain"], Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["whole", "half written"])
def test_a_killed_run_goes_on(checkpoint, whole, tmp_path):
    """SIGKILL, in the moment when checkpoint 10 is on disk, or has just begun to be."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), checkpoint]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert train(CASES["plain"], tmp_path / "run")["step"] == 20
    assert_same_run(CASES["plain"], tmp_path / "run", whole("plain"))


def test_a_run_that_broke_off_between_checkpoints_goes_on(whole, tmp_path, monkeypatch):
    """Steps, log lines and data positions after the last checkpoint are done again, not twice."""
    housekeeping = TrainLoop._log_eval_save

    def power_cut(self, state, step, stopped):
        if step == 17:
            raise KeyboardInterrupt
        return housekeeping(self, state, step, stopped)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TrainLoop, "_log_eval_save", power_cut)
        train(CASES["plain"], tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["step"] == 15
    train(CASES["plain"], tmp_path / "run")
    assert_same_run(CASES["plain"], tmp_path / "run", whole("plain"))


def test_a_signal_saves_and_stops(whole, tmp_path, monkeypatch):
    """At the end of the step under way, which is no checkpoint's otherwise; then the run goes on as if nothing was."""
    housekeeping, before = TrainLoop._log_eval_save, signal.getsignal(signal.SIGTERM)

    def interrupted(self, state, step, stopped):
        if step == 7:
            signal.raise_signal(signal.SIGTERM)
        return housekeeping(self, state, step, stopped)

    with monkeypatch.context() as patched:
        patched.setattr(TrainLoop, "_log_eval_save", interrupted)
        summary = train(CASES["plain"], tmp_path / "run")
    assert summary["step"] == 7 and summary["stopped"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == before
    assert stored(tmp_path / "run", abstract_state(CASES["plain"]))[1] == 7
    assert train(CASES["plain"], tmp_path / "run")["step"] == 20
    assert_same_run(CASES["plain"], tmp_path / "run", whole("plain"))
    checkpoints = [
        {path.name for path in (run / "checkpoints").iterdir()} for run in (tmp_path / "run", whole("plain"))
    ]
    assert checkpoints[0] == checkpoints[1], "that of step 7 has gone: it must not be averaged or be the best one"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation(number, whole, tmp_path, monkeypatch):
    """Between two of its batches; the step is saved, and the resumed run makes the evaluation and is the same run."""
    looks = []

    def interrupted(look=runtime.between_batches):
        looks.append(1)
        if len(looks) == 2:
            signal.raise_signal(number)
        look()

    with monkeypatch.context() as patched:
        patched.setattr(runtime, "between_batches", interrupted)
        summary = train(CASES["plain"], tmp_path / "run")
    assert summary["step"] == 10 and summary["stopped"] == "interrupted" and len(looks) == 2
    assert not any("valid/bleu" in line for line in lines(tmp_path / "run"))
    assert train(CASES["plain"], tmp_path / "run")["step"] == 20
    assert_same_run(CASES["plain"], tmp_path / "run", whole("plain"))
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True, keep_best="valid/bleu") as checkpoints:
        with Checkpoints(whole("plain") / "checkpoints", read_only=True, keep_best="valid/bleu") as expected:
            assert checkpoints.best_step() == expected.best_step()


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(replace(EXPERIMENT, steps=5), tmp_path / "run")))
    thread.start()
    thread.join()
    assert found[0]["step"] == 5


def test_what_may_change_on_resuming(whole, tmp_path):
    """Steps, intervals and patience may; what the first steps depended on may not, and is named."""
    run, old, task = tmp_path / "run", replace(EXPERIMENT, steps=5), EXPERIMENT.task
    train(old, run)
    changes = {
        r"model\.width: 24 here, 16": {"model": replace(MODEL, width=24)},
        r"seed: 1 here, 0": {"seed": 1},
        r"optimizer\.schedule\.peak: 0\.5 here, 0\.01": {"optimizer": replace(old.optimizer, schedule=Constant(0.5))},
        r"task\.train\.count: 65 here, 64": {"task": replace(task, train=replace(task.train, count=65))},
        r"grad_accum: 2 here, 1": {"grad_accum": 2},
    }  # fmt: skip
    for message, change in changes.items():
        with pytest.raises(UserError, match=message):
            train(replace(old, **change), run)
    harmless = replace(old, steps=6, log_every=1, evaluate_every=3, checkpoint_every=2, keep_checkpoints=1, patience=9)
    assert train(harmless, run)["step"] == 6
    assert Workdir(run).read_experiment() == harmless


def test_the_data_may_not_change_below_a_run(tmp_path):
    """The same file with other lines: neither the old run nor a new one."""
    folder, rows = tmp_path / "run", [f"der {word} schläft\tthe {word} sleeps" for word in "abcdefghijkl" * 6]
    file = tmp_path / "pairs.tsv"
    task = replace(EXPERIMENT.task, train=Tsv(str(file), 0, 1))
    old = replace(EXPERIMENT, task=task, steps=2)
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    train(old, folder)
    assert train(replace(old, steps=3), folder)["step"] == 3
    kept = (folder / "data.json").read_text()
    file.write_text("\n".join(rows[::-1]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="training data of .*run has changed: source 72 rows of .* now"):
        train(replace(old, steps=4), folder)
    assert (folder / "data.json").read_text() == kept
    assert train(replace(old, steps=4), folder, run_options=RunOptions(accept_changed_data=True))["step"] == 4
    assert (folder / "data.json").read_text() != kept
    (change,) = map(json.loads, (folder / "data_changes.jsonl").read_text().splitlines())
    assert change == {"after_step": 3, "before": json.loads(kept)}
    assert train(replace(old, steps=5), folder)["step"] == 5
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "checkpoints")  # nothing learned yet: the run begins again with what there is
    assert train(replace(old, steps=1), folder)["step"] == 1 and (folder / "data.json").read_text() == kept


def test_a_schedule_with_an_end_keeps_its_end(tmp_path):
    """Another number of steps would have been another rate from the first step on."""
    old = replace(EXPERIMENT, optimizer=AdamW(CosineDecay(1e-2)), steps=5)
    Workdir(tmp_path / "run").open_or_create(old)
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match="steps: 20 here, 5"):
        train(replace(old, steps=20), tmp_path / "run")


def test_a_finished_run_stays_as_it_is(whole):
    before = lines(whole("plain"))
    summary = train(CASES["plain"], whole("plain"))
    assert summary["step"] == 20 and lines(whole("plain")) == before


def test_patience_stops(tmp_path, monkeypatch):
    """After so many evaluations without a better figure; the best one stays known, also to a run that goes on."""
    figures = iter([1.0, 3.0, 3.0, 2.0, 9.0, 5.0, 5.0, 8.0])
    monkeypatch.setattr(type(EXPERIMENT.task), "validate", lambda *_: {"valid/bleu": next(figures)})
    patient = replace(EXPERIMENT, evaluate_every=2, patience=2, steps=20)
    summary = train(patient, tmp_path / "run")
    assert (summary["step"], summary["stopped"]) == (8, "patience")
    assert (summary["best_step"], summary["best/valid/bleu"]) == (4, 3.0)
    summary = train(replace(patient, patience=3), tmp_path / "run")
    assert (summary["step"], summary["best_step"], summary["best/valid/bleu"]) == (16, 10, 9.0)


def test_an_evaluation_that_fails_loses_nothing(tmp_path, monkeypatch):
    """The step is saved before the run ends with the error."""

    def refuse(*_):
        raise UserError("text 3 is too long")

    monkeypatch.setattr(type(EXPERIMENT.task), "validate", refuse)
    with pytest.raises(UserError, match="text 3 is too long"):
        train(replace(EXPERIMENT, evaluate_every=3, checkpoint_every=4, steps=4), tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [3]


def test_a_loss_that_is_no_number_stops(tmp_path):
    """With a sentence that says what to do; the checkpoints are from before, and the log says when."""
    wild = replace(EXPERIMENT, optimizer=AdamW(Constant(1e38)), checkpoint_every=5, steps=20)
    with pytest.raises(UserError, match="loss became nan before step 5.*peak"):
        train(wild, tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run")] == [5]
    assert lines(tmp_path / "run")[0]["train/loss"] == "nan"


@pytest.mark.parametrize("model", [MODEL, pytest.param(LSTM, marks=pytest.mark.slow)], ids=["transformer", "lstm"])
def test_eight_pairs_by_heart(model, tmp_path):
    """From text to text: trained, saved, loaded from the folder, and every pair is translated exactly."""
    experiment = overfit(model if model is LSTM else replace(model, dropout=0.0))
    summary = train(experiment, tmp_path / "run")
    assert summary["train/loss"] < 0.1 and summary["valid/bleu"] > 99.9
    losses = [line["train/loss"] for line in lines(tmp_path / "run") if "train/loss" in line]
    assert losses[0] > 4 * losses[-1]
    trained = Workdir(tmp_path / "run").load()
    pairs = list(experiment.task.train)
    answers = translate(trained, [s for s, _ in pairs], experiment.task.search)
    assert [answer[0].text for answer in answers] == [target for _, target in pairs]
    assert trained.steps == [150] and np.isfinite(jax.tree.leaves(trained.params)[0]).all()

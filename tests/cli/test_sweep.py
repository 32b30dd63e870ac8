"""`jaxlm sweep` and `jaxlm runs`: a run for each combination, and the table of what differs."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures import cli_runs

from jaxlm.cli.experiments import import_experiment, resolve_experiment
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.filesystem import lock_folder
from jaxlm.workdir import Workdir

command = cli_runs.command  # fixture
TINY = f"{cli_runs.EXPERIMENT}:tiny"


class FakeRun:
    """A process of `jaxlm train` that writes a workdir; the run with seed 1 fails."""

    def __init__(self, words, stdout, stderr, start_new_session):
        self.code = int("1" in words)
        experiment, options = _parse(words[4:])
        stdout.write(b"a fault\n" if self.code else b"")
        if not self.code:
            Workdir(options.workdir).write_experiment(experiment)
            line = {"step": experiment.steps, experiment.best_metric: experiment.optimizer.schedule.peak}
            Workdir(options.workdir).metrics_file.write_text(json.dumps(line) + "\n")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def wait(self):
        return self.code


def _parse(words):
    parser = ExperimentParser("train", "")
    parser.add_argument("--workdir", type=Path)
    return parser.parse_experiment(words)


def test_a_sweep_trains_all_combinations_and_sorts_them(command, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.cli.training.sweep.subprocess", SimpleNamespace(Popen=FakeRun))
    grid = ["--grid", "optimizer.schedule.peak=1e-3,3e-3", "seed=0,1"]
    found = command("sweep", TINY, "--workdir", tmp_path, *grid, "--steps", "7")
    assert found.code == 1, "two runs failed"
    assert found.err.count("failed (") == 2 and "peak=1e-3,seed=1.log): a fault" in found.err
    assert [line.split()[0] for line in found.lines] == ["run", "peak=3e-3,seed=0", "peak=1e-3,seed=0"]
    assert "finished" in found.lines[1] and "optimizer.schedule.peak=0.003" in found.lines[1]
    assert "seed" not in found.lines[1].split("optimizer")[1], "the same in both"
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [(row["step"], row["optimizer.schedule.peak"]) for row in rows] == [("7/7", "0.003"), ("7/7", "0.001")]


def test_the_commands_of_a_sweep_can_be_printed(command, tmp_path):
    grid = ["--grid", "model.width=16,32", "model.norm=pre", "--seed", "3"]
    lines = command("sweep", TINY, *grid, "--workdir", "runs/s", "--print", "jaxlm launch slurm").lines
    assert len(lines) == 2
    assert lines[1] == (
        f"jaxlm launch slurm {TINY} --workdir runs/s/width=32,norm=pre --seed 3 --model.width 32 --model.norm pre"
    )


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("optimizer.learning_rate=1,2", "the learning rate is optimizer.schedule.peak"),
        ("model.widht=1,2", "did you mean model.width?"),
        ("seed", "expected FIELD=VALUE,VALUE"),
        ("seed=1,1", "different values"),
        ("seed=a,b", "--seed: expected INT, found 'a'"),
    ],
)
def test_a_wrong_grid_is_refused_before_a_run(grid, message, command):
    found = command("sweep", TINY, "--grid", grid)
    assert found.code == 2 and message in found.err


def test_runs_names_state_and_differences(command, tmp_path):
    experiment = import_experiment(resolve_experiment(TINY))
    for name in ("first", "deeper/second"):
        Workdir(tmp_path / name).write_experiment(experiment)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "experiment.json").write_text("{")
    with lock_folder(tmp_path / "first"):
        found = command("runs", tmp_path, "--csv", tmp_path / "all.csv")
    assert found.code == 0, found.err
    states = {line.split("  ")[0].strip(): line for line in found.lines[1:]}
    assert "running" in states["first"] and "no step" in states["deeper/second"] and "nothing" in states["first"]
    assert "unreadable" in states["broken"]
    assert len(list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))) == 3
    assert "no run in" in command("runs", tmp_path / "missing").err

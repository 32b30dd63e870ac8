"""The ten minutes on a GPU: dry runs of its parts on the CPU; on a GPU, the parts that say what is correct."""

import json
import subprocess
import sys

import pytest

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import training, wheels
from benchmarks.gpu.figures import Session
from benchmarks.gpu.tasks import TASKS
from benchmarks.gpu.trace import Kernels, _covered, read_kernels
from jaxlm.cli.training import bench

CORRECT_ON_A_GPU = [name for name, task in TASKS.items() if task.part in (1, 2, 3)]
CHEAP = ("0.ceilings", "10.loader")


def run(name, out, dry):
    """The figures of one task, run in this process."""
    session = Session(out, name, dry)
    TASKS[name].run(session)
    lines = session.figures()
    assert lines and {line["task"] for line in lines} == {name}
    wrong = [line for line in lines if line["correct"] is False]
    assert not wrong, wrong


@pytest.mark.parametrize("name", CHEAP)
def test_a_task_runs_dry(name, tmp_path):
    run(name, tmp_path, dry=True)


@pytest.mark.parametrize("name", training.RUNS)
def test_words_of_a_run_are_options(name):
    dry = training.DRY_WORDS[name.partition("_")[0]].split()
    for words in (training.RUNS[name][1], dry):
        experiment = training.RUNS[name][1][0]
        options = [word for word in words if word != experiment]
        assert bench._parser().parse_experiment([experiment, *options, "--synthetic", "--json", "--profile", "x"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if name not in CHEAP])
def test_every_task_runs_dry(name, tmp_path):
    run(name, tmp_path, dry=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CORRECT_ON_A_GPU)
def test_a_task_is_correct_on_a_gpu(name, tmp_path):
    run(name, tmp_path, dry=False)


@pytest.mark.slow
def test_the_script_keeps_what_it_measured(tmp_path):
    """A process for each task; one that is cut off costs only itself, and the exit code reports it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--dry", "--only", "0.ceilings,10"]
    done = subprocess.run([*command, "--budget", "60"], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {line["task"]: line["value"] for line in lines if line["figure"] == "outcome"}
    assert set(outcomes) == {"0.ceilings", "10.too_large", "10.loader"}
    assert all(outcome.startswith("done") for outcome in outcomes.values())


def test_a_task_that_is_cut_off_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(script.sys, "executable", "/bin/sleep")  # `sleep -m ...` fails at once
    outcome = script.run_task(TASKS["0.ceilings"], tmp_path, 5, True, {})
    assert outcome.startswith("failed with exit code 1")
    sleeping = tmp_path / "sleep"
    sleeping.write_text("#!/bin/sh\nsleep 60\n")
    sleeping.chmod(0o700)
    monkeypatch.setattr(script.sys, "executable", str(sleeping))
    assert script.run_task(TASKS["0.ceilings"], tmp_path, 0.2, True, {}).startswith("cut off")
    assert [line["figure"] for line in Session(tmp_path, "").figures()] == ["outcome"] * 2


def test_parts_and_tasks_are_selected_by_name():
    assert [task.name for task in script.select("0,9.as_it_is")] == ["0.machine", "0.ceilings", "9.as_it_is"]
    assert len(script.select("")) == len(TASKS) and {task.part for task in TASKS.values()} == set(range(11))
    with pytest.raises(SystemExit, match="--only 11: expected parts 0 to 10"):
        script.select("11")


def test_idle_time_is_what_no_kernel_covers():
    assert _covered([(0, 4), (2, 5), (8, 10), (9, 9.5)]) == (10, 7)
    kernels = Kernels({"gemm": 3e6, "copy": 1e6}, {"gemm": 3, "copy": 2}, 5e6, 1e6)
    assert kernels.launches == 5 and kernels.longest(1) == [{"kernel": "gemm", "share": 0.75, "ms": 3.0, "runs": 3}]


def test_missing_traces_and_wheels_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="xplane"):
        read_kernels(tmp_path)
    with pytest.raises(SystemExit, match=r"no \*\.whl in it; `python -m benchmarks\.gpu\.wheels"):
        wheels.install(tmp_path)

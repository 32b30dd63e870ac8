"""Grids of runs: order, resume, faults, and a prediction that is written once; `jaxlm plan --budget`."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from fixtures.cli_runs import command, environment  # noqa: F401

from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment
from jaxlm.models.properties import abstract_params
from jaxlm.scaling import grid as grids
from jaxlm.scaling.budget import for_budget, proportional
from jaxlm.scaling.fit import check_runs, fit_law
from jaxlm.scaling.grid import Grid, GridRun, fitted_runs, train_grid, write_table
from jaxlm.scaling.table import make_runs

TINY_GRID = str(Path(__file__).parents[1] / "fixtures/tiny_grid.py")


def law(params: float, tokens: float) -> float:
    return 1.7 + 400 * params**-0.34 + 2000 * tokens**-0.3


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """A grid of four sizes and three budgets whose runs end at once with the loss of `law`; `began` lists them."""
    began: list[str] = []
    faults: dict[str, str] = {}

    def run(params: int, budget: float, use: str = "fit") -> GridRun:
        experiment = SimpleNamespace(
            params=params, steps=1, best_metric="valid/nll", loss=law(params, budget / 6 / params)
        )
        return GridRun(f"{params}-{budget:g}", experiment, budget, use)  # type: ignore[arg-type]

    def columns(run: GridRun) -> dict:
        params = run.experiment.params  # type: ignore[attr-defined]
        tokens = run.budget / 6 / params
        return {"name": run.name, "budget": run.budget, "params": params, "tokens": tokens, "flops": run.budget}

    def start(run: GridRun) -> subprocess.Popen:
        began.append(run.name)
        (tmp_path / run.name).mkdir(exist_ok=True)
        fault = faults.get(run.name, "")
        line = {"step": 1, "valid/nll": run.experiment.loss, "train/tokens": 10.0, "time/tokens_per_second": 5.0}  # type: ignore[attr-defined]
        if not fault:
            (tmp_path / run.name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (tmp_path / f"{run.name}.log").write_text(f"begins\n{fault}")
        return subprocess.Popen(["false" if fault else "true"])

    monkeypatch.setattr(grids, "_columns", columns)
    monkeypatch.setattr(grids, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(grids, "RESAMPLES", 3)
    sizes = (10_000, 30_000, 100_000, 300_000)
    held_out = [run(size, 1e13, "held out") for size in sizes]
    runs = [run(size, budget) for budget in (1e11, 3e11, 1e12) for size in sizes]
    return SimpleNamespace(grid=Grid(runs, 3e11, held_out), start=start, began=began, faults=faults, folder=tmp_path)


def test_the_prediction_comes_before_the_held_out_run_and_stays(faked):
    assert train_grid(faked.grid, faked.folder, faked.start, math.inf)
    names = [run.name for run in faked.grid.runs]
    assert faked.began[:8] == names[:8] and faked.began[9:] == names[8:]
    (predicted,) = (run for run in faked.grid.held_out if run.name == faked.began[8])
    written = (faked.folder / "prediction.json").read_text()
    assert json.loads(written)["loss"][0] == pytest.approx(predicted.experiment.loss, rel=1e-3)
    assert predicted.experiment.loss == min(run.experiment.loss for run in faked.grid.held_out)
    table = list(csv.DictReader((faked.folder / "table.csv").read_text().splitlines()))
    assert len(table) == 13 and {row["use"] for row in table} == {"fit", "held out"} and table[0]["seconds"] == "2.0"
    count = len(faked.began)
    assert train_grid(faked.grid, faked.folder, faked.start, math.inf)
    assert len(faked.began) == count and (faked.folder / "prediction.json").read_text() == written


def test_at_the_deadline_the_runs_that_began_are_saved_and_stopped(faked):
    started = []

    def start(run: GridRun) -> subprocess.Popen:
        (faked.folder / run.name).mkdir()
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    assert not train_grid(faked.grid, faked.folder, start, time.monotonic() + 0.1)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
    assert not (faked.folder / "prediction.json").exists()


def test_a_run_that_diverges_is_kept_and_left_out_and_any_other_fault_stops_the_grid(faked):
    diverged, worse = faked.grid.runs[0], faked.grid.runs[11]
    faked.faults[diverged.name] = "jaxlm: the loss became nan before step 7: lower the rate"
    worse.experiment.loss = 99.0
    assert train_grid(faked.grid, faked.folder, faked.start, math.inf)
    rows = {row["name"]: row for row in write_table(faked.grid, faked.folder)}
    assert (
        rows[diverged.name]["use"] == "not finite or not ended" and rows[worse.name]["use"] == "above a smaller budget"
    )
    assert len(fitted_runs(list(rows.values()))) == 10
    faked.faults[diverged.name] = "jaxlm: the disk is full"
    with pytest.raises(UserError, match="failed: jaxlm: the disk is full"):
        train_grid(faked.grid, faked.folder, faked.start, math.inf)


def test_too_few_runs_predict_nothing(faked, capsys):
    few = Grid(faked.grid.runs[:2], 3e11, faked.grid.held_out)
    assert train_grid(few, faked.folder, faked.start, math.inf)
    assert "no prediction: 2 runs, expected 8 or more" in capsys.readouterr().out


def test_the_small_grid():
    grid = load_small()
    uses = [run.use for run in grid.runs]
    assert uses.count("fit") >= 16 and uses.count("seed") == 2 and uses.count("rate") >= 4
    assert [run.budget for run in grid.runs] == sorted(run.budget for run in grid.runs)
    names = [run.name for run in (*grid.runs, *grid.held_out)]
    assert len(set(names)) == len(names) and len(grid.held_out) >= 2
    assert all(60 <= run.experiment.steps <= 43_000_000 / 2048 for run in (*grid.runs, *grid.held_out))
    run = next(run for run in grid.runs if run.name == "64x3-1e13")
    columns = grids._columns(run)
    assert columns["params"] == 12 * 3 * 64**2 + 260 * 64 + 7 * 64 and columns["flops"] == pytest.approx(1e13, rel=1e-3)
    assert columns["params_without_embedding"] == columns["params"] - 260 * 64
    assert 1.25 < columns["counted_flops"] / columns["flops"] < 1.35


def load_small() -> Grid:
    from experiments.scaling import small

    return small()


@pytest.mark.slow
def test_a_grid_of_real_runs_stops_and_resumes(tmp_path):
    """Two sizes and two budgets of a few steps, each a workdir that `jaxlm` reads; half a minute."""
    words = [sys.executable, "-m", "jaxlm", "scale", "grid", f"{TINY_GRID}:tiny", "--workdir", str(tmp_path / "runs")]
    stopped = subprocess.run(
        [*words, "--minutes", "0.05"], env=environment(), capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 130 and "no fit: 0 runs, expected 8" in stopped.stderr
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "no fit: 4 runs" in ended.stderr, ended.stderr
    table = list(csv.DictReader((tmp_path / "runs/table.csv").read_text().splitlines()))
    assert [row["use"] for row in table] == ["fit"] * 4 and all(float(row["loss"]) < 6 for row in table)
    assert os.path.exists(tmp_path / "runs" / table[0]["name"] / "checkpoints")
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert "training" not in again.stderr


@pytest.fixture(scope="module")
def fitted():
    params, tokens = (1e7, 3e7, 1e8, 3e8), (2e8, 6e8, 2e9, 6e9)
    pairs = [(n, d) for n in params for d in tokens]
    runs = make_runs(*zip(*((n, d, law(n, d)) for n, d in pairs), strict=True))
    check_runs("chinchilla", runs)
    return fit_law("chinchilla", runs)


def count(model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))


@pytest.fixture(scope="module")
def ladder():
    return load_experiment("experiments.scaling:ladder")


def test_a_budget_selects_the_nearest_size_and_the_steps(fitted, ladder):
    with pytest.raises(UserError, match="times the largest C of the law's runs.*or add --far"):
        for_budget(ladder, fitted, 1e23, 0.0, False)
    resized, text = for_budget(ladder, fitted, 1e23, 0.0, True)
    wanted = float(text.split(": N ")[1].split(",")[0])
    assert resized.model.width == 128 * round(resized.model.layers / 2) == resized.model.hidden / 2.75
    sizes = [count(proportional(ladder.model, resized.model.layers + more)) for more in (-1, 0, 1)]
    assert min(sizes, key=lambda size: abs(math.log(size / wanted))) == sizes[1]
    assert 6 * sizes[1] * resized.steps * ladder.batching.tokens == pytest.approx(1e23, rel=0.25)
    assert "times the largest of its runs" in text and "counted" in text
    served, _ = for_budget(ladder, fitted, 1e23, 1e14, True)
    assert served.model.layers < resized.model.layers and served.steps > resized.steps


def test_a_budget_resizes_a_decoder(fitted):
    with pytest.raises(UserError, match="--budget resizes a Decoder, found EncoderDecoder"):
        for_budget(load_experiment("experiments.quickstart"), fitted, 1e21, 0.0, False)


def test_plan_of_a_budget(fitted, tmp_path, command):  # noqa: F811
    file = tmp_path / "law.json"
    file.write_text(json.dumps(fitted))
    words = ["plan", "experiments.scaling:ladder", "--topology", "v5e:4x4", "--analytic", "--mesh", "fsdp=16"]
    assert command(*words, "--serve", "1e12").code == 2
    assert command(*words, "--budget", "1e20").code == 2
    found = command(*words, "--budget", "1e20", "--law", file)
    assert found.code == 0, found.err
    text = found.out.decode()
    assert "law         chinchilla, C 1e+20" in text and "whole run" in text and "chip hours" in text

"""Grids of training runs, each an ordinary workdir, and the prediction of a larger run, written before it starts."""

import functools
import json
import math
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.filesystem import write_atomic
from jaxlm.json_files import read_json
from jaxlm.perf.flops import count_step
from jaxlm.report.run_table import csv_text
from jaxlm.scaling.fit import bootstrap, check_runs, fit_law, predict_loss
from jaxlm.scaling.summary import bounded
from jaxlm.scaling.table import Runs, make_runs
from jaxlm.training.metrics_log import read_metrics
from jaxlm.workdir import Workdir

AT_ONCE, POLL_SECONDS, RESAMPLES = 2, 0.2, 1000
DIVERGED = "the loss became"
"""The beginning of the message of a run whose loss is not finite."""


@dataclass(frozen=True, eq=False)
class GridRun:
    """A run: the name of its workdir, and `use`: "fit", or what else it is for, such as "seed" or "rate"."""

    name: str
    experiment: Experiment
    budget: float
    use: str = "fit"


@dataclass(frozen=True, eq=False)
class Grid:
    """Runs of several sizes for each budget 6 N D, cheap first.

    Attributes:
      predict_to: the largest budget whose runs predict the held-out run.
      held_out: runs of one larger budget; that with the lowest predicted loss is trained.
    """

    runs: Sequence[GridRun]
    predict_to: float
    held_out: Sequence[GridRun] = ()


def train_grid(grid: Grid, folder: Path, start: Callable[[GridRun], subprocess.Popen], deadline: float) -> bool:
    """Train what is missing, two runs at a time; write table.csv after each, and prediction.json before the held-out
    run. False at the deadline (of `time.monotonic`): runs are saved and stopped, and a later call resumes.

    start: starts the process of a run, which writes NAME.log.
    """
    first = [run for run in grid.runs if run.budget <= grid.predict_to]
    waiting = [*first, None, *(run for run in grid.runs if run not in first)]
    active: dict[GridRun, subprocess.Popen] = {}
    try:
        while (waiting or active) and time.monotonic() < deadline:
            while waiting and len(active) < AT_ONCE and (waiting[0] or not active):
                run = waiting.pop(0) or predict_held_out(grid, folder)
                if run and math.isnan(final_loss(run, folder)):
                    active[run] = start(run)
            time.sleep(POLL_SECONDS * bool(active))
            for run in [run for run, process in active.items() if process.poll() is not None]:
                log = (folder / f"{run.name}.log").read_text(encoding="utf-8", errors="replace").strip()
                if active.pop(run).returncode and DIVERGED not in log:
                    raise UserError(f"the run {run.name} failed: {log.rpartition(chr(10))[2]}")
                write_table(grid, folder)
    finally:
        for process in active.values():
            process.send_signal(signal.SIGTERM)
        for process in active.values():
            process.wait()
    return not waiting and not active


def final_loss(run: GridRun, folder: Path) -> float:
    """The validation loss at the last step; NaN until then."""
    lines = read_metrics(Workdir(folder / run.name).metrics_file)
    last = [line for line in lines if line["step"] == run.experiment.steps and run.experiment.best_metric in line]
    return float(last[-1][run.experiment.best_metric]) if last else math.nan


@functools.cache
def _columns(run: GridRun) -> dict[str, Any]:
    """The columns of a run that are known before it starts."""
    experiment: Any = run.experiment
    parts = {name: sum(leaf.size for leaf in jax.tree.leaves(p)) for name, p in experiment.abstract_params().items()}
    params, tokens = sum(parts.values()), experiment.steps * experiment.batching.tokens
    hidden = params - parts.get("embedding", 0) - parts.get("output", 0)
    return {
        "name": run.name, "budget": run.budget, "params_without_embedding": hidden, "params": params, "tokens": tokens,
        "flops": 6 * params * tokens, "counted_flops": count_step(experiment).full * experiment.steps,
        "learning_rate": experiment.optimizer.schedule.peak, "seed": experiment.seed,
    }  # fmt: skip


def write_table(grid: Grid, folder: Path) -> list[dict[str, Any]]:
    """Write table.csv, and return its rows: of the runs that began. `use` is the fault of a run whose loss is not
    finite, or above that of a smaller budget, so that no fit uses it."""
    rows: list[dict[str, Any]] = []
    for run in (run for run in (*grid.runs, *grid.held_out) if (folder / run.name).exists()):
        loss, smaller = final_loss(run, folder), [r["loss"] for r in rows if r["params"] == _columns(run)["params"]]
        worse = run.use == "fit" and loss > min(smaller, default=math.inf)
        use = "above a smaller budget" if worse else run.use if math.isfinite(loss) else "not finite or not ended"
        lines = [line for line in read_metrics(Workdir(folder / run.name).metrics_file) if "train/tokens" in line]
        seconds = sum(line["train/tokens"] / line["time/tokens_per_second"] for line in lines)
        rows.append(_columns(run) | {"loss": loss, "seconds": round(seconds, 1), "use": use})
    if rows:
        write_atomic(folder / "table.csv", csv_text(rows))
    return rows


def fitted_runs(rows: Sequence[dict[str, Any]], column: str = "params", largest: float = math.inf) -> Runs:
    """The runs of the rows that a fit uses, with N from a column, up to a budget."""
    kept = [row for row in rows if row["use"] == "fit" and row["budget"] <= largest]
    return make_runs(*([row[name] for row in kept] for name in (column, "tokens", "loss", "flops")))


def predict_held_out(grid: Grid, folder: Path) -> GridRun | None:
    """The held-out run that prediction.json names, which is written once and never again; None if the runs do not
    determine the law."""
    file = folder / "prediction.json"
    if not file.exists() and grid.held_out:
        runs = fitted_runs(write_table(grid, folder), largest=grid.predict_to)
        try:
            check_runs("chinchilla", runs)
        except UserError as error:
            print(f"no prediction: {error}")
            return None
        fitted = bootstrap(fit_law("chinchilla", runs), runs, RESAMPLES)
        held = make_runs(*([_columns(run)[n] for run in grid.held_out] for n in ("params", "tokens", "budget")))
        losses = [predict_loss("chinchilla", theta, held).tolist() for theta in (fitted["theta"], *fitted["samples"])]
        best = min(range(len(held)), key=losses[0].__getitem__)
        record = {"name": grid.held_out[best].name, "loss": bounded([sample[best] for sample in losses])}
        write_atomic(file, json.dumps(record | {"runs": len(runs), "theta": fitted["theta"]}, indent=1) + "\n")
    name = read_json(file)["name"] if file.exists() else None
    return next((run for run in grid.held_out if run.name == name), None)

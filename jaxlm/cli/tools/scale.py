"""`jaxlm scale fit TABLE` and `jaxlm scale grid MODULE:NAME`: the scaling law of a table of runs, or of own runs."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import runtime
from jaxlm.cli import experiments, output
from jaxlm.cli.parser import COMMANDS, EXIT_INTERRUPTED, CommandParser, UsageError, positive_number
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic
from jaxlm.json_files import read_json
from jaxlm.scaling.laws import LAWS
from jaxlm.scaling.summary import DEFAULTS, scaling_record, summary_page, summary_text, with_bounds
from jaxlm.scaling.table import read_runs

ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1", "OMP_NUM_THREADS": "1"}
"""The environment of a run of a grid: products of small matrices do not fill two cores."""


@runtime.sigterm_as_interrupt()
def main(argv: list[str]) -> int:
    """Fit, or train and fit. Returns 130 if `--minutes` ended the grid before its last run."""
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: jaxlm scale fit TABLE --N COLUMN --D COLUMN --L COLUMN [options]")
        print("       jaxlm scale grid MODULE:NAME --workdir D [options]")
        return 0
    actions = {"fit": _fit, "grid": _grid}
    if not argv or argv[0] not in actions:
        raise UsageError(f"expected fit or grid after `jaxlm scale`, found {argv[0] if argv else 'nothing'}")
    return actions[argv[0]](argv[1:])


def _parser(action: str) -> CommandParser:
    parser = CommandParser(f"scale {action}", COMMANDS["scale"])
    parser.add_argument("--out", type=Path, metavar="FILE", help="the law (default: law.json, for a grid in D)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write an HTML page with figures")
    return parser


def _fit(argv: list[str]) -> int:
    parser = _parser("fit")
    parser.add_argument("table", metavar="TABLE", type=Path, help="CSV or JSON lines, plain or compressed")
    names = {"N": "parameters", "D": "training tokens", "L": "loss, nats a token (bits: by a column `unit`)"}
    for name, meaning in names.items():
        parser.add_argument(f"--{name}", metavar="COLUMN", required=True, help=f"column of the {meaning}")
    parser.add_argument("--C", metavar="COLUMN", help="column of the FLOPs (default: 6 N D)")
    parser.add_list("--where", "use the rows with this value; A|B: one of several", metavar="COLUMN=VALUE")
    parser.add_argument("--law", choices=tuple(LAWS), default="chinchilla", help="(default: chinchilla)")
    text = "residuals of log L above this count linearly (Huber; default: 0.001)"
    parser.add_argument("--delta", type=positive_number, default=DEFAULTS["delta"], metavar="X", help=text)
    parser.add_int("--drop-highest", "leave out the runs with the highest loss", minimum=0, default=0)
    parser.add_int("--bootstrap", "resamples for the intervals", minimum=0, default=DEFAULTS["bootstrap"])
    parser.add_argument("--cluster", metavar="COLUMN", help="resample groups of runs with one value of this column")
    parser.add_int("--seed", "seed of the bootstrap", minimum=0, default=0)
    text = "measure the error on the runs above this C by a fit of the others (default: the upper fifth)"
    parser.add_argument("--cut", type=positive_number, metavar="C", help=text)
    parser.add_list("--budgets", "a budget of approach 2 (default: those in the table)", positive_number, "C")
    parser.add_list("--at", "compute the best N and D for this C", positive_number, "C")
    options = parser.parse(argv)
    columns = {name: value for name in ("N", "D", "L", "C", "cluster") if (value := getattr(options, name))}
    runs = read_runs(options.table, columns, options.where)
    runs = runs[np.sort(np.argsort(runs.loss, kind="stable")[: len(runs) - options.drop_highest])]
    record = scaling_record(options.law, runs, **{name: getattr(options, name) for name in DEFAULTS})
    _write(options.out or Path("law.json"), options.page, {options.table.name: (runs, record)})
    return 0


def _grid(argv: list[str]) -> int:
    parser = _parser("grid")
    parser.add_argument("grid", metavar="MODULE:NAME", help="a function that returns a Grid")
    parser.add_argument("--workdir", type=Path, required=True, metavar="D", help="the folder of the runs and tables")
    text = "stop after M minutes and fit what there is; the same command resumes (default: no limit)"
    parser.add_argument("--minutes", type=positive_number, default=math.inf, metavar="M", help=text)
    parser.add_argument("--run", metavar="NAME", help="train only this run, in this process")
    options, folder = (parsed := parser.parse(argv)), parsed.workdir
    deadline = time.monotonic() + 60 * options.minutes
    from jaxlm.scaling.grid import Grid, fitted_runs, train_grid, write_table
    from jaxlm.training.loop import train

    runtime.configure_process()
    grid = experiments.load_object(options.grid, Grid)
    if options.run:
        (run,) = (run for run in (*grid.runs, *grid.held_out) if run.name == options.run)
        return EXIT_INTERRUPTED if train(run.experiment, folder / run.name).get("stopped") else 0
    folder.mkdir(parents=True, exist_ok=True)

    def start(run: Any) -> subprocess.Popen:
        output.print_stderr(f"training {run.name}")
        words = [sys.executable, "-m", "jaxlm", "scale", "grid", *argv, "--run", run.name]
        with (folder / f"{run.name}.log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | ONE_THREAD)

    ended = train_grid(grid, folder, start, deadline)
    rows = write_table(grid, folder)
    for row in (row for row in rows if row["use"] == "held out"):
        predicted = read_json(folder / "prediction.json")["loss"]
        error = f"{row['loss'] / predicted[0] - 1:+.2%}"
        output.write_line(
            f"held out: {row['name']}, predicted {with_bounds(predicted)}, seen {row['loss']:.4g}: {error}"
        )
    for row in (row for row in rows if row["use"] == "seed"):
        same = [other["loss"] for other in rows if (other["params"], other["tokens"]) == (row["params"], row["tokens"])]
        output.write_line(f"seeds: {row['name']} {row['loss']:.4g}, all of them {min(same):.4g} to {max(same):.4g}")
    columns = {"N with the readout": "params", "N without embeddings": "params_without_embedding"}
    tables = {name: fitted_runs(rows, column) for name, column in columns.items()}
    try:
        entries = {name: (runs, scaling_record("chinchilla", runs)) for name, runs in tables.items()}
        _write(options.out or folder / "law.json", options.page, entries)
    except UserError as error:
        output.print_stderr(f"no fit: {error}")
    return 0 if ended else EXIT_INTERRUPTED


def _write(out: Path, page: Path | None, entries: dict[str, Any]) -> None:
    """Print the fits; write the first one as law.json, and the page of all."""
    for name, (_, record) in entries.items():
        output.write_line(f"{name}: {summary_text(record)}")
    write_atomic(out, output.json_line(next(iter(entries.values()))[1]) + "\n")
    if page:
        write_atomic(page, summary_page("Scaling law", entries))

"""`jaxlm sweep EXPERIMENT --grid FIELD=VALUE,VALUE ...`: a run for each combination of values, and a table of them."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm import runtime
from jaxlm.cli import output
from jaxlm.cli.overrides import ExperimentParser, option_fields
from jaxlm.cli.parser import COMMANDS, EXIT_INTERRUPTED, UsageError, did_you_mean
from jaxlm.cli.training.train import check_train_options, default_workdir
from jaxlm.filesystem import write_atomic

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment


@runtime.sigterm_as_interrupt()
def main(argv: list[str]) -> int:
    """Train all runs, or print their commands. Returns 130 if it was interrupted, 1 if a run failed."""
    parser = ExperimentParser("sweep", COMMANDS["sweep"])
    text = "a field of the experiment and its values, such as optimizer.schedule.peak=1e-3,3e-4 seed=0,1"
    parser.add_argument("--grid", nargs="+", metavar="FIELD=VALUES", help=text)
    text = "folder of the workdirs and of table.csv (default: runs/EXPERIMENT-sweep)"
    parser.add_argument("--workdir", type=Path, metavar="D", help=text)
    text = "print the commands instead of running them; COMMAND: such as 'jaxlm launch slurm'"
    parser.add_argument("--print", nargs="?", const="jaxlm train", metavar="COMMAND", help=text)
    options, rest = parser.parse_known_args(argv)
    if options.help:
        parser.print_help()
        return 0
    if not options.experiment or not options.grid:
        raise UsageError("expected `jaxlm sweep EXPERIMENT --grid FIELD=VALUE,VALUE` (`jaxlm list` shows experiments)")
    experiment, _ = ExperimentParser("train", "").parse_experiment([options.experiment])
    default = default_workdir(options.experiment)
    folder = options.workdir or default.with_name(f"{default.name}-sweep")
    runs = {folder / name: [*rest, *words] for name, words in _grid(experiment, options.grid).items()}
    for words in runs.values():
        check_train_options(options.experiment, words)
    if options.print:
        for path, words in runs.items():
            arguments = shlex.join([options.experiment, "--workdir", str(path), *words])
            output.write_line(f"{options.print} {arguments}")
        return 0
    return _train_all(options.experiment, runs, folder)


def _grid(experiment: "Experiment", grid: list[str]) -> dict[str, list[str]]:
    """Name of a run -> the options that it adds, for all combinations. Raises UsageError for what is not a field."""
    fields = {".".join(field.path): field for field in option_fields(experiment)}
    axes = []
    for word in grid:
        name, _, values = word.partition("=")
        field = fields.get(name.lstrip("-").replace("-", "_"))
        if field is None:
            hint = f"{did_you_mean(name, fields)} (`jaxlm train EXPERIMENT --help` lists them"
            raise UsageError(f"--grid {word}: no field {name}{hint}; the learning rate is optimizer.schedule.peak)")
        if not values or len(set(values.split(","))) < len(values.split(",")):
            raise UsageError(f"--grid {word}: expected FIELD=VALUE,VALUE with different values")
        short = field.path[-1]
        options = dict(zip(("True", "False"), field.options, strict=False)) if field.annotation is bool else {}
        axes.append([(f"{short}={value}", [options[value]] if value in options else [field.options[0], *value.split()])
                     for value in values.split(",")])  # fmt: skip
    combinations = [tuple(zip(*combination, strict=True)) for combination in itertools.product(*axes)]
    return {re.sub(r"[^\w.,=+-]", "_", ",".join(names)): [*itertools.chain(*words)] for names, words in combinations}


def _train_all(experiment: str, runs: dict[Path, list[str]], folder: Path) -> int:
    """Train one run after the other, with its output in WORKDIR.log. One that fails does not end the others."""
    from jaxlm.report.run_table import csv_text, flat_rows, format_table, summarize_runs

    failed = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (path, words) in enumerate(runs.items(), start=1):
        output.print_stderr(f"run {number} of {len(runs)}: {path}")
        command = [sys.executable, "-m", "jaxlm", "train", experiment, "--workdir", str(path), *words]
        log = path.with_name(path.name + ".log")
        with log.open("ab") as file, subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True) as run:
            try:
                code = run.wait()
            except KeyboardInterrupt:
                run.terminate()  # it saves
                code = run.wait()
        if code == EXIT_INTERRUPTED:
            output.print_stderr("interrupted: the same command resumes")
            return code
        if code:
            failed.append(path)
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            output.print_stderr(f"failed ({log}): {last}")
        rows = summarize_runs([path for path in runs if (path / "experiment.json").exists()], folder, sort_by_best=True)
        write_atomic(folder / "table.csv", csv_text(flat_rows(rows)))
    output.write_line(format_table(rows))
    output.print_stderr(f"{folder / 'table.csv'} has the table")
    return int(bool(failed))

"""`jaxlm train EXPERIMENT --workdir D`: train or resume; then score the test split and print a few answers.

The last line of stdout is a JSON object with all figures.
"""

import argparse
import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn

from jaxlm import runtime
from jaxlm.cli import output
from jaxlm.cli.experiments import load_object
from jaxlm.cli.options import add_run_options, read_coordinator, read_run_options
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS, EXIT_INTERRUPTED, RECIPES, add_bad_line_option, positive_number
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic
from jaxlm.training.progress import format_duration, format_number
from jaxlm.workdir import TRAIN_COMMAND, Workdir

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment

NUM_EXAMPLES = 5


@runtime.sigterm_as_interrupt()
def main(argv: list[str]) -> int:
    """Train. Returns 130 if the run was interrupted."""
    if argv and argv[0] in RECIPES:
        from jaxlm.cli.training.recipes import write_recipe

        argv = write_recipe(argv)
        output.print_stderr(f"{argv[0]} is the experiment: edit it as you like")
    experiment, options = _parser().parse_experiment(argv, _set_on_bad_line)
    from jaxlm.distributed import multihost

    runtime.configure_process()
    run_options = read_run_options(options)
    multihost.connect(read_coordinator(options))
    from jaxlm.training.loop import train

    folder = options.workdir or default_workdir(options.experiment)
    task: Any = experiment.task
    read = dataclasses.replace(task, test=task.valid, extra_tests={}) if options.no_test else task
    with multihost.fail_together(), _own_command(argv):
        multihost.all_or_none(read.check)
        if options.dry_run:
            from jaxlm.cli.training.dry_run import dry_run

            record = dry_run(experiment, Workdir(folder), run_options) | {"workdir": str(folder)}
            output.write_result(record, options.json)
            return 0
        logger = load_object(options.logger, FunctionType) if options.logger else None
        summary = train(experiment, folder, options.max_minutes, run_options, logger)
        interrupted = summary.get("stopped") == "interrupted"
        summary |= {} if interrupted or options.no_test else _evaluate_test(folder)
    summary |= {"workdir": str(folder), "seconds": round(runtime.seconds_since_start(), 3)}
    if multihost.is_first():
        output.write_result(summary, options.json, lambda: _describe_run(summary, experiment.best_metric))
    if interrupted and multihost.is_first():
        command = shlex.join(["jaxlm", "train", *argv])
        output.print_stderr(f"interrupted and saved at step {summary['step']}; resume with:\n  {command}")
    return EXIT_INTERRUPTED if interrupted else 0


@contextlib.contextmanager
def _own_command(argv: list[str]) -> Iterator[None]:
    """Put the words of the user into the command that a message shows."""
    try:
        yield
    except UserError as error:
        words = [word for word in argv if not word.startswith("--workdir=")]
        while "--workdir" in words:
            del words[(place := words.index("--workdir")) : place + 2]
        command = shlex.join(["jaxlm", "train", *words])
        error.args = (str(error).replace(TRAIN_COMMAND, command),)
        raise


def check_train_options(experiment: str, args: list[str]) -> None:
    """Raises UsageError for options that `jaxlm train EXPERIMENT` does not take; trains nothing."""
    _parser().parse_experiment([experiment, *args], _set_on_bad_line)


def run_this_experiment() -> NoReturn:
    """`jaxlm train` for the module that is being run: `python -m experiments.x [VARIANT] [options] [overrides]`.

    The last lines of an experiment call it: `if __name__ == "__main__": run_this_experiment()`. The workdir records the
    importable name of the module, not `__main__`, so that other programs can read it.
    """
    from jaxlm.cli.main import main as run_command

    running: Any = sys.modules["__main__"]
    name = running.__spec__.name if running.__spec__ else running.__file__
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        name = f"{name}:{arguments.pop(0)}"
    raise SystemExit(run_command(["train", name, *arguments]))


def _parser() -> ExperimentParser:
    parser = ExperimentParser("train", COMMANDS["train"])
    text = "folder of the run, which is created or resumed (default: runs/EXPERIMENT)"
    parser.add_argument("--workdir", type=Path, metavar="D", help=text)
    parser.add_flag("--json", "print the figures as JSON on a terminal too")
    add_bad_line_option(parser, ("error", "replace", "skip"), None)
    text = "stop after M minutes: evaluate, save, and score the test split"
    parser.add_argument("--max-minutes", type=positive_number, default=0.0, metavar="M", help=text)
    parser.add_flag("--accept-changed-data", "resume although the training data has changed since the run began")
    text = "MODULE:NAME, a function (experiment, workdir) that returns one of (step, metrics), such as for MLflow"
    parser.add_argument("--logger", metavar="NAME", help=text)
    parser.add_flag("--no-test", "do not read and score the test split")
    parser.add_flag("--dry-run", "stop before the first step: print shapes, parameters and memory; write no workdir")
    add_run_options(parser)
    return parser


def _describe_run(summary: Mapping[str, Any], best_metric: str) -> str:
    """The end of a run for people: its steps, its best validation, its test scores and what one does next."""
    seconds, folder = format_duration(summary["seconds"]), shlex.quote(summary["workdir"])
    stopped = f", stopped: {summary['stopped']}" if "stopped" in summary else ""
    lines = [f"step {summary['step']:,} after {seconds}{stopped}"]
    if (best := summary.get(f"best/{best_metric}")) is not None:
        lines.append(f"best {best_metric} {format_number(best)} at step {summary['best_step']:,}")
    if "test" in summary:
        lines += ["test", output.score_lines(summary["test"])]
    return "\n".join([*lines, f"next: jaxlm evaluate {folder}, jaxlm report {folder}"])


def default_workdir(name: str) -> Path:
    """runs/MODULE-VARIANT."""
    module, _, variant = name.partition(":")
    stem = module.removesuffix(".py").replace("/", ".").rpartition(".")[2]
    return Path("runs") / (f"{stem}-{variant}" if variant else stem)


def _set_on_bad_line(experiment: "Experiment", options: argparse.Namespace) -> "Experiment":
    if options.on_bad_line is None:
        return experiment
    from jaxlm.cli.own_files import replace_field

    return dataclasses.replace(experiment, task=replace_field(experiment.task, "on_bad_line", options.on_bad_line))


def _evaluate_test(folder: Path) -> dict[str, Any]:
    """Test scores of the parameters that `evaluate` and `predict` use; prints a few answers."""
    from jaxlm.distributed import multihost
    from jaxlm.inference.translate import keep_answers

    trained = Workdir(folder).load()
    task = trained.experiment.task
    clock = output.Clock()
    with keep_answers():  # of the examples, which are lines of the test split
        with output.progress_bar(task.count("test"), "test") as progress:
            scores = task.evaluate(trained, "test", clock.watch(progress))
        scores |= clock.rates(scores["lines"])
        lines = list(task.show_examples(trained, NUM_EXAMPLES))
    result = {"checkpoints": trained.steps, "test": scores}
    if multihost.is_first():
        for line in lines:
            output.write_line(line)
        write_atomic(Workdir(folder).test_file, output.json_line(result) + "\n")
    return result

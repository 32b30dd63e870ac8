"""`jaxlm train EXPERIMENT --workdir D`: train, or go on; then score the test split and show a few answers.

The last line of stdout is a JSON object with every figure.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jaxlm.cli import output
from jaxlm.cli.options import add_run_options, read_run_options
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS, int_at_least
from jaxlm.workdir import Workdir

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment

NUM_EXAMPLES = 5

INTERRUPTED_EXIT_CODE = 130


def main(argv: list[str]) -> int:
    """Train; 130 if it was interrupted."""
    experiment, options = _parser().parse_experiment(argv, _set_on_bad_line)
    from jaxlm import runtime
    from jaxlm.distributed import multihost

    runtime.configure_process()
    machine, peers = read_run_options(options)
    multihost.connect(peers)
    from jaxlm.training.loop import train

    folder = options.workdir or _default_workdir(options.experiment)
    with multihost.fail_together():
        multihost.all_or_none(experiment.task.check)
        summary = train(experiment, folder, options.max_minutes, machine)
        interrupted = summary.get("stopped") == "interrupted"
        summary |= {} if interrupted else _evaluate_test(folder)
    summary |= {"workdir": str(folder), "seconds": round(runtime.seconds_since_start(), 3)}
    if multihost.is_first():
        output.write_line(output.json_line(summary))
    if interrupted and multihost.is_first():
        command = shlex.join(["jaxlm", "train", *argv])
        output.print_stderr(
            f"interrupted at step {summary['step']}, which is saved; this goes on from there:\n  {command}"
        )
    return INTERRUPTED_EXIT_CODE if interrupted else 0


def check_train_options(experiment: str, args: list[str]) -> None:
    """Raises Usage for what `jaxlm train EXPERIMENT` would not take; nothing is trained."""
    _parser().parse_experiment([experiment, *args], _set_on_bad_line)


def run_this_experiment() -> NoReturn:
    """`jaxlm train` for the module that is being run: `python -m experiments.x [VARIANT] [options] [overrides]`.

    An experiment's last lines call it: `if __name__ == "__main__": run_this_experiment()`. The module is named as
    others import it, not `__main__`, so that the workdir's record can be read by every other program.
    """
    from jaxlm.cli.main import main as command

    running: Any = sys.modules["__main__"]
    name, words = running.__spec__.name if running.__spec__ else running.__file__, sys.argv[1:]
    if words and not words[0].startswith("-"):
        name, words = f"{name}:{words[0]}", words[1:]
    raise SystemExit(command(["train", name, *words]))


def _parser() -> ExperimentParser:
    parser = ExperimentParser("train", COMMANDS["train"])
    text = "folder of the run, which is made or gone on with (default: runs/EXPERIMENT)"
    parser.add_argument("--workdir", type=Path, metavar="D", help=text)
    text = "a line that is not UTF-8: stop (the default), put U+FFFD for the bad bytes, or leave its pair out"
    parser.add_argument("--on-bad-line", choices=("error", "replace", "skip"), help=text)
    parser.add_argument("--num-threads", type=int_at_least(0), default=1, metavar="N", help="threads that make batches")
    parser.add_argument(
        "--num-workers", type=int_at_least(0), default=0, metavar="N", help="processes that make batches"
    )
    text = "stop after so many minutes: evaluate, save, and score the test split"
    parser.add_argument("--max-minutes", type=_positive_minutes, default=0.0, metavar="M", help=text)
    add_run_options(parser)
    return parser


def _positive_minutes(text: str) -> float:
    minutes = float(text)
    if not minutes > 0:
        raise ValueError
    return minutes


def _default_workdir(name: str) -> Path:
    where, _, variant = name.partition(":")
    stem = where.removesuffix(".py").replace("/", ".").rpartition(".")[2]
    return Path("runs") / (f"{stem}-{variant}" if variant else stem)


def _set_on_bad_line(experiment: "Experiment", options: argparse.Namespace) -> "Experiment":
    if options.on_bad_line is None:
        return experiment
    return dataclasses.replace(experiment, task=_replace_field(experiment.task, "on_bad_line", options.on_bad_line))


def _replace_field(value: Any, field: str, new: Any) -> Any:
    """The config with every field of that name, at any depth, set to `new`."""
    if isinstance(value, tuple):
        return tuple(_replace_field(item, field, new) for item in value)
    if isinstance(value, Mapping):
        return {key: _replace_field(item, field, new) for key, item in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = [entry.name for entry in dataclasses.fields(value) if entry.init]
    changed = {name: new if name == field else _replace_field(getattr(value, name), field, new) for name in names}
    return dataclasses.replace(value, **changed)


def _evaluate_test(folder: Path) -> dict[str, Any]:
    """Test scores of the parameters that `evaluate` and `predict` use, and a few answers on stdout."""
    from jaxlm.distributed import multihost

    trained = Workdir(folder).load()
    task = trained.experiment.task
    clock = output.Clock()
    with output.progress_bar(task.count("test")) as progress:
        scores = task.evaluate(trained, "test", progress)
    scores |= clock.rates(scores["lines"])
    lines = list(task.show_examples(trained, NUM_EXAMPLES))
    found = {"checkpoints": trained.steps, "test": scores}
    if multihost.is_first():
        for line in lines:
            output.write_line(line)
        Workdir(folder).test_file.write_text(output.json_line(found) + "\n", encoding="utf-8")
    return found

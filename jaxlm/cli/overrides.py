"""Options that override fields of an experiment, by dotted name: `--steps 100 --model.width 256`. Tyro reads them."""

import argparse
import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jaxlm import config
from jaxlm.cli import experiments
from jaxlm.cli.parser import CommandParser, UsageError
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment

BOX_CHARACTERS = "╭╮╰╯│─┌┐└┘|+- \t"


class ExperimentParser(CommandParser):
    """A verb that takes EXPERIMENT, options of its own, and overrides of the experiment's fields."""

    def __init__(self, command: str, summary: str, **options: Any):
        usage = f"jaxlm {command} EXPERIMENT [options] [overrides]"
        super().__init__(command, summary, usage=usage, add_help=False, **options)
        self.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="module or file.py, with :VARIANT or not")
        self.add_argument("-h", "--help", action="store_true", help="this help; with EXPERIMENT, its overrides too")

    def parse_experiment(
        self, argv: list[str], adjust: Callable[["Experiment", argparse.Namespace], "Experiment"] | None = None
    ) -> tuple["Experiment", argparse.Namespace]:
        """The experiment with its overrides, and the verb's own options (`experiment` is then the resolved name).

        `adjust(experiment, options)` changes the experiment before the overrides do. Ends the process after `--help`.
        """
        if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
            raise UsageError(f"expected an experiment after `{self.prog}`, found {argv[0]} (`jaxlm list` shows them)")
        options, rest = self.parse_known_args(argv)
        if options.help and not options.experiment:
            self.print_help()
            raise SystemExit(0)
        if not options.experiment:
            raise UsageError(f"expected an experiment after `{self.prog}` (`jaxlm list` shows them)")
        options.experiment = experiments.resolve_experiment(options.experiment)
        self.help_command = f"{self.prog} {options.experiment} --help"
        experiment = experiments.import_experiment(options.experiment)
        if adjust is not None:
            experiment = adjust(experiment, options)
        if options.help:
            self.print_help()
            print("\noverrides:\n")
            _parse_with_tyro(experiment, ["--help"], self.prog)
        return apply_overrides(experiment, rest, self), options


def apply_overrides(experiment: "Experiment", argv: list[str], parser: CommandParser) -> "Experiment":
    """The experiment with the fields that `argv` names replaced. Raises Usage in one line."""
    if not argv:
        return experiment
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _parse_with_tyro(experiment, argv, parser.prog)
    except UserError as error:  # a value that the part itself refuses
        raise UsageError(str(error)) from error
    except SystemExit as end:
        if end.code == 0:
            raise
    names = list(option_names(experiment))
    for word in argv:
        if word.startswith("--") and word.partition("=")[0].replace("_", "-") not in names:
            raise UsageError(parser.unknown_option(word, names))
    raise UsageError(f"{_first_message(said.getvalue())} (`{parser.help_command}` lists the overrides)")


def option_names(value: Any, path: str = "") -> Iterator[str]:
    """The option of every field below a config: `--model.width`; a truth value also has `--model.no-scan`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name in config.field_names(type(value)):
            yield from option_names(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from option_names(item, f"{path}.{key}")
    else:
        head, _, last = path.removeprefix(".").replace("_", "-").rpartition(".")
        dotted = f"--{head}." if head else "--"
        yield dotted + last
        if isinstance(value, bool):
            yield f"{dotted}no-{last}"


def _parse_with_tyro(experiment: "Experiment", argv: list[str], prog: str) -> "Experiment":
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults whose type only has the right methods
        settings = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(type(experiment), default=experiment, args=argv, config=settings, prog=prog)


def _first_message(boxed: str) -> str:
    """The first part of tyro's framed message, as one line."""
    lines = [line.strip(BOX_CHARACTERS) for line in boxed.splitlines()[1:]]
    text: list[str] = []
    for line in lines:
        if not line and text:
            break
        text += [line] if line else []
    return " ".join(text).rstrip(".") or "the overrides cannot be read"

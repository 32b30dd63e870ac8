"""The commands of the command line, and a parser that raises one-line errors with the nearest valid option."""

import argparse
import difflib
import importlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.config.checks import MAX_INT
from jaxlm.errors import UserError

COMMANDS = {
    "list": "list the experiments, one per line",
    "data": "list, fetch or check the data sets that the experiments read",
    "show": "show an experiment: its configuration, parameters, batch size and FLOPs per step",
    "plan": "estimate memory, time and cost of a run on given hardware, which this machine need not have",
    "bench": "measure tokens/s, step times, compile time, memory and MFU on this machine",
    "prepare": "clean a corpus, and tokenize it into shards, with several processes",
    "audit": "report on a corpus, remove documents from it, or find the steps at which a run read one",
    "train": "train an experiment, or a recipe (translate, lm, classify, tag) on your files; or resume a stopped run",
    "sweep": "train an experiment with each combination of some values, one run after the other; a table, best first",
    "launch": "train on a Cloud TPU slice, a Slurm cluster or GKE",
    "evaluate": "score a trained model on a split or on your files, or against another one; prints one JSON object",
    "prompt": "score a trained model on a task by prompts with examples (in-context learning)",
    "predict": "answer each line of standard input with one line",
    "generate": "sample continuations of prompts, or answers to them",
    "score": "compute log-probabilities of given texts",
    "embed": "compute vectors of given texts or of their tokens",
    "serve": "answer requests over HTTP, with a page to try the model",
    "scale": "fit a scaling law to a table of runs, or to a grid of runs that it trains",
    "runs": "list the runs in a folder: step, best score, state, date, and the fields in which they differ",
    "report": "write one HTML page that shows or compares runs",
    "import-hf": "convert a Hugging Face model (config.json, safetensors, tokenizer) or a GGUF file to a workdir",
    "export-hf": "convert a workdir to a Hugging Face Transformers model",
    "merge": "merge the LoRA weights of a run into the model's weights, in a new workdir",
    "doctor": "check this machine: what works, what is missing, and the command that fixes it",
}
"""Command -> summary. Each command is a module with `main(arguments) -> exit code` in one of `COMMAND_PACKAGES`."""

RECIPES = {
    "translate": "two files of which line n is a translation of line n, or a table (.csv .tsv .jsonl .parquet .arrow)",
    "lm": "a text file",
    "classify": "a table of texts and classes (.csv .tsv .jsonl .parquet .arrow)",
    "tag": "a file of a word and its tag a line, with blank lines between sentences; or CoNLL-U",
}
"""The tasks that `jaxlm train` has a recipe for, and the files that each takes."""

COMMAND_PACKAGES = {
    "training": ("plan", "bench", "prepare", "train", "sweep", "launch", "merge"),
    "inference": ("evaluate", "prompt", "predict", "generate", "score", "embed", "serve"),
    "tools": ("list", "data", "show", "scale", "audit", "runs", "report", "import-hf", "export-hf", "doctor"),
}

EXIT_INTERRUPTED = 130


def command_module(command: str) -> str:
    """The dotted name of the module of a command."""
    package = next(package for package, commands in COMMAND_PACKAGES.items() if command in commands)
    return f"jaxlm.cli.{package}.{command.replace('-', '_')}"


class UsageError(UserError):
    """A mistake in the command line itself: exit code 2."""


class CommandParser(argparse.ArgumentParser):
    """The options of one command. Mistakes are raised as UsageError instead of being printed with the usage."""

    def __init__(self, command: str, summary: str, **options: Any):
        options |= {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(prog=f"jaxlm {command}", description=summary, **options)
        self.help_command = f"{self.prog} --help"

    def add_flag(self, option: str, summary: str) -> None:
        """An option without a value."""
        self.add_argument(option, action="store_true", help=summary)

    def add_int(
        self, option: str, text: str, minimum: int = 1, default: int | None = None, metavar: str = "N",
        maximum: int = MAX_INT,
    ) -> None:  # fmt: skip
        """An option that takes an integer from `minimum` to `maximum`; the help ends with the default."""
        text = text if default is None else f"{text} (default: {default})"
        self.add_argument(option, type=int_at_least(minimum, maximum), default=default, metavar=metavar, help=text)

    def add_float(self, option: str, summary: str, metavar: str = "X") -> None:
        """An option that takes a number."""
        self.add_argument(option, type=finite_number, metavar=metavar, help=summary)

    def add_list(self, option: str, summary: str, convert: Callable[[str], Any] = str, metavar: str = "TEXT") -> None:
        """An option that may be repeated; its values are a list."""
        text = f"{summary} (may be repeated)"
        self.add_argument(option, action="append", default=[], type=convert, metavar=metavar, help=text)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError instead of ending the process."""
        raise UsageError(f"{message} (`{self.help_command}` lists the arguments)")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """The options. Raises UsageError for an unknown one, with the nearest option."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            raise UsageError(self.unknown_option(next((word for word in unknown if word.startswith("-")), unknown[0])))
        return options

    def unknown_option(self, word: str, other_options: Iterable[str] = ()) -> str:
        """The message for an unknown option; `other_options` are valid too."""
        if not word.startswith("-"):
            return f"unexpected argument {word!r} (`{self.help_command}` lists the arguments)"
        name = word.partition("=")[0]
        own_options = [option for action in self._actions for option in action.option_strings]
        near = did_you_mean(name, [*own_options, *other_options])
        return f"no option {name}{near} (`{self.help_command}` lists them)"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`: did you mean X?`, or "" if no choice is near. `--widht` is near `--model.width`."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    if not near:
        by_last_part = {choice.rpartition(".")[2].lstrip("-"): choice for choice in reversed(choices)}
        last_part = word.rpartition(".")[2].lstrip("-")
        near = [by_last_part[part] for part in difflib.get_close_matches(last_part, by_last_part, n=1, cutoff=0.75)]
    return f": did you mean {near[0]}?" if near else ""


def int_at_least(minimum: int, maximum: int = MAX_INT) -> Callable[[str], int]:
    """The type of an option that takes an integer from `minimum` to `maximum`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            expected = f"at least {minimum}" if value < minimum else f"at most {maximum}"
            raise argparse.ArgumentTypeError(f"expected an integer of {expected}, found {text!r:.40}")
        return value

    return convert


def positive_number(text: str) -> float:
    """The type of an option that takes a finite number above 0."""
    if (value := finite_number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r:.40}")
    return value


def finite_number(text: str) -> float:
    """The type of an option that takes any number but infinity."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, found {text!r:.40}")
    return value


def number_between(minimum: float, maximum: float) -> Callable[[str], float]:
    """The type of an option that takes a number from `minimum` to `maximum`."""

    def convert(text: str) -> float:
        if not minimum <= (value := finite_number(text)) <= maximum:
            raise argparse.ArgumentTypeError(f"expected a number from {minimum} to {maximum}, found {text!r:.40}")
        return value

    return convert


def trusted_module(name: str) -> str:
    """The type of `--trust`: a workdir's experiment may have classes of this module, also of the current folder."""
    from jaxlm.config.trust import trust_modules

    trust_modules([name], Path.cwd())
    return name


def add_trust_option(parser: "CommandParser") -> None:
    """`--trust`."""
    text = "let the experiment of a workdir import this module, which runs its code"
    parser.add_list("--trust", text, trusted_module, "MODULE")


def choice_of(module: str, name: str, default: str) -> Callable[[str], str]:
    """The type of an option that takes one of the strings in `module.name`, which is not imported for the default."""

    def convert(text: str) -> str:
        choices = (default,) if text == default else getattr(importlib.import_module(module), name)
        if text not in choices:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(choices)}, found {text!r}")
        return text

    return convert


def add_columns_option(parser: argparse.ArgumentParser) -> None:
    """`--columns`."""
    text = "columns of a table: SOURCE TARGET, or TEXT CLASS; of a file of tags the numbers of word and tag, from 0"
    parser.add_argument("--columns", nargs=2, metavar="NAME", help=text)


def add_bad_line_option(parser: argparse.ArgumentParser, choices: tuple[str, ...], default: str | None) -> None:
    """`--on-bad-line`."""
    skip = ", or skip the line" if "skip" in choices else ""
    text = f"if a line is not UTF-8: stop with an error (the default), replace the invalid bytes by U+FFFD{skip}"
    parser.add_argument("--on-bad-line", choices=choices, default=default, help=text)

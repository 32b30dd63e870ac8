"""Command lines that cannot be understood: one line that says what was found and what may have been meant."""

import argparse
import difflib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from jaxlm.errors import UserError

COMMANDS = {
    "list": "the experiments, a line each",
    "show": "what an experiment is: its whole config, parameters, batch, FLOPs a step",
    "plan": "what a run will need and cost on hardware that need not be there: memory, time, hours",
    "bench": "tokens/s, step times, compile seconds, memory and MFU on this machine",
    "prepare": "make a corpus into shards of ids, by several processes",
    "train": "train an experiment, or go on with a run that was stopped",
    "launch": "train on a Cloud TPU slice, a Slurm cluster or GKE",
    "evaluate": "score a trained model on a split, as one JSON object",
    "predict": "answer each line of standard input with one line",
    "generate": "sample answers to, or continuations of, given texts",
    "score": "log-probabilities of given texts",
    "embed": "vectors of given texts, or of their tokens",
    "report": "one HTML page about one or several runs, to look at",
    "import-hf": "make a workdir of a model of Hugging Face (config.json, safetensors, tokenizer)",
    "export-hf": "write a model as Hugging Face Transformers reads it",
    "merge": "write a run with low-rank maps as a plain workdir",
    "doctor": "what this machine has, what is missing, and the command that mends it",
}
"""Verb -> what it does. Each verb is a module with `main(arguments) -> exit code` in one of `COMMAND_PACKAGES`."""

COMMAND_PACKAGES = {
    "training": ("plan", "bench", "prepare", "train", "launch", "merge"),
    "inference": ("evaluate", "predict", "generate", "score", "embed"),
    "tools": ("list", "show", "report", "import-hf", "export-hf", "doctor"),
}


def command_module(verb: str) -> str:
    """The dotted name of the module of a verb."""
    package = next(package for package, verbs in COMMAND_PACKAGES.items() if verb in verbs)
    return f"jaxlm.cli.{package}.{verb.replace('-', '_')}"


class UsageError(UserError):
    """A mistake in the command line itself; the command ends with 2."""


class CommandParser(argparse.ArgumentParser):
    """The options of one verb. What it does not understand is raised as `Usage`, never printed as a page."""

    def __init__(self, command: str, summary: str, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=f"jaxlm {command}", description=summary, allow_abbrev=False, **options)
        self.help_command = f"{self.prog} --help"

    def error(self, message: str) -> NoReturn:
        """Raises Usage instead of ending the process."""
        raise UsageError(f"{message} (`{self.help_command}` says what it takes)")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """The options. Raises Usage on one that does not exist, with the nearest that does."""
        known, rest = self.parse_known_args(argv)
        if rest:
            raise UsageError(self.unknown_option(next((word for word in rest if word.startswith("-")), rest[0])))
        return known

    def unknown_option(self, word: str, other_options: Iterable[str] = ()) -> str:
        """The message for an option that does not exist; `more` are options beside this parser's own."""
        if not word.startswith("-"):
            return f"unexpected argument {word!r} (`{self.help_command}` says what it takes)"
        name = word.partition("=")[0]
        own = [option for action in self._actions for option in action.option_strings]
        return f"no option {name}{did_you_mean(name, [*own, *other_options])} (`{self.help_command}` lists them)"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`: did you mean X?`, or nothing where no choice is near. `--widht` is near `--model.width`."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    if not near:
        tails = {choice.rpartition(".")[2].lstrip("-"): choice for choice in reversed(choices)}
        tail = word.rpartition(".")[2].lstrip("-")
        near = [tails[found] for found in difflib.get_close_matches(tail, tails, n=1, cutoff=0.75)]
    return f": did you mean {near[0]}?" if near else ""


def int_at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of at least `least`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, found {text!r}")
        return value

    return number

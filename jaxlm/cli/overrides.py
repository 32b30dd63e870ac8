"""Options that override fields of an experiment by dotted name: `--steps 100 --model.width 256`.

Every field of the experiment and of the configs inside it is an option. A value is read by the annotation of its
field: a tuple takes all words up to the next option, `None` is the value None, and a truth value is `--x` or `--no-x`.
"""

import argparse
import collections
import contextlib
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxlm.cli import experiments
from jaxlm.cli.parser import CommandParser, UsageError, add_trust_option
from jaxlm.config.checks import check_fields
from jaxlm.config.serialization import field_names
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment

SCALARS = {types.NoneType: "None", bool: "{True, False}", int: "INT", float: "FLOAT", Path: "PATH", str: "STR"}
"""Type -> how the help shows it."""

CONSTANTS: dict[Any, dict[str, Any]] = {types.NoneType: {"None": None}, bool: {"True": True, "False": False}}


class ExperimentParser(CommandParser):
    """A command that takes EXPERIMENT, options of its own, and overrides of the experiment's fields."""

    def __init__(self, command: str, summary: str, **options: Any):
        usage = f"jaxlm {command} EXPERIMENT [options] [overrides]"
        super().__init__(command, summary, usage=usage, add_help=False, **options)
        self.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="module or file.py, optionally :VARIANT")
        add_trust_option(self)
        text = "show this help; with EXPERIMENT, also the overrides: options that set its fields"
        self.add_argument("-h", "--help", action="store_true", help=text)

    def parse_experiment(
        self, argv: list[str], adjust: Callable[["Experiment", argparse.Namespace], "Experiment"] | None = None
    ) -> tuple["Experiment", argparse.Namespace]:
        """The experiment with its overrides, and the command's own options (`experiment` is then the resolved name).

        `adjust(experiment, options)` changes the experiment before the overrides do. Ends the process after `--help`.
        """
        if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
            raise UsageError(f"expected an experiment after `{self.prog}`, found {argv[0]} (`jaxlm list` shows them)")
        options, overrides = self.parse_known_args(argv)
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
            print("\noverrides, with the value of this experiment in [ ]:")
            print("\n".join(_help_lines(experiment)))
            raise SystemExit(0)
        return apply_overrides(experiment, overrides, self), options


def apply_overrides(experiment: "Experiment", argv: list[str], parser: CommandParser) -> "Experiment":
    """The experiment with the fields that `argv` names replaced. Raises UsageError with one line."""
    fields = {option: field for field in option_fields(experiment) for option in field.options}
    changes: dict[tuple[str, ...], Any] = {}
    words = list(argv)
    while words:
        name, equals, value = words.pop(0).partition("=")
        option = name.replace("_", "-")
        if option not in fields:
            raise UsageError(parser.unknown_option(name, fields))
        field, values = fields[option], [value] if equals else []
        while not equals and field.annotation is not bool and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        listed = f"`{parser.help_command}` lists the overrides"
        try:
            changes[field.path] = field.convert(option, values)
            check_fields(field.owner, {field.path[-1]: changes[field.path]}, "--" + ".".join(field.path[:-1]), listed)
        except UserError as error:
            raise UsageError(str(error).replace("--.", "--")) from None
        except ValueError as error:
            given = f"{' '.join(values)!r:.60}" if values else "no value"
            raise UsageError(f"{name}: {error}, found {given} ({listed})") from None
    try:
        return _replace_fields(experiment, changes)
    except UserError as error:  # raised by a config that refuses the value
        raise UsageError(str(error)) from error


@dataclass(frozen=True)
class OptionField:
    """A field that options can replace: its path from the experiment, its annotation, its value and its class."""

    path: tuple[str, ...]
    annotation: Any
    value: Any
    owner: type

    @property
    def options(self) -> list[str]:
        """`--model.width`; of a truth value `--model.scan` and `--model.no-scan`."""
        *parents, name = (part.replace("_", "-") for part in self.path)
        names = [name, f"no-{name}"] if self.annotation is bool else [name]
        return ["--" + ".".join([*parents, name]) for name in names]

    def convert(self, option: str, words: list[str]) -> Any:
        """The value that one of the options and the words after it give. Raises ValueError with the expected type."""
        if self.annotation is bool and words:
            raise ValueError("expected no value")
        return option == self.options[0] if self.annotation is bool else _convert(self.annotation, words)


def option_fields(
    value: Any, path: tuple[str, ...] = (), annotation: Any = None, owner: Any = None
) -> Iterator[OptionField]:
    """The fields of a config, then those of the configs inside it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = [(name, getattr(value, name), hints[name]) for name in field_names(type(value))]
        owner = type(value)
    elif isinstance(value, Mapping):
        fields = [(str(key), item, type(item)) for key, item in value.items()]
    else:
        yield OptionField(path, annotation, value, owner)
        return
    fields.sort(key=lambda field: dataclasses.is_dataclass(field[1]) or isinstance(field[1], Mapping))
    for name, item, hint in fields:
        yield from option_fields(item, (*path, name), hint, owner)


def _members(annotation: Any) -> list[Any]:
    """The types of a union that the command line can give, in the order in which they are tried: None, ..., str, tuple;
    none for a field that only the experiment's file sets, such as a config or None."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    plain = [m for m in members if m in SCALARS or typing.get_origin(m) is Literal or _is_plain_tuple(m)]
    order = {types.NoneType: 0, str: 2, tuple: 3}
    return sorted(plain, key=lambda member: order.get(typing.get_origin(member) or member, 1))


def _is_plain_tuple(annotation: Any) -> bool:
    elements = typing.get_args(annotation)
    return typing.get_origin(annotation) is tuple and all(element is ... or _members(element) for element in elements)


def _convert(annotation: Any, words: list[str]) -> Any:
    for member in _members(annotation):
        with contextlib.suppress(ValueError):
            return _convert_member(member, words)
    raise ValueError(f"expected {type_text(annotation, repr)}")


def _convert_member(member: Any, words: list[str]) -> Any:
    arguments = typing.get_args(member)
    if typing.get_origin(member) is tuple:
        elements = arguments[:1] * len(words) if arguments[-1] is ... else arguments
        return tuple(_convert(element, [word]) for element, word in zip(elements, words, strict=True))
    (word,) = words
    choices = {str(choice): choice for choice in arguments} or CONSTANTS.get(member)
    if choices is None:
        return member(word)
    if word not in choices:
        raise ValueError
    return choices[word]


def type_text(annotation: Any, show: Callable[[Any], str] = str) -> str:
    """The values that a field takes, as the help shows them: `INT`, `None|FLOAT`, `{pre, post}`, `STR ...`."""
    texts = []
    for member in _members(annotation):
        arguments = typing.get_args(member)
        if typing.get_origin(member) is tuple:
            texts.append(" ".join("..." if element is ... else type_text(element) for element in arguments))
        else:
            texts.append(SCALARS.get(member) or "{" + ", ".join(map(show, arguments)) + "}")
    return "|".join(texts) or "a value that only the experiment's file can set"


def _replace_fields(value: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """The config with the values at these paths. One `replace` a config, so that its checks see all of its fields."""
    if () in changes:
        return changes[()]
    below: dict[str, dict[tuple[str, ...], Any]] = collections.defaultdict(dict)
    for (name, *path), new in changes.items():
        below[name][tuple(path)] = new
    if isinstance(value, Mapping):
        return {key: _replace_fields(item, below[str(key)]) for key, item in value.items()}
    new_fields = {name: _replace_fields(getattr(value, name), inner) for name, inner in below.items()}
    return dataclasses.replace(value, **new_fields) if new_fields else value


def _help_lines(experiment: Any) -> Iterator[str]:
    """The overrides with the types, values and meanings of their fields; a heading for each config."""
    heading: tuple[str, ...] | None = None
    for text, fields in itertools.groupby(option_fields(experiment), _field_summary):
        for field in fields:
            if field.path[:-1] != heading:
                heading = field.path[:-1]
                summary = (field.owner.__doc__ or "").partition("\n")[0]
                yield f"\n{'.'.join(heading) or 'experiment'}: {field.owner.__name__}. {summary}"
            kind = "" if field.annotation is bool else f" {type_text(field.annotation)}"
            value = " ".join(map(str, field.value)) if isinstance(field.value, tuple) else field.value
            yield f"  {', '.join(field.options)}{kind}  [{value}]"
        yield from textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _field_summary(field: OptionField) -> str:
    """The text of a field in the `Attributes:` of its class or of a base; `name, other: text` if they share it."""
    for owner in field.owner.__mro__:
        section = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^  (\w+(?:, \w+)*): (.+(?:\n {3,}.+)*)", section, re.MULTILINE):
            if field.path[-1] in names.split(", "):
                return " ".join((f"{names}: {text}" if "," in names else text).split())
    return ""

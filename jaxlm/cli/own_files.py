"""Sources of files that a command line names: read as a recipe reads them, or as a split of an experiment does."""

import dataclasses
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from jaxlm.cli.parser import RECIPES, UsageError
from jaxlm.data.files import COMPRESSED_ENDINGS, ReadStats, find_file, iter_lines
from jaxlm.data.sources.arrow import ArrowTable
from jaxlm.data.sources.conll import ColumnFile, ConllU
from jaxlm.data.sources.parallel import Csv, JsonLines, ParallelFiles, Tsv
from jaxlm.data.sources.text import TextFile
from jaxlm.data.sources.transforms import Concat, HashSplit, Shuffle, Take

TABLES: dict[str, Any] = {
    ".csv": Csv, ".tsv": Tsv, ".jsonl": JsonLines, ".parquet": ArrowTable, ".arrow": ArrowTable, ".feather": ArrowTable
}  # fmt: skip
"""The reader of a file by its ending; any other file has a text a line."""


def with_files(task: Any, split: str, files: list[str], columns: list[str] | None, on_bad_line: str | None) -> Any:
    """The task with these files as a further test set of the name `split`; `on_bad_line`: None is as in the experiment.

    They pass through the reader of the test split (without `columns`, and if it reads such files) and through its
    changes of texts and labels, but are never cut, sampled or reordered.
    """
    source = _read_like(task.test, task, files, columns)
    if on_bad_line:
        source = replace_field(source, "on_bad_line", on_bad_line)
    return dataclasses.replace(task, extra_tests={split: source})


def _read_like(model: Any, task: Any, files: list[str], columns: list[str] | None) -> Any:
    if isinstance(model, Concat):
        return _read_like(model.sources[0], task, files, columns)
    if hasattr(model, "pairs"):
        source = _read_like(model.pairs, task, files, columns)
        return source if isinstance(model, HashSplit | Shuffle | Take) else dataclasses.replace(model, pairs=source)
    paths = [str(find_file(str(Path(file).absolute()))) for file in files]
    if columns is None and (changes := _other_paths(model, paths)):
        return dataclasses.replace(model, **changes)
    if not task.recipe:
        raise UsageError(f"the test split of this experiment is {model.describe()}: expected files of the same kind")
    source = read_files(task.recipe, files, columns)
    return TextFile(source.path) if getattr(task, "windows", source) is None else source  # rows: a text a line


def _other_paths(model: Any, paths: list[str]) -> dict[str, Any]:
    """The fields with which a reader reads other files of its kind; {} if they are of another kind."""
    if isinstance(model, ParallelFiles):
        return dict(zip(("source", "target"), paths, strict=True)) if len(paths) == 2 else {}
    old = model.paths[0] if hasattr(model, "paths") else getattr(model, "path", "")
    endings = {_ending(old), *map(_ending, paths)}
    is_alike = len(endings) == 1 or endings.isdisjoint(TABLES) or {*map(TABLES.get, endings)} == {type(model)}
    if not old or not is_alike:
        return {}
    if hasattr(model, "paths"):
        return {"paths": tuple(paths)}
    whole = {"start_fraction": 0.0, "end_fraction": 1.0} if isinstance(model, TextFile) else {}
    return {"path": paths[0], **whole} if len(paths) == 1 else {}


def replace_field(value: Any, field: str, new: Any) -> Any:
    """The config with every field of that name, at any depth, set to `new`."""
    if isinstance(value, tuple):
        return tuple(replace_field(item, field, new) for item in value)
    if isinstance(value, Mapping):
        return {key: replace_field(item, field, new) for key, item in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value) if entry.init}
    changed = {name: new if name == field else replace_field(item, field, new) for name, item in fields.items()}
    return dataclasses.replace(value, **changed)


def _ending(path: str) -> str:
    endings = [end for end in Path(path).suffixes if end.lower() not in COMPRESSED_ENDINGS]
    return endings[-1].lower() if endings else ""


def read_files(recipe: str, files: list[str], columns: list[str] | None = None) -> Any:
    """The source of the files of one split. Raises UsageError for files that the recipe does not take."""
    paths = [str(find_file(str(Path(file).absolute()))) for file in files]
    ending = _ending(paths[0])
    if len(paths) != (2 if recipe == "translate" and ending not in TABLES else 1):
        raise UsageError(f"{recipe} with {' '.join(files)}: expected {RECIPES[recipe]}")
    if recipe == "lm":
        return TextFile(paths[0], "whole")
    if recipe == "translate" and len(paths) == 2:
        return ParallelFiles(paths[0], paths[1])
    if recipe == "tag":
        return _read_tags(paths[0], ending, columns)
    if ending not in TABLES:
        raise UsageError(f"{files[0]}: expected a table that ends in {', '.join(TABLES)}, perhaps compressed")
    columns = columns or _default_columns(paths[0], ending)
    has_numbers = ending in (".csv", ".tsv") and all(name.isdecimal() for name in columns)
    return TABLES[ending](paths[0], *(map(int, columns) if has_numbers else columns))


def _read_tags(path: str, ending: str, columns: list[str] | None) -> Any:
    lines = [line for line in islice(iter_lines(path, "replace", ReadStats()), 1000) if line and line.strip()]
    if ending == ".conllu" and next((line for line in lines if line[0] != "#"), "").count("\t") == 9:
        return ConllU(path)
    if columns and not all(column.lstrip("-").isdecimal() for column in columns):
        raise UsageError(f"--columns {' '.join(columns)}: expected the numbers of the columns of word and tag, from 0")
    word, tag = map(int, columns) if columns else (0, -1)
    return ColumnFile(path, word, tag, separator="\t" if lines and "\t" in lines[0] else None)


def _default_columns(path: str, ending: str) -> list[str]:
    """The two columns of a table. Raises UsageError, with their names, if there are others."""
    if ending == ".tsv":
        return ["0", "1"]
    if ending == ".csv":
        names = next(Csv(path, 0, 1)._iter_records(find_file(path), ReadStats()))[1] or []
        if len(names) == 2:
            return names
        raise UsageError(f"{path} has the columns {', '.join(names)}: choose two with --columns")
    raise UsageError(f"{path}: choose two of its columns with --columns")


def as_python(config: Any) -> tuple[str, set[str]]:
    """The expression that makes a config, without the fields that have their defaults; and the classes in it."""
    parts, names = [], {type(config).__name__}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        text, inner = as_python(value) if dataclasses.is_dataclass(value) else (repr(value), set())
        if value != field.default:
            names |= inner
            parts.append(text if field.default is dataclasses.MISSING else f"{field.name}={text}")
    return f"{type(config).__name__}({', '.join(parts)})", names

"""Pairs from files: two parallel files, tab-separated columns, JSON lines."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, find_file, iter_lines
from jaxlm.data.sources.base import FilteredPairs
from jaxlm.errors import UserError
from jaxlm.json_files import unique_names

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""The delimiters that are recognized, and their names."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ParallelFiles(FilteredPairs):
    """Two aligned files: line n of `target` is the translation of line n of `source`.

    `keep_blank` keeps pairs with a blank side, as a test set answers every line; training data drops and counts them.
    Raises UserError if a file is missing, empty or corrupt, and at the end if their numbers of lines differ.
    """

    source: str
    target: str
    on_bad_line: OnBadLine = "error"
    keep_blank: bool = False
    max_text_bytes: int = MAX_TEXT_BYTES

    def describe(self) -> str:
        return f"{self.source} -> {self.target}"

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        source_file, target_file = find_file(self.source), find_file(self.target)
        sources = iter_lines(source_file, self.on_bad_line, stats, self.max_text_bytes)
        targets = iter_lines(target_file, self.on_bad_line, stats, self.max_text_bytes)
        ended = object()
        for number, (source, target) in enumerate(zip_longest(sources, targets, fillvalue=ended)):
            if source is ended or target is ended:
                source_count = number if source is ended else number + 1 + sum(1 for _ in sources)
                target_count = number if target is ended else number + 1 + sum(1 for _ in targets)
                raise UserError(
                    f"{source_file} has {source_count:,} lines and {target_file} has {target_count:,}: parallel files "
                    "need the same number. Fetch both again, or find the line from which on they differ."
                )
            yield source, target  # type: ignore[misc]

    def _place(self, number: int) -> str:
        return f"{find_file(self.target)}, line {number + 1}"


@dataclass(frozen=True)
class Tsv(FilteredPairs):
    """Tab-separated columns, without quoting.

    `source` and `target` are columns by number, from 0, or all by the names in the first line. A source of several
    columns is their texts with a TAB between them: `Tsv("SICK.txt", ("sentence_A", "sentence_B"), "judgment")`.
    """

    path: str
    source: int | str | tuple[int | str, ...]
    target: int | str
    on_bad_line: OnBadLine = "error"
    keep_blank: bool = False
    max_text_bytes: int = MAX_TEXT_BYTES

    def __post_init__(self) -> None:
        columns = self._selected_columns
        kinds = {type(column) for column in columns}
        negative = any(isinstance(column, int) and column < 0 for column in columns)
        if len(set(columns)) != len(columns) or len(kinds) != 1 or len(columns) < 2 or negative:
            raise UserError(
                f"{self.path}: source column {self.source!r} and target column {self.target!r}: "
                "expected two different numbers from 0, or names of the first line"
            )

    @property
    def _selected_columns(self) -> tuple[int | str, ...]:
        return (*(self.source if isinstance(self.source, tuple) else (self.source,)), self.target)

    def describe(self) -> str:
        *source, target = map(str, self._selected_columns)
        return f"{self.path}, column {' and '.join(source)} -> column {target}"

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        file = find_file(self.path)
        records = self._iter_records(file, stats)
        places = self._selected_columns
        if any(isinstance(column, str) for column in places):
            names: list[int | str] = [*(next(records)[1] or ())]
            if wrong := [column for column in places if names.count(column) != 1]:
                raise UserError(
                    f"{file}, line 1 lacks the column {', '.join(map(repr, wrong))}, or has it twice: it names "
                    f"{', '.join(map(repr, names))}. Choose among them (in a command with --columns)."
                )
            places = tuple(names.index(column) for column in places)
        need = max(places) + 1  # type: ignore[type-var, operator]
        for number, columns in records:
            if columns is not None and len(columns) >= need:
                *texts, target = (columns[place] for place in places)  # type: ignore[index]
                yield texts[0] if len(texts) == 1 else "\t".join(text.replace("\t", " ") for text in texts), target
            elif columns in ([], [""]):
                yield "", ""
            else:
                if columns is not None and self.on_bad_line == "error":
                    raise UserError(
                        f"{file}, line {number}: {len(columns)} columns, expected at least {need} {self._between()}. "
                        "Fix the line or the column numbers, or set on_bad_line='skip'."
                    )
                yield None, None

    def _iter_records(self, file: Path, stats: ReadStats) -> Iterator[tuple[int, list[str] | None]]:
        """(number of the line, its columns); None for a line that cannot be read."""
        for number, line in enumerate(iter_lines(file, self.on_bad_line, stats, self.max_text_bytes), start=1):
            yield number, None if line is None else line.split("\t")

    def _between(self) -> str:
        return "between tabs"

    def _place(self, number: int) -> str:
        has_header = any(isinstance(column, str) for column in self._selected_columns)
        return f"{find_file(self.path)}, line {number + 1 + has_header}"


@dataclass(frozen=True)
class Csv(Tsv):
    """Comma-separated values with quotes, as spreadsheets and pandas write them (RFC 4180).

    A quoted field may hold the delimiter, line breaks, and quotes (doubled). Columns are chosen as in `Tsv`.

    Attributes:
      delimiter: None: that of `, ; TAB |` which the first line has most of, outside of quotes.
    """

    delimiter: str | None = None

    def describe(self) -> str:
        return f"{super().describe()}, {self._between()}"

    def _iter_records(self, file: Path, stats: ReadStats) -> Iterator[tuple[int, list[str] | None]]:
        delimiter = self.delimiter or self._find_delimiter()
        lines = (
            "" if line is None else line + "\n"
            for line in iter_lines(file, self.on_bad_line, stats, self.max_text_bytes)
        )
        csv.field_size_limit(self.max_text_bytes)
        reader, begins = csv.reader(lines, delimiter=delimiter, strict=True), 1
        while True:
            try:
                columns: list[str] | None = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if self.on_bad_line == "error" or "unexpected end" in str(error):
                    hint = "a quote that opens there has no end" if "unexpected end" in str(error) else error
                    raise UserError(f"{file}, line {begins}: {hint}. Fix it, or set on_bad_line='skip'.") from None
                columns = None
            yield begins, columns
            begins = reader.line_num + 1

    def _find_delimiter(self) -> str:
        first = next(iter_lines(find_file(self.path), "replace", ReadStats(), self.max_text_bytes), None) or ""
        bare = re.sub(r'"(?:[^"]|"")*("|$)', "", first)
        return max(DELIMITERS, key=bare.count)

    def _between(self) -> str:
        delimiter = self.delimiter or self._find_delimiter()
        return f"separated by {DELIMITERS.get(delimiter, repr(delimiter))}"


@dataclass(frozen=True)
class JsonLines(FilteredPairs):
    """JSON lines: one object a line. `source` and `target` are keys, or paths such as `translation.en`.

    A source of several keys is their texts with a TAB between them.
    """

    path: str
    source: str | tuple[str, ...]
    target: str
    on_bad_line: OnBadLine = "error"
    keep_blank: bool = False
    max_text_bytes: int = MAX_TEXT_BYTES

    def describe(self) -> str:
        source = self.source if isinstance(self.source, str) else " and ".join(self.source)
        return f"{self.path}, {source} -> {self.target}"

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        file = find_file(self.path)
        for number, line in enumerate(iter_lines(file, self.on_bad_line, stats, self.max_text_bytes), start=1):
            source = target = line
            try:
                if line and line.strip():
                    record = json.loads(line, object_pairs_hook=unique_names)
                    if isinstance(self.source, str):
                        source = self._text_at(record, self.source, stats)
                    else:
                        parts = [self._text_at(record, key, stats) for key in self.source]
                        source = "\t".join(part.replace("\t", " ") for part in parts)
                    target = self._text_at(record, self.target, stats)
            except (ValueError, RecursionError) as error:
                if self.on_bad_line == "error":
                    fault = "too many levels of JSON" if isinstance(error, RecursionError) else error
                    raise UserError(
                        f"{file}, line {number}: {fault}. Fix the line or the keys, or set on_bad_line='skip'."
                    ) from None
                source = target = None
            yield source, target

    def _place(self, number: int) -> str:
        return f"{find_file(self.path)}, line {number + 1}"

    def _text_at(self, record: Any, key: str, stats: ReadStats) -> str:
        """The text under `key`. Raises ValueError, also for half a surrogate pair, which JSON can escape."""
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        value = record.get(key)
        if value is None and "." in key:
            outer, inner = key.split(".", 1)
            return self._text_at(record.get(outer), inner, stats)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # a class
        if not isinstance(value, str):
            keys = f"only {', '.join(map(repr, record)) or 'no key'}"
            raise ValueError(f"expected a text under {key!r}, found {type(value).__name__ if key in record else keys}")
        if LONE_SURROGATE.search(value):
            if self.on_bad_line != "replace":
                raise ValueError(f"the text under {key!r} holds half of a surrogate pair, which is not a character")
            stats.replaced += 1
            value = LONE_SURROGATE.sub("\ufffd", value)
        return value

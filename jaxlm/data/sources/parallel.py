"""Pairs from files on disk: two parallel files, tab-separated columns, JSON lines.

Every source and wrapper of pairs can be imported from here.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from jaxlm.data.files import OnBadLine, ReadStats, find_file, iter_lines
from jaxlm.data.sources.base import Pair, Pairs, PairSource, filter_pairs, iter_pairs
from jaxlm.data.sources.moses import Lowercase, MosesPreprocess, moses_detokenize, moses_tokenize
from jaxlm.data.sources.transforms import Concat, HashSplit, RelabelTags, Shuffle, Take
from jaxlm.errors import UserError

__all__ = [
    "ReadStats",
    "JsonLines",
    "Lowercase",
    "MosesPreprocess",
    "Pair",
    "PairSource",
    "Pairs",
    "ParallelFiles",
    "RelabelTags",
    "Shuffle",
    "HashSplit",
    "Take",
    "Concat",
    "Tsv",
    "moses_detokenize",
    "moses_tokenize",
    "iter_pairs",
]

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ParallelFiles(PairSource):
    """Two files in step: line n of `source` belongs to line n of `target`.

    `keep_blank` keeps pairs with a blank side (a test set answers every line); training data drops and counts them.
    Raises UserError where a file is missing, empty or corrupt, and at the end where they differ in the number of lines.
    """

    source: str
    target: str
    on_bad_line: OnBadLine = "error"
    keep_blank: bool = False

    def describe(self) -> str:
        return f"{self.source} -> {self.target}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return filter_pairs(self._aligned_lines(stats), stats, self.keep_blank, self.describe())

    def _aligned_lines(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        source_file, target_file = find_file(self.source), find_file(self.target)
        sources = iter_lines(source_file, self.on_bad_line, stats)
        targets = iter_lines(target_file, self.on_bad_line, stats)
        ended = object()
        for number, (source, target) in enumerate(zip_longest(sources, targets, fillvalue=ended)):
            if source is ended or target is ended:
                source_count = number if source is ended else number + 1 + sum(1 for _ in sources)
                target_count = number if target is ended else number + 1 + sum(1 for _ in targets)
                raise UserError(
                    f"{source_file} has {source_count:,} lines and {target_file} has {target_count:,}: parallel files "
                    "need the same number. Fetch both again, or find the line where they part."
                )
            yield source, target  # type: ignore[misc]


@dataclass(frozen=True)
class Tsv(PairSource):
    """Tab-separated columns, without quoting.

    `source` and `target` are columns by number, from 0, or all by name, of a first line that names them. A source of
    several columns is their texts with a TAB between them: `Tsv("SICK.txt", ("sentence_A", "sentence_B"), "judgment")`.
    """

    path: str
    source: int | str | tuple[int | str, ...]
    target: int | str
    on_bad_line: OnBadLine = "error"
    keep_blank: bool = False

    def __post_init__(self) -> None:
        asked = self._selected_columns
        kinds = {type(column) for column in asked}
        negative = any(isinstance(column, int) and column < 0 for column in asked)
        if len(set(asked)) != len(asked) or len(kinds) != 1 or len(asked) < 2 or negative:
            raise UserError(
                f"{self.path}: source column {self.source!r} and target column {self.target!r}: "
                "expected two different numbers from 0, or names of the first line"
            )

    @property
    def _selected_columns(self) -> tuple[int | str, ...]:
        return (*(self.source if isinstance(self.source, tuple) else (self.source,)), self.target)

    @property
    def _has_header(self) -> bool:
        return any(isinstance(column, str) for column in self._selected_columns)

    def describe(self) -> str:
        *source, target = map(str, self._selected_columns)
        return f"{self.path}, column {' and '.join(source)} -> column {target}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return filter_pairs(self._read_rows(stats), stats, self.keep_blank, self.describe())

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        file = find_file(self.path)
        lines = enumerate(iter_lines(file, self.on_bad_line, stats), start=1)
        places = self._header_indices(next(lines)[1] or "", file) if self._has_header else list(self._selected_columns)
        need = max(places) + 1  # type: ignore[type-var, operator]
        for number, line in lines:
            columns = [] if line is None else line.split("\t")
            if len(columns) >= need:
                *texts, target = (columns[place] for place in places)  # type: ignore[index]
                yield "\t".join(texts), target
            elif line == "":
                yield "", ""
            else:
                if line is not None and self.on_bad_line == "error":
                    raise UserError(
                        f"{file}, line {number}: {len(columns)} columns, expected at least {need} between tabs. "
                        "Mend the line or the column numbers, or set on_bad_line='skip'."
                    )
                yield None, None

    def _header_indices(self, header: str, file: object) -> list[int | str]:
        names = header.split("\t")
        missing = [column for column in self._selected_columns if column not in names]
        if missing:
            raise UserError(
                f"{file}, line 1 names no column {', '.join(map(repr, missing))}: it names "
                f"{', '.join(map(repr, names))}"
            )
        return [names.index(column) for column in self._selected_columns]  # type: ignore[arg-type]


@dataclass(frozen=True)
class JsonLines(PairSource):
    """One JSON object a line; `source` and `target` are keys, or paths such as `translation.en` into nested objects.

    A source of several keys is their texts with a TAB between them.
    """

    path: str
    source: str | tuple[str, ...]
    target: str
    on_bad_line: OnBadLine = "error"
    keep_blank: bool = False

    def describe(self) -> str:
        source = self.source if isinstance(self.source, str) else " and ".join(self.source)
        return f"{self.path}, {source} -> {self.target}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return filter_pairs(self._read_records(stats), stats, self.keep_blank, self.describe())

    def _read_records(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        file = find_file(self.path)
        pair: tuple[str | None, str | None]
        for number, line in enumerate(iter_lines(file, self.on_bad_line, stats), start=1):
            if line is None or not line.strip():
                yield line, line
                continue
            try:
                record = json.loads(line)
                pair = self._source_text(record, stats), self._text_at(record, self.target, stats)
            except ValueError as error:
                if self.on_bad_line == "error":
                    raise UserError(
                        f"{file}, line {number}: {error}. Mend the line or the keys, or set on_bad_line='skip'."
                    ) from error
                pair = None, None
            yield pair

    def _source_text(self, record: Any, stats: ReadStats) -> str:
        if isinstance(self.source, str):
            return self._text_at(record, self.source, stats)
        return "\t".join(" ".join(self._text_at(record, key, stats).split("\t")) for key in self.source)

    def _text_at(self, record: Any, key: str, stats: ReadStats) -> str:
        """The text under `key`. Raises ValueError; half a surrogate pair (JSON can escape one) is a bad character."""
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        value = record.get(key)
        if value is None and "." in key:
            first, rest = key.split(".", 1)
            return self._text_at(record.get(first), rest, stats)
        if not isinstance(value, str):
            found = type(value).__name__ if key in record else f"only {', '.join(map(repr, record)) or 'no key'}"
            raise ValueError(f"expected a text under {key!r}, found {found}")
        if LONE_SURROGATE.search(value):
            if self.on_bad_line != "replace":
                raise ValueError(f"the text under {key!r} holds half of a surrogate pair, which is no character")
            stats.replaced += 1
            value = LONE_SURROGATE.sub("\ufffd", value)
        return value

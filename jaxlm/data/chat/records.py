"""Records of chat data: JSON objects, one a line or in one array, and the base of their readers."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

from jaxlm.data.chat.dialogue import InvalidRecord
from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, find_file, iter_lines, open_text
from jaxlm.data.sources.base import Pairs, Row, Source, iter_pairs
from jaxlm.errors import UserError
from jaxlm.filesystem import format_bytes
from jaxlm.json_files import parse_json

MAX_ARRAY_BYTES = 512 << 20
"""The longest file that is one JSON array, which is read whole; a file of JSON lines has no limit."""

LINE_CURE = "fix the line, or set on_bad_line='skip'"


@dataclass(frozen=True)
class RecordFile(Source[Row], Generic[Row]):
    """Base of the readers: a subclass makes rows of a record (`_rows`).

    Attributes:
      path: JSON lines or one JSON array of objects, plain or compressed.
      fields: other names that the file has for the fields of its format, such as {"output": "response"}.
      on_bad_line: a record that cannot be used is an error, or is left out ("skip") and counted.
      strict: two turns of one role in a row are a fault; otherwise they are joined.
    """

    path: str
    fields: dict[str, str] = field(default_factory=dict)
    on_bad_line: OnBadLine = "error"
    strict: bool = False
    max_text_bytes: int = MAX_TEXT_BYTES

    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.fields) - set(self.FIELDS)):
            raise UserError(
                f"{self.path}: {type(self).__name__} has no field {', '.join(unknown)}; `fields` gives other names to "
                f"{', '.join(self.FIELDS)}"
            )

    def describe(self) -> str:
        return f"{self.path}, {type(self).__name__}"

    def read(self, stats: ReadStats) -> Iterator[Row]:
        empty = True
        for place, record in iter_records(self.path, self.on_bad_line, stats, self.max_text_bytes):
            try:
                for row in self._rows(record, stats):
                    stats.kept += 1
                    empty = False
                    yield row
            except InvalidRecord as error:
                if self.on_bad_line == "error":
                    raise UserError(f"{place}: {error}. Fix the record, or set on_bad_line='skip'.") from None
                stats.skipped += 1
        if empty:
            raise UserError(f"{self.describe()}: no record is left ({stats}). Look into the file.")

    def _rows(self, record: Mapping[str, Any], stats: ReadStats) -> Iterator[Row]:
        """The rows of a record, mostly one. Raises InvalidRecord."""
        raise NotImplementedError

    def _value(self, record: Mapping[str, Any], name: str) -> Any:
        """The value of a field under the name that the file has for it; None if it is absent or null."""
        return record.get(self.fields.get(name, name))

    def _text(self, record: Mapping[str, Any], name: str, default: str | None = None) -> str:
        """The text of a field. Raises InvalidRecord without one, unless there is a default."""
        value = self._value(record, name)
        if value is None and default is not None:
            return default
        if isinstance(value, str):
            return value
        key, keys = self.fields.get(name, name), ", ".join(map(repr, record)) or "no field"
        held = f"a {type(value).__name__}" if key in record else f"only {keys}"
        raise InvalidRecord(f"expected a text under {key!r}, found {held}")

    def _tools(self, record: Mapping[str, Any]) -> str:
        """The tools as a JSON text, which the file may hold as a text or as JSON itself."""
        value = self._value(record, "tools")
        if value in (None, "", []):
            return ""
        if not isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        try:
            parsed = parse_json(value, "tools", Any)
        except UserError as error:
            raise InvalidRecord(f"the tools are not JSON ({error})") from None
        return value if parsed else ""


@dataclass(frozen=True)
class PairRecords(Source[Row], Generic[Row]):
    """Base of the readers of the pairs of any source: a subclass makes rows of a pair (`_rows`), which `ROWS` names."""

    pairs: Pairs

    ROWS: ClassVar[str] = ""

    def describe(self) -> str:
        return f"{self.pairs.describe()}, as {self.ROWS}"

    def read(self, stats: ReadStats) -> Iterator[Row]:
        for number, (left, right) in enumerate(iter_pairs(self.pairs, stats), start=1):
            try:
                rows = list(self._rows(left, right, stats))
            except InvalidRecord as error:
                raise UserError(f"{self.pairs.describe()}, pair {number}: {error}. Fix the pair.") from None
            stats.kept += len(rows) - 1
            yield from rows

    def _rows(self, left: str, right: str, stats: ReadStats) -> Iterator[Row]:
        """The row of a pair, or none. Raises InvalidRecord."""
        raise NotImplementedError


def iter_records(
    path: str, on_bad_line: OnBadLine, stats: ReadStats, max_text_bytes: int = MAX_TEXT_BYTES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every record; `stats` counts those that are left out. Blank lines are not records.

    Lines are streamed; an array is read whole. Raises UserError with the place of the first fault.
    """
    file = find_file(path)
    stream: Any
    with open_text(file) as stream:
        is_array = stream.peek(512).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        content = stream.read(MAX_ARRAY_BYTES + 1) if is_array else b""
    if len(content) > MAX_ARRAY_BYTES:
        raise UserError(
            f"{file} is one JSON array of more than {format_bytes(MAX_ARRAY_BYTES)}, the limit: write one object a line"
        )
    if is_array:
        cure = "expected one JSON array of objects, or one object a line"
        for number, record in enumerate(parse_json(content, str(file), list, cure, MAX_ARRAY_BYTES), start=1):
            if isinstance(record, dict):
                yield f"{file}, record {number}", record
            elif on_bad_line == "error":
                raise UserError(f"{file}, record {number}: expected an object, found {record!r:.60}: {cure}")
            else:
                stats.skipped += 1
        return
    for number, line in enumerate(iter_lines(file, on_bad_line, stats, max_text_bytes), start=1):
        if line is None or not line.strip():
            stats.skipped += line is None
            continue
        try:
            record = parse_json(line, f"{file}, line {number}", dict, LINE_CURE, max_text_bytes)
        except UserError:
            if on_bad_line == "error":
                raise
            stats.skipped += 1
            continue
        yield f"{file}, line {number}", record

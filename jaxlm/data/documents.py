"""Documents from files: one a line, lines between blank ones, from heading to heading, or a field of JSON lines."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from jaxlm.data.corpus import JsonLines
from jaxlm.data.plain import TextSource
from jaxlm.data.text import BadLines, OnBadLine, lines_or_none
from jaxlm.errors import UserError

Unit = Literal["line", "block", "heading", "json"]


@dataclass(frozen=True)
class Documents(TextSource):
    """The documents of several plain or gzipped UTF-8 files, one file after the other.

    unit: a document is a "line", the lines of a "block" between blank ones, the lines from one "heading" to the next
      one, or what a line of "json" has in `field`. No document goes on in the next file; blank ones are left out.
    heading: the regular expression that the beginning of a heading matches.
    field: a key, or a path such as `meta.text` into nested objects.
    between: what joins the lines of a document that has several.
    """

    paths: tuple[str, ...]
    unit: Unit = "line"
    heading: str = ""
    field: str = "text"
    between: str = "\n"
    on_bad_line: OnBadLine = "error"

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("documents of no file: expected one path at least")
        if self.unit not in get_args(Unit) or (self.unit == "heading") != bool(self.heading):
            raise UserError(
                f"unit {self.unit!r} with heading {self.heading!r}: expected one of {', '.join(get_args(Unit))}, and a "
                "heading with 'heading' alone"
            )
        try:
            re.compile(self.heading)
        except re.error as error:
            raise UserError(f"heading {self.heading!r} is no regular expression: {error}") from None

    def describe(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}, a document a {self.unit}"

    def read(self, bad: BadLines) -> Iterator[str]:
        for path in self.paths:
            if self.unit == "json":
                for text, _ in JsonLines(path, self.field, self.field, self.on_bad_line).read(bad):
                    yield text
                continue
            for lines in self._groups(lines_or_none(path, self.on_bad_line, bad), bad):
                text = self.between.join(lines)
                if text and not text.isspace():
                    bad.kept += 1
                    yield text
                else:
                    bad.blank += 1

    def _groups(self, lines: Iterable[str | None], bad: BadLines) -> Iterator[list[str]]:
        """The lines of each document."""
        group: list[str] = []
        begins = re.compile(self.heading).match
        for line in lines:
            if line is None:
                bad.skipped += 1
                continue
            blank = not line or line.isspace()
            if self.unit == "line":
                yield [line]
            elif blank or (self.unit == "heading" and begins(line)):
                if group and not (blank and self.unit == "heading"):
                    yield group
                    group = []
                group += [] if blank else [line]
            else:
                group.append(line)
        if group:
            yield group

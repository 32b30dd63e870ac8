"""Plain text for language models: the lines of a file, or a part of a file as one long text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from jaxlm.data.ragged import BLOCK, Ragged
from jaxlm.data.text import BadLines, OnBadLine, find, lines_or_none
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError


class TextSource:
    """Base of what gives texts: any number of times, and the same ones each time."""

    def describe(self) -> str:
        """What is read."""
        raise NotImplementedError

    def read(self, bad: BadLines) -> Iterator[str]:
        """The texts; `bad` counts lines. Raises UserError for a file that is missing, damaged or not UTF-8."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return self.read(BadLines())

    def check(self) -> None:
        """Raises UserError for whatever reading would stumble over."""
        for _ in self:
            pass

    def encoded(self, tokenizer: Tokenizer, bad: BadLines) -> Ragged:
        """The ids of each text, in memory."""
        stream, rows = self.read(bad), []
        while block := list(islice(stream, BLOCK)):
            rows += tokenizer.encode(block)
        return Ragged.of(rows)


@dataclass(frozen=True)
class TextFile(TextSource):
    """A plain or gzipped UTF-8 file.

    unit: a text is a "line" (blank ones too), or the "whole" file with its line ends as LF.
    first, last: the part of the whole file to take, as shares of its characters: (0, 0.9) is the first nine tenths.
    """

    path: str
    unit: Literal["line", "whole"] = "line"
    first: float = 0.0
    last: float = 1.0
    on_bad_line: OnBadLine = "error"

    def __post_init__(self) -> None:
        if not 0.0 <= self.first < self.last <= 1.0:
            raise UserError(f"{self.path}: the part from {self.first} to {self.last}: expected 0 <= first < last <= 1")
        if self.unit == "line" and (self.first, self.last) != (0.0, 1.0):
            raise UserError(f"{self.path}: a part of a file is cut from unit='whole', not from lines")

    def describe(self) -> str:
        """What is read."""
        part = "" if (self.first, self.last) == (0.0, 1.0) else f", {self.first:.0%} to {self.last:.0%}"
        return f"{self.path}{part}, {'a text a line' if self.unit == 'line' else 'one text'}"

    def read(self, bad: BadLines) -> Iterator[str]:
        lines = self._lines(bad)
        if self.unit == "line":
            yield from lines
            return
        text = "".join(line + "\n" for line in lines)
        text = text[round(len(text) * self.first) : round(len(text) * self.last)]
        if not text:
            raise UserError(f"{find(self.path)}: nothing is left of it between {self.first:.0%} and {self.last:.0%}")
        yield text

    def _lines(self, bad: BadLines) -> Iterator[str]:
        for line in lines_or_none(self.path, self.on_bad_line, bad):
            if line is None:
                bad.skipped += 1
            else:
                bad.kept += 1
                yield line

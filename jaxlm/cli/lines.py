"""Lines of standard input, a chunk at a time: what has arrived is not kept waiting for what has not.

A line ends at LF (a CR before it is dropped) and nowhere else; the last one needs no end. A byte order mark at the
start is dropped.
"""

import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from jaxlm.data.text import BYTE_ORDER_MARK, BadLines, mend
from jaxlm.errors import UserError

CHUNK = 4096
"""Lines of a chunk: enough to batch by length, few enough to hold."""
PATIENCE = 0.05
"""Seconds to wait for more before the lines at hand are worked on."""
READ_BYTES = 1 << 16

Mending = Literal["error", "replace"]


@dataclass
class Input:
    """Standard input as text. `bad.replaced` counts the lines in which bad bytes became U+FFFD, `count` all lines."""

    on_bad_line: Mending = "error"
    chunk: int = CHUNK
    bad: BadLines = field(default_factory=BadLines)
    count: int = 0

    def chunks(self) -> Iterator[list[str]]:
        """Lists of 1 to `chunk` lines. Raises UserError at a line that is not UTF-8, unless it is to be mended."""
        if sys.stdin is None:
            raise UserError("standard input is closed: give the lines by < FILE or | ")
        lines: list[str] = []
        for raw in _raw_lines(sys.stdin.buffer):
            if raw is not None:
                self.count += 1
                lines.append(self._text(raw))
            if lines and (raw is None or len(lines) >= self.chunk):
                yield lines
                lines = []
        if lines:
            yield lines

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            place = f"standard input, line {self.count}, byte {error.start} of the line"
            if self.on_bad_line == "error":
                raise UserError(
                    f"{place}: not UTF-8. Convert the text (iconv -f LATIN1 -t UTF-8, with its true encoding), "
                    "or give --on-bad-line replace"
                ) from error
            return mend(raw, place, self.on_bad_line, self.bad) or ""


def beyond(lines: Sequence[str], tokenizer: Any, limit: int, marked: bool = False) -> int:
    """How many lines have more than `limit` tokens with EOS, and where they are `marked` with BOS and an end a part.

    A token has a byte at least, so few lines are encoded.
    """
    marks = [2 + line.count("\t") if marked else 1 for line in lines]
    long = [
        (line, more)
        for line, more in zip(lines, marks, strict=True)
        if line.strip() and len(line.encode(errors="replace")) + 1 + more > limit
    ]
    ids = tokenizer.encode([line for line, _ in long]) if long else []
    return sum(len(row) + more > limit for row, (_, more) in zip(ids, long, strict=True))


def _raw_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines without their ends; None where no more has arrived for a while."""
    rest, first = b"", True
    while data := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield _without_marks(line.removesuffix(b"\r"), first)
            first = False
        if not _more_is_there(stream):
            yield None
    if rest and _without_marks(rest, first):
        yield _without_marks(rest, first)


def _without_marks(line: bytes, first: bool) -> bytes:
    return line.removeprefix(BYTE_ORDER_MARK) if first else line


def _more_is_there(stream: BinaryIO) -> bool:
    """True if reading would not wait long. A file always has more, up to its end."""
    try:
        return bool(select.select([stream.fileno()], [], [], PATIENCE)[0])
    except (OSError, ValueError):  # no descriptor (a test), or none that can be waited for (Windows)
        return True

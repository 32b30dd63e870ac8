"""Lines of standard input, a chunk at a time: what has arrived is not kept waiting for what has not.

A line ends at LF (a CR before it is dropped) and nowhere else; the last one needs no end. A byte order mark at the
start is dropped.
"""

import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from jaxlm.data.files import BYTE_ORDER_MARK, ReadStats, decode_invalid_utf8
from jaxlm.errors import UserError

LINES_PER_BATCH = 4096
"""Lines of a chunk: enough to batch by length, few enough to hold."""

WAIT_SECONDS = 0.05
"""Seconds to wait for more before the lines at hand are worked on."""

STDIN_READ_BYTES = 1 << 16

BadLinePolicy = Literal["error", "replace"]


@dataclass
class StdinLines:
    """Standard input as text. `bad.replaced` counts the lines in which bad bytes became U+FFFD, `count` all lines."""

    on_bad_line: BadLinePolicy = "error"
    lines_per_batch: int = LINES_PER_BATCH
    read_stats: ReadStats = field(default_factory=ReadStats)
    num_lines: int = 0

    def batches(self) -> Iterator[list[str]]:
        """Lists of 1 to `chunk` lines. Raises UserError at a line that is not UTF-8, unless it is to be mended."""
        if sys.stdin is None:
            raise UserError("standard input is closed: give the lines by < FILE or | ")
        lines: list[str] = []
        for raw in _raw_lines(sys.stdin.buffer):
            if raw is not None:
                self.num_lines += 1
                lines.append(self._decode(raw))
            if lines and (raw is None or len(lines) >= self.lines_per_batch):
                yield lines
                lines = []
        if lines:
            yield lines

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            place = f"standard input, line {self.num_lines}, byte {error.start} of the line"
            if self.on_bad_line == "error":
                raise UserError(
                    f"{place}: not UTF-8. Convert the text (iconv -f LATIN1 -t UTF-8, with its true encoding), "
                    "or give --on-bad-line replace"
                ) from error
            return decode_invalid_utf8(raw, place, self.on_bad_line, self.read_stats) or ""


def count_truncated(lines: Sequence[str], tokenizer: Any, limit: int, with_markers: bool = False) -> int:
    """How many lines have more than `limit` tokens with EOS, and where they are `marked` with BOS and an end a part.

    A token has a byte at least, so few lines are encoded.
    """
    marks = [2 + line.count("\t") if with_markers else 1 for line in lines]
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
    while data := stream.read1(STDIN_READ_BYTES):  # type: ignore[attr-defined]
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield _strip_byte_order_mark(line.removesuffix(b"\r"), first)
            first = False
        if not _has_more_input(stream):
            yield None
    if rest and _strip_byte_order_mark(rest, first):
        yield _strip_byte_order_mark(rest, first)


def _strip_byte_order_mark(line: bytes, is_first: bool) -> bytes:
    return line.removeprefix(BYTE_ORDER_MARK) if is_first else line


def _has_more_input(stream: BinaryIO) -> bool:
    """True if reading would not wait long. A file always has more, up to its end."""
    try:
        return bool(select.select([stream.fileno()], [], [], WAIT_SECONDS)[0])
    except (OSError, ValueError):  # no descriptor (a test), or none that can be waited for (Windows)
        return True

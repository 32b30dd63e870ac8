"""Lines of standard input in batches; lines that have arrived do not wait for later ones.

Only LF ends a line (a CR before it is dropped); the last line needs no LF. A byte order mark at the start is dropped.
"""

import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxlm.cli.parser import CommandParser, add_bad_line_option
from jaxlm.data.files import BYTE_ORDER_MARK, ReadStats, decode_invalid_utf8
from jaxlm.errors import UserError
from jaxlm.filesystem import format_bytes

LINES_PER_BATCH = 4096
"""Enough lines to bucket them by length, few enough to keep in memory."""

MEGABYTE = 1_000_000

MAX_LINE_MB = 16
"""More than a book; a line of gigabytes is another file than was meant."""

WAIT_SECONDS = 0.05
"""Seconds to wait for more lines before those that have arrived are processed."""

STDIN_READ_BYTES = 1 << 16

BadLinePolicy = Literal["error", "replace"]


@dataclass
class StdinLines:
    """Standard input as text. `num_lines`: read so far; `read_stats.replaced`: in how many bad bytes became U+FFFD;
    `prompt`: what a terminal shows before each line."""

    on_bad_line: BadLinePolicy = "error"
    lines_per_batch: int = LINES_PER_BATCH
    max_line_bytes: int = MAX_LINE_MB * MEGABYTE
    read_stats: ReadStats = field(default_factory=ReadStats)
    num_lines: int = 0
    prompt: str = ""

    def batches(self) -> Iterator[list[str]]:
        """Lists of 1 to `lines_per_batch` lines. Raises UserError at a line that is not UTF-8, unless repaired."""
        if sys.stdin is None:
            raise UserError("standard input is closed: pass the lines with `< FILE` or a pipe")
        lines: list[str] = []
        for raw in self._raw_lines(sys.stdin.buffer):
            if raw is not None:
                self.num_lines += 1
                lines.append(self._decode(raw))
            if lines and (raw is None or len(lines) >= self.lines_per_batch):
                yield lines
                lines = []
        if lines:
            yield lines

    def _raw_lines(self, stream: Any) -> Iterator[bytes | None]:
        """Lines without LF; None when no more input has arrived for a while."""
        unfinished: list[bytes] = []
        size = 0
        while data := _read_some(stream, self.prompt):
            *ends, rest = data.split(b"\n")
            for end in ends:
                yield self._whole_line([*unfinished, end]).removesuffix(b"\r")
                unfinished = []
            unfinished.append(rest)
            size = len(rest) + (0 if ends else size)
            if size > self.max_line_bytes:
                break
            if not _has_more_input(stream):
                yield None
        if last := self._whole_line(unfinished):
            yield last

    def _whole_line(self, parts: list[bytes]) -> bytes:
        """The parts joined, without a byte order mark in the first line. Raises UserError for too long a line."""
        line = b"".join(parts)
        if len(line) > self.max_line_bytes:
            limit = f"more than {format_bytes(self.max_line_bytes)}, the limit"
            raise UserError(
                f"standard input, line {self.num_lines + 1}: {limit}: split the line, or give --max-line-mb N"
            )
        return line if self.num_lines else line.removeprefix(BYTE_ORDER_MARK)

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            place = f"standard input, line {self.num_lines}, byte {error.start} of the line"
            if self.on_bad_line == "error":
                raise UserError(
                    f"{place}: not UTF-8. Convert the text (iconv -f LATIN1 -t UTF-8, with its true encoding), "
                    "or use --on-bad-line replace"
                ) from error
            return decode_invalid_utf8(raw, place, self.on_bad_line, self.read_stats) or ""


def count_truncated(lines: Sequence[str], tokenizer: Any, limit: int, with_markers: bool = False) -> int:
    """The number of lines with more than `limit` tokens, counting EOS, or with markers BOS and one separator per part.
    Only lines with enough bytes are encoded: a token has at least one byte."""
    num_special = {line: 2 + line.count("\t") if with_markers else 1 for line in lines}
    long = [
        line for line in lines if line.strip() and len(line.encode(errors="replace")) + 1 + num_special[line] > limit
    ]
    ids = tokenizer.encode(long) if long else []
    return sum(len(row) + num_special[line] > limit for row, line in zip(ids, long, strict=True))


def _read_some(stream: Any, prompt: str) -> bytes:
    """The bytes that have arrived, b"" at the end. Raises UserError if they cannot be read."""
    is_dialogue = bool(prompt) and stream.isatty()
    print(end=prompt * is_dialogue, file=sys.stderr, flush=True)
    try:
        data = stream.read1(STDIN_READ_BYTES)
        print(end="\n" * (is_dialogue and not data), file=sys.stderr)
        return data
    except OSError as error:
        raise UserError(
            f"standard input cannot be read ({error.strerror or error}): pass the lines by a pipe"
        ) from None


def _has_more_input(stream: Any) -> bool:
    """True if a read would return soon. A file always has more input, up to its end."""
    try:
        return bool(select.select([stream.fileno()], [], [], WAIT_SECONDS)[0])
    except (OSError, ValueError):  # no descriptor (in tests), or one that select cannot wait for (Windows)
        return True


def add_stdin_options(parser: CommandParser) -> None:
    """Options of the lines of standard input."""
    add_bad_line_option(parser, ("error", "replace"), "error")
    add_line_limit_option(parser)


def add_line_limit_option(parser: CommandParser) -> None:
    """`--max-line-mb`."""
    parser.add_int("--max-line-mb", "megabytes of a line at most", default=MAX_LINE_MB)

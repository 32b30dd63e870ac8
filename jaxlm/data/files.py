"""Lines of plain or gzipped UTF-8 files, streamed, with counts of the lines that were repaired or left out.

Only LF and CRLF end a line: U+2028, U+0085, vertical tabs, form feeds and NUL are text. The last line needs no
end. A byte order mark at the start of a file is dropped. Gzip is recognized by its first two bytes.
"""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from jaxlm.errors import UserError

OnBadLine = Literal["error", "replace", "skip"]
"""The treatment of an unreadable line: stop and name it, replace the bad bytes by U+FFFD, or leave the line out (in
parallel data the whole pair). A record without its fields cannot be repaired: "replace" leaves it out."""

GZIP_MAGIC = b"\x1f\x8b"

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

UTF16_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")

READ_BUFFER_BYTES = 1 << 20


@dataclass
class ReadStats:
    """Counts of a reading, added to the object that the caller passes in."""

    kept: int = 0  # lines or pairs that were delivered
    replaced: int = 0  # texts in which bad bytes became U+FFFD
    skipped: int = 0  # unreadable lines or pairs, left out
    blank: int = 0  # pairs left out because a side was empty or white space
    split: int = 0  # texts that were too long and became several

    def __str__(self) -> str:
        return (
            f"{self.kept:,} kept, {self.replaced:,} repaired with U+FFFD, "
            f"{self.skipped:,} unreadable left out, {self.blank:,} blank left out"
        ) + (f", {self.split:,} too long and cut into pieces" if self.split else "")


def find_file(path: str | Path) -> Path:
    """The existing file at `path`, or at `path` with (without) `.gz`.

    A relative path is searched in `$JAXLM_DATA`, `data/` and the current folder, in this order. Raises UserError
    with every place that was searched.
    """
    path = Path(path).expanduser()
    folders = [Path()]
    cure = "Check the path."
    if not path.is_absolute():
        places = (os.environ.get("JAXLM_DATA"), "data", ".")
        folders = [Path(place).expanduser() for place in places if place]
        cure = "Set JAXLM_DATA to the folder that holds it, or give an absolute path."
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(path.name + ".gz")
    tried = [folder / name for folder in folders for name in (path, twin)]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    places_tried = "".join(f"\n  {candidate}" for candidate in tried)
    raise UserError(f"{path} was not found. Looked for:{places_tried}\n{cure}")


def read_lines(path: str | Path, on_bad_line: OnBadLine = "error", stats: ReadStats | None = None) -> Iterator[str]:
    """The lines of a file, without their ends; `stats` counts them. Raises UserError for a bad file or line."""
    stats = ReadStats() if stats is None else stats
    for line in iter_lines(path, on_bad_line, stats):
        if line is None:
            stats.skipped += 1
        else:
            stats.kept += 1
            yield line


def iter_lines(path: str | Path, on_bad_line: OnBadLine, stats: ReadStats) -> Iterator[str | None]:
    """As `read_lines`, but a skipped line is None and counted by the caller, so that parallel files stay aligned."""
    if on_bad_line not in get_args(OnBadLine):
        raise UserError(f"on_bad_line is {on_bad_line!r}: expected one of {', '.join(get_args(OnBadLine))}")
    file = find_file(path)
    for number, (offset, raw) in enumerate(_iter_raw_lines(file), start=1):
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            hint = ". It looks like UTF-16" if number == 1 and raw.startswith(UTF16_BYTE_ORDER_MARKS) else ""
            location = f"{file}, line {number}, byte {offset + error.start} of the text{hint}"
            yield decode_invalid_utf8(raw, location, on_bad_line, stats)


def decode_invalid_utf8(raw: bytes, location: str, on_bad_line: OnBadLine, stats: ReadStats) -> str | None:
    """The text of bytes that are not UTF-8: with U+FFFD (counted) or None; or a UserError that names `location`."""
    if on_bad_line == "error":
        raise UserError(
            f"{location}: not UTF-8. Convert the file (iconv -f LATIN1 -t UTF-8, with its true encoding), "
            "or set on_bad_line to 'replace' or 'skip'."
        )
    if on_bad_line == "skip":
        return None
    stats.replaced += 1
    return raw.decode(errors="replace")


def _iter_raw_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(offset of the line in the uncompressed file, its bytes without the end)."""
    offset, empty = 0, True
    try:
        with _open_maybe_gzip(file) as stream:
            for raw in stream:
                start, offset = offset, offset + len(raw)
                if start == 0 and raw.startswith(BYTE_ORDER_MARK):
                    start, raw = len(BYTE_ORDER_MARK), raw[len(BYTE_ORDER_MARK) :]
                    if not raw:
                        break
                if raw.endswith(b"\n"):
                    raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
                empty = False
                yield start, raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{file}: damaged gzip after {offset:,} bytes of text ({error}). Fetch the file again."
        ) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    if empty:
        raise UserError(f"{file} is empty: expected one text a line. Fetch the file again.")


def _open_maybe_gzip(file: Path) -> BinaryIO:
    with open(file, "rb") as stream:
        magic = stream.read(len(GZIP_MAGIC))
    if magic == GZIP_MAGIC:
        return io.BufferedReader(gzip.open(file), READ_BUFFER_BYTES)
    if file.suffix == ".gz" and magic:
        raise UserError(f"{file} ends in .gz but is not gzip. Fetch it again, or rename it if it is plain text.")
    return open(file, "rb", buffering=READ_BUFFER_BYTES)

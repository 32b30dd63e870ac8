"""Lines of UTF-8 files, streamed, with counts of the lines that were repaired or left out.

Files are plain, or compressed with gzip, bzip2, xz or zip (of one file), and with Zstandard where Python has it; their
first bytes tell which. Only LF and CRLF end a line: U+2028, U+0085, vertical tabs, form feeds and NUL are text. The
last line needs no end. A byte order mark at the start of a file is dropped.
"""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from jaxlm.data.catalog import get_command
from jaxlm.errors import UserError

OnBadLine = Literal["error", "replace", "skip"]
"""The treatment of an unreadable line: stop and name it, replace the bad bytes by U+FFFD, or leave the line out (in
parallel data the whole pair). A record without its fields cannot be repaired: "replace" leaves it out."""

MAX_TEXT_BYTES = 64 << 20
"""The longest line, or document, that the readers take by default."""

UNPACKED_BYTES, MAX_EXPANSION = 64 << 20, 200
"""A compressed file may give that many bytes of text, or this many times its own size; more is not text."""

READABLE: dict[str, bytes | tuple[bytes, ...]] = {
    "gzip": b"\x1f\x8b",
    "bzip2": tuple(b"BZh%d1AY&SY" % level for level in range(1, 10)),
    "xz": b"\xfd7zXZ\x00",
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "Zstandard": b"\x28\xb5\x2f\xfd",
}
"""The compressions that are read, and the bytes that such a file begins with."""

COMPRESSED_ENDINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip", ".zst": "Zstandard"}

TABLE_CURE = "In an experiment, ArrowTable(FILE, SOURCE, TARGET) reads pairs from its columns."

UNREADABLE = (
    (b"PAR1\x15", "a Parquet table", TABLE_CURE),
    (b"ARROW1\x00", "an Arrow table", TABLE_CURE),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it: 7z x FILE."),
    (b"Rar!\x1a\x07", "a RAR archive", "Unpack it: unrar x FILE."),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", "Unpack it: lz4 -d FILE."),
    (b"\x1f\x9d", "compressed with `compress`", "Unpack it: uncompress FILE."),
    (b"LZIP\x01", "compressed with lzip", "Unpack it: lzip -d FILE."),
    (b"\x89HDF\r\n", "an HDF5 file", "Write its texts as JSON lines."),
    (b"SQLite format 3\x00", "an SQLite database", "Write its texts as JSON lines."),
    (b"ustar", "a tar archive", "Unpack it: tar xf FILE."),
    (b"version https://git-lfs.github.com/", "a pointer of Git LFS", "Fetch the file itself: git lfs pull."),
)
"""Files that are not text: the bytes they begin with, what they are, and what helps."""

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
    notes: dict[str, int] = field(default_factory=dict)  # other things that a reader counts, by their description

    def note(self, what: str, count: int = 1) -> None:
        """Count something else, such as "with an empty answer left out"."""
        self.notes[what] = self.notes.get(what, 0) + count

    def __str__(self) -> str:
        counts = {
            "repaired with U+FFFD": self.replaced, "unreadable left out": self.skipped, "blank left out": self.blank,
            "too long and cut into pieces": self.split, **self.notes,
        }  # fmt: skip
        return f"{self.kept:,} kept" + "".join(f", {count:,} {what}" for what, count in counts.items() if count)


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
        command = get_command(path)
        fetch = f"Fetch it with {command}, set" if command else "Set"
        cure = f"{fetch} JAXLM_DATA to the folder that holds it, or give an absolute path."
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(path.name + ".gz")
    tried = [folder / name for folder in folders for name in (path, twin)]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    places_tried = "".join(f"\n  {candidate}" for candidate in tried)
    raise UserError(f"{path} was not found. Looked for:{places_tried}\n{cure}")


def read_lines(
    path: str | Path, on_bad_line: OnBadLine = "error", stats: ReadStats | None = None, max_bytes: int = MAX_TEXT_BYTES
) -> Iterator[str]:
    """The lines of a file, without their ends; `stats` counts them. Raises UserError for a bad file or line."""
    stats = ReadStats() if stats is None else stats
    for line in iter_lines(path, on_bad_line, stats, max_bytes):
        if line is None:
            stats.skipped += 1
        else:
            stats.kept += 1
            yield line


def iter_lines(
    path: str | Path, on_bad_line: OnBadLine, stats: ReadStats, max_bytes: int = MAX_TEXT_BYTES
) -> Iterator[str | None]:
    """As `read_lines`, but a skipped line is None and counted by the caller, so that parallel files stay aligned."""
    if on_bad_line not in get_args(OnBadLine):
        raise UserError(f"on_bad_line is {on_bad_line!r}: expected one of {', '.join(get_args(OnBadLine))}")
    file = find_file(path)
    for number, (offset, raw) in enumerate(_iter_raw_lines(file, max_bytes), start=1):
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            hint = ". It looks like UTF-16" if number == 1 and raw.startswith(UTF16_BYTE_ORDER_MARKS) else ""
            location = f"{file}, line {number}, byte {offset + error.start} of the text{hint}"
            yield decode_invalid_utf8(raw, location, on_bad_line, stats)


def decode_invalid_utf8(raw: bytes, location: str, on_bad_line: OnBadLine, stats: ReadStats) -> str | None:
    """The text of bytes that are not UTF-8: with U+FFFD (counted) or None; or a UserError that names `location`."""
    if on_bad_line == "error":
        cure = "This is not a text file: choose another one"
        if b"\0" not in raw or "UTF-16" in location:
            cure = "Convert the file (iconv -f LATIN1 -t UTF-8, with its true encoding)"
        raise UserError(f"{location}: not UTF-8. {cure}, or set on_bad_line (--on-bad-line) to 'replace' or 'skip'.")
    if on_bad_line == "skip":
        return None
    stats.replaced += 1
    return raw.decode(errors="replace")


def _iter_raw_lines(file: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(offset of the line in the uncompressed file, its bytes without the end)."""
    offset = 0
    with open_text(file) as stream:
        for number, raw in enumerate(iter(partial(stream.readline, max_bytes + 2), b""), start=1):
            start, offset = offset, offset + len(raw)
            if start == 0 and raw.startswith(BYTE_ORDER_MARK):
                start, raw = len(BYTE_ORDER_MARK), raw[len(BYTE_ORDER_MARK) :]
                if not raw:
                    offset = 0
                    break
            if raw.endswith(b"\n"):
                raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
            if len(raw) > max_bytes:
                raise UserError(f"{file}, line {number}: {too_large('the line', max_bytes)}")
            yield start, raw
    if not offset:
        raise UserError(f"{file} is empty: expected one text a line")


def too_large(what: str, max_bytes: int) -> str:
    """The message about a text beyond the limit of its reader."""
    return (
        f"{what} has more than {max_bytes:,} bytes, the limit. Break it into smaller ones, or raise the limit "
        "(max_text_bytes of the reader, --max-line-mb of `jaxlm prepare`)."
    )


def text_name(file: Path) -> str:
    """The name of the text in a file: without the ending of a compression, or that of the file in a zip."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        return archive.namelist()[0] if archive.namelist() else file.name
    return file.stem if file.suffix.lower() in COMPRESSED_ENDINGS else file.name


@contextlib.contextmanager
def open_text(file: Path) -> Iterator[BinaryIO]:
    """The bytes of a text file, unpacked if it is compressed. Raises UserError for its faults."""
    kind, text_bytes = "plain text", lambda: 0
    try:
        with open(file, "rb") as plain:
            head, size = plain.read(512), plain.seek(0, os.SEEK_END)
        kind = next((kind for kind, magic in READABLE.items() if head.startswith(magic)), kind)
        expected = COMPRESSED_ENDINGS.get(file.suffix.lower(), kind)
        if head and kind != expected:
            raise UserError(f"{file} ends in {file.suffix} but is not {expected}. Fetch it again, or rename it.")
        if kind == "plain text":
            raw: io.RawIOBase = open(file, "rb", buffering=0)
        else:
            raw = _Unpacked(_decompressor(file, kind), file, max(UNPACKED_BYTES, MAX_EXPANSION * size))
            text_bytes = raw.tell
        with io.BufferedReader(raw, READ_BUFFER_BYTES) as stream:
            head = stream.peek(512)
            what = [
                (name, cure) for magic, name, cure in UNREADABLE if head[257 * (magic == b"ustar") :].startswith(magic)
            ]
            if what:
                raise UserError(f"{file} is {what[0][0]}, expected text. {what[0][1]}")
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
        raise UserError(
            f"{file}: damaged {kind} after {text_bytes():,} bytes of text ({error}). Fetch the file again."
        ) from error


class _Unpacked(io.RawIOBase):
    """The text of a compressed file, up to what a text can expand to."""

    def __init__(self, decompressor: Any, file: Path, max_bytes: int):
        self._decompressor, self._file, self._max_bytes, self._total = decompressor, file, max_bytes, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._total

    def readinto(self, buffer: Any) -> int:
        count = self._decompressor.readinto(buffer)
        self._total += count
        if self._total > self._max_bytes:
            raise UserError(
                f"{self._file} gives more than {self._max_bytes:,} bytes, {MAX_EXPANSION} times its own size, which is "
                "the limit of a compressed text. Unpack it first if it is one."
            )
        return count

    def close(self) -> None:
        self._decompressor.close()
        super().close()


def _decompressor(file: Path, kind: str) -> Any:
    if kind == "zip":
        with zipfile.ZipFile(file) as archive:  # an open member keeps the file open
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if len(names) != 1:
                raise UserError(
                    f"{file} is a zip of {len(names)} files ({', '.join(names[:3])}), expected one: unpack it (unzip "
                    "FILE) and name its files"
                )
            return archive.open(names[0])
    if kind == "Zstandard":
        try:
            return importlib.import_module("compression.zstd").open(file)
        except ImportError:
            raise UserError(
                f"{file} is compressed with Zstandard (zstd), which this Python cannot read: unpack it (zstd -d FILE), "
                "or use Python 3.14 or newer"
            ) from None
    openers: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return openers[kind](file)

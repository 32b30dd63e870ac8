"""Documents as ids on disk, in shards that are memory-mapped: what `jaxlm prepare` makes and training reads.

index.json       the tokenizer's fingerprint, the type of the ids, a record for each shard, the sums
tokenizer/       what the ids are of
00000.ids        the ids of all documents of the shard, one after the other, without special ids
00000.ends.npy   int64: where each document of the shard ends
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.parts import Parts
from jaxlm.data.plain import TextSource
from jaxlm.data.ragged import BLOCK, Ragged
from jaxlm.data.text import BadLines, find
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError

INDEX, VERSION = "index.json", 1
CURE = "Give the `jaxlm prepare` command that made it again: it keeps what is whole."


@dataclass(frozen=True)
class Record:
    """What is known of one shard. `text` is a digest of its documents, `check` the CRC-32 of its two files.

    Bytes are of the text as UTF-8, `unknown` are tokens.
    """

    name: str
    documents: int
    tokens: int
    unknown: int
    bytes: int
    text: str
    check: tuple[int, int]

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Of the ids, and of the ends of the documents."""
        return folder / f"{self.name}.ids", folder / f"{self.name}.ends.npy"

    def open(self, folder: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The ids, memory-mapped, and the ends. Raises UserError where the files are not what the record says."""
        ids, ends = self.files(folder)
        try:
            size = ids.stat().st_size
            ends_D = np.load(ends)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"shard {self.name} of {folder} cannot be read ({error}). {CURE}") from error
        if size != self.tokens * dtype.itemsize:
            raise UserError(
                f"{ids} has {size:,} bytes, expected {self.tokens * dtype.itemsize:,} for the {self.tokens:,} tokens "
                f"that {INDEX} names: it was cut off or changed. {CURE}"
            )
        wrong = ends_D.shape != (self.documents,) or ends_D.dtype != np.int64
        if wrong or (self.documents and (ends_D[0] < 0 or ends_D[-1] != self.tokens or (np.diff(ends_D) < 0).any())):
            raise UserError(
                f"{ends} does not hold the ends of {self.documents:,} documents of {self.tokens:,} tokens, which "
                f"{INDEX} names. {CURE}"
            )
        return np.memmap(ids, dtype, "r") if self.tokens else np.zeros(0, dtype), ends_D

    def whole(self, folder: Path) -> bool:
        """Whether both files have the bytes that were written."""
        try:
            return tuple(_crc(file) for file in self.files(folder)) == tuple(self.check)
        except OSError:
            return False


@dataclass(frozen=True)
class Shards(TextSource):
    """The documents of a folder that `jaxlm prepare` made.

    longest: documents of more tokens become several, cut there (for batches in which a document is a row; windows cut
      whatever comes). None: none is cut.
    """

    path: str
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.longest is not None and self.longest < 1:
            raise UserError(f"longest = {self.longest}: expected 1 token at least, or None")

    def describe(self) -> str:
        return f"{self.path}, shards" + (f", in pieces of {self.longest:,} tokens" if self.longest else "")

    @property
    def folder(self) -> Path:
        """Where the shards are. Raises UserError with every place tried."""
        return find(Path(self.path) / INDEX).parent

    def check(self) -> None:
        """Reads every byte once. Raises UserError for a shard that is not what was written."""
        folder, (records, _, _) = self.folder, read_index(self.folder)
        for record in records:
            if not record.whole(folder):
                raise UserError(f"shard {record.name} of {folder} is damaged: its bytes are not those written. {CURE}")

    def encoded(self, tokenizer: Tokenizer, bad: BadLines) -> Ragged:
        """The ids of each document, memory-mapped. Raises UserError for another tokenizer and for damaged files."""
        records, dtype, fingerprint = read_index(self.folder)
        if fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the shards in {self.folder} are ids of the tokenizer {fingerprint[:12]}, and this run has "
                f"{tokenizer.fingerprint[:12]}: use theirs (tokenizer=Stored({self.path!r}, size)), or prepare them "
                "with `jaxlm prepare --tokenizer WORKDIR`"
            )
        parts, ends = zip(*(record.open(self.folder, dtype) for record in records), strict=True)
        before = np.cumsum([0, *(record.tokens for record in records)])
        offsets = np.concatenate([[0], *(end + first for end, first in zip(ends, before[:-1], strict=True))])
        flat: Any = parts[0] if len(parts) == 1 else Parts(parts)
        column = Ragged(flat, offsets)
        bad.kept += len(column)
        if self.longest is None:
            return column
        bad.cut += int((column.lengths > self.longest).sum())
        return column.pieces(self.longest)

    def read(self, bad: BadLines) -> Iterator[str]:
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        column = self.encoded(tokenizer, bad)
        for first in range(0, len(column), BLOCK):
            yield from tokenizer.decode([column[row].tolist() for row in range(first, min(first + BLOCK, len(column)))])


def read_index(folder: Path) -> tuple[list[Record], np.dtype, str]:
    """The shards, the type of their ids and the fingerprint of their tokenizer. Raises UserError if it is damaged."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index["version"] != VERSION:
            raise UserError(f"{folder / INDEX} has version {index['version']}, expected {VERSION}. {CURE}")
        records = [read_record(entry) for entry in index["shards"]]
        if not records or index["sums"] != sums(records):
            raise ValueError("its sums are not those of its shards")
        return records, np.dtype(index["dtype"]), str(index["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is damaged ({error}). {CURE}") from error


def write_index(folder: Path, records: list[Record], tokenizer: Tokenizer, source: str) -> dict[str, Any]:
    """Whole or not at all; the sums."""
    index: dict[str, Any] = {
        "version": VERSION,
        "source": source,
        "tokenizer": tokenizer.fingerprint,
        "dtype": id_type(tokenizer).str,
    }
    index |= {"sums": sums(records), "shards": [asdict(record) for record in records]}
    write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
    return index["sums"]


def source_of(folder: Path) -> str | None:
    """What the shards of a folder were made of; None where there is no index that tells."""
    try:
        return str(json.loads((folder / INDEX).read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sums(records: list[Record]) -> dict[str, int]:
    """Of all shards."""
    return {
        name: sum(getattr(record, name) for record in records) for name in ("documents", "tokens", "unknown", "bytes")
    }


def read_record(entry: dict[str, Any]) -> Record:
    """A shard's entry. Raises ValueError, KeyError or TypeError where it is none."""
    found = Record(**{field.name: entry[field.name] for field in fields(Record)} | {"check": tuple(entry["check"])})
    numbers = (found.documents, found.tokens, found.unknown, found.bytes, *found.check)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"shard {found.name} has counts that are no whole numbers")
    return found


def id_type(tokenizer: Tokenizer) -> np.dtype:
    """Two bytes an id where they suffice, else four."""
    return np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")


def write_whole(file: Path, content: bytes) -> int:
    """Write a file that appears at the end; the CRC-32 of its bytes."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)
    return zlib.crc32(content)


def _crc(file: Path) -> int:
    check = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            check = zlib.crc32(block, check)
    return check

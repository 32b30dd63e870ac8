"""Documents as ids on disk, in shards that are memory-mapped: what `jaxlm prepare` makes and training reads.

index.json       the tokenizer's fingerprint, the type of the ids, a record for each shard, the sums
tokenizer/       what the ids are of
00000.ids        the ids of all documents of the shard, one after the other, without special ids
00000.ends.npy   int64: where each document of the shard ends

What a training split is known by, so that a run can tell that it goes on with what it began with.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.files import ReadStats, find_file
from jaxlm.data.ragged import ConcatArray, Ragged
from jaxlm.data.sources.text import TextSource
from jaxlm.data.tokenizers.base import TOKENIZE_BATCH_SIZE, Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic

SHARD_INDEX, SHARD_VERSION = "index.json", 1

REBUILD_HINT = "Give the `jaxlm prepare` command that made it again: it keeps what is whole."


@dataclass(frozen=True)
class ShardRecord:
    """What is known of one shard. `text` is a digest of its documents, `check` the CRC-32 of its two files.

    Bytes are of the text as UTF-8, `unknown` are tokens.
    """

    name: str
    documents: int
    tokens: int
    unknown: int
    bytes: int
    text_digest: str
    crc32: tuple[int, int]

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
            raise UserError(f"shard {self.name} of {folder} cannot be read ({error}). {REBUILD_HINT}") from error
        if size != self.tokens * dtype.itemsize:
            raise UserError(
                f"{ids} has {size:,} bytes, expected {self.tokens * dtype.itemsize:,} for the {self.tokens:,} tokens "
                f"that {SHARD_INDEX} names: it was cut off or changed. {REBUILD_HINT}"
            )
        wrong = ends_D.shape != (self.documents,) or ends_D.dtype != np.int64
        if wrong or (self.documents and (ends_D[0] < 0 or ends_D[-1] != self.tokens or (np.diff(ends_D) < 0).any())):
            raise UserError(
                f"{ends} does not hold the ends of {self.documents:,} documents of {self.tokens:,} tokens, which "
                f"{SHARD_INDEX} names. {REBUILD_HINT}"
            )
        return np.memmap(ids, dtype, "r") if self.tokens else np.zeros(0, dtype), ends_D

    def is_intact(self, folder: Path) -> bool:
        """Whether both files have the bytes that were written."""
        try:
            return tuple(_crc32_of_file(file) for file in self.files(folder)) == tuple(self.crc32)
        except OSError:
            return False


@dataclass(frozen=True)
class Shards(TextSource):
    """The documents of a folder that `jaxlm prepare` made.

    max_document_tokens: documents of more tokens become several, cut there (for batches in which a document
      is a row; windows cut whatever comes). None: none is cut.
    """

    path: str
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_document_tokens is not None and self.max_document_tokens < 1:
            raise UserError(f"max_document_tokens = {self.max_document_tokens}: expected 1 token at least, or None")

    def describe(self) -> str:
        return f"{self.path}, shards" + (
            f", in pieces of {self.max_document_tokens:,} tokens" if self.max_document_tokens else ""
        )

    @property
    def folder(self) -> Path:
        """Where the shards are. Raises UserError with every place tried."""
        return find_file(Path(self.path) / SHARD_INDEX).parent

    def check(self) -> None:
        """Reads every byte once. Raises UserError for a shard that is not what was written."""
        folder, (records, _, _) = self.folder, read_index(self.folder)
        for record in records:
            if not record.is_intact(folder):
                raise UserError(
                    f"shard {record.name} of {folder} is damaged: its bytes are not those written. {REBUILD_HINT}"
                )

    def encode(self, tokenizer: Tokenizer, stats: ReadStats) -> Ragged:
        """The ids of each document, memory-mapped. Raises UserError for another tokenizer and for damaged files."""
        records, dtype, fingerprint = read_index(self.folder)
        if fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the shards in {self.folder} are ids of the tokenizer {fingerprint[:12]}, and this run has "
                f"{tokenizer.fingerprint[:12]}: use theirs (tokenizer=SavedTokenizer({self.path!r}, size)), or "
                "prepare them "
                "with `jaxlm prepare --tokenizer WORKDIR`"
            )
        parts, ends = zip(*(record.open(self.folder, dtype) for record in records), strict=True)
        before = np.cumsum([0, *(record.tokens for record in records)])
        offsets = np.concatenate([[0], *(end + first for end, first in zip(ends, before[:-1], strict=True))])
        flat: Any = parts[0] if len(parts) == 1 else ConcatArray(parts)
        column = Ragged(flat, offsets)
        stats.kept += len(column)
        if self.max_document_tokens is None:
            return column
        stats.split += int((column.lengths > self.max_document_tokens).sum())
        return column.split_long(self.max_document_tokens)

    def read(self, stats: ReadStats) -> Iterator[str]:
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        column = self.encode(tokenizer, stats)
        for first in range(0, len(column), TOKENIZE_BATCH_SIZE):
            yield from tokenizer.decode(
                [column[row].tolist() for row in range(first, min(first + TOKENIZE_BATCH_SIZE, len(column)))]
            )


def read_index(folder: Path) -> tuple[list[ShardRecord], np.dtype, str]:
    """The shards, the type of their ids and the fingerprint of their tokenizer. Raises UserError if it is damaged."""
    try:
        index = json.loads((folder / SHARD_INDEX).read_text(encoding="utf-8"))
        if index["version"] != SHARD_VERSION:
            raise UserError(
                f"{folder / SHARD_INDEX} has version {index['version']}, expected {SHARD_VERSION}. {REBUILD_HINT}"
            )
        records = [parse_shard_record(entry) for entry in index["shards"]]
        if not records or index["sums"] != total_counts(records):
            raise ValueError("its sums are not those of its shards")
        return records, np.dtype(index["dtype"]), str(index["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SHARD_INDEX} is damaged ({error}). {REBUILD_HINT}") from error


def write_index(folder: Path, records: list[ShardRecord], tokenizer: Tokenizer, source: str) -> dict[str, Any]:
    """Whole or not at all; the sums."""
    index: dict[str, Any] = {
        "version": SHARD_VERSION,
        "source": source,
        "tokenizer": tokenizer.fingerprint,
        "dtype": id_dtype(tokenizer).str,
    }
    index |= {"sums": total_counts(records), "shards": [asdict(record) for record in records]}
    write_with_checksum(folder / SHARD_INDEX, json.dumps(index, indent=1).encode())
    return index["sums"]


def read_source_name(folder: Path) -> str | None:
    """What the shards of a folder were made of; None where there is no index that tells."""
    try:
        return str(json.loads((folder / SHARD_INDEX).read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def total_counts(records: list[ShardRecord]) -> dict[str, int]:
    """Of all shards."""
    return {
        name: sum(getattr(record, name) for record in records) for name in ("documents", "tokens", "unknown", "bytes")
    }


def parse_shard_record(entry: dict[str, Any]) -> ShardRecord:
    """A shard's entry. Raises ValueError, KeyError or TypeError where it is none."""
    found = ShardRecord(
        **{field.name: entry[field.name] for field in fields(ShardRecord)} | {"crc32": tuple(entry["crc32"])}
    )
    numbers = (found.documents, found.tokens, found.unknown, found.bytes, *found.crc32)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"shard {found.name} has counts that are no whole numbers")
    return found


def id_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Two bytes an id where they suffice, else four."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def write_with_checksum(file: Path, content: bytes) -> int:
    """Write a file that appears at the end; the CRC-32 of its bytes."""
    write_atomic(file, content)
    return zlib.crc32(content)


def _crc32_of_file(file: Path) -> int:
    check = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            check = zlib.crc32(block, check)
    return check


NUM_SAMPLES, SAMPLE_LENGTH = 256, 4096
"""A column of more than `NUM_SAMPLES * SAMPLE_LENGTH` ids is looked at in so many places, a run of ids each:
few reads from a disk.
"""


def fingerprints(columns: Mapping[str, Ragged]) -> dict[str, dict[str, int | str]]:
    """Column -> rows, ids, and a digest of all lengths and of up to a million ids.

    Another data set, another order or another cut is noticed; one other id among more than a million may not be.
    """
    return {name: _fingerprint_column(column) for name, column in columns.items()}


def _fingerprint_column(column: Ragged) -> dict[str, int | str]:
    size = len(column.flat)
    at = np.arange(min(size, NUM_SAMPLES * SAMPLE_LENGTH))
    if size > len(at):
        at = (
            np.linspace(0, size - SAMPLE_LENGTH, NUM_SAMPLES).astype(np.int64)[:, None] + np.arange(SAMPLE_LENGTH)
        ).reshape(-1)
    digest = hashlib.sha256(np.ascontiguousarray(column.offsets, "<i8").tobytes())
    digest.update(np.ascontiguousarray(column.flat[at], "<i8").tobytes())
    return {"rows": len(column), "ids": int(column.offsets[-1] - column.offsets[0]), "digest": digest.hexdigest()[:16]}

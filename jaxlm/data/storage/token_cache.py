"""The cache of encoded corpora: a text becomes ids once, in a folder of memory-mapped columns.

columns.json    the fingerprint of text, tokenizer and recipe, and the records of the columns
NAME.ids        the ids of all rows of a column, one after the other
NAME.ends.npy   int64: where each row ends in them
"""

import contextlib
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np

from jaxlm.data.ragged import Columns, Ragged, concat_columns, memory_map
from jaxlm.data.tokenizers.base import TOKENIZE_BATCH_SIZE, Tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import create_folder, open_atomic, read_bounded, write_atomic
from jaxlm.json_files import read_json

COLUMNS_FILE = "columns.json"


class ColumnsIndex(TypedDict):
    """The content of `columns.json`."""

    fingerprint: str
    columns: list[dict]


def encode_pairs(pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, folder: Path | None = None) -> Columns:
    """Columns "source" and "target": the ids of every pair, without special ids; see `cached_columns`."""

    def encode(block: list[tuple[str, str]]) -> Columns:
        source, target = map(list, zip(*block, strict=True))
        rows = {"source": tokenizer.side("source").encode(source), "target": tokenizer.side("target").encode(target)}
        return {name: Ragged.from_rows(rows[name], id_dtype(tokenizer)) for name in rows}

    return cached_columns(pairs, encode, tokenizer.fingerprint, folder)


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer, folder: Path | None = None) -> Ragged:
    """The ids of every text, without special ids; see `cached_columns`."""

    def encode(block: list[str]) -> Columns:
        return {"target": Ragged.from_rows(tokenizer.encode(block), id_dtype(tokenizer))}

    return cached_columns(texts, encode, tokenizer.fingerprint, folder)["target"]


def cached_columns(
    rows: Iterable[Any],
    encode: Callable[[list[Any]], Columns],
    recipe: str,
    folder: Path | None = None,
    block_size: int | None = None,
) -> Columns:
    """The columns that `encode` makes of the rows (texts, pairs of texts, or frozen records), block by block.

    With a `folder` they are kept there and memory-mapped. A folder that was made of the same text by the same
    `recipe` (the tokenizer and all else that decides the ids) is opened if it is undamaged, and made again otherwise.
    It appears by a rename at the end, so an unfinished one is never read. Raises UserError without rows.
    """
    block_size = block_size or TOKENIZE_BATCH_SIZE
    if folder is None:
        return concat_columns(map(encode, _blocks(rows, block_size)))
    if (folder / COLUMNS_FILE).is_file():
        digest = _new_digest(recipe)
        for _ in _blocks(rows, block_size, digest):  # reading is ten times as fast as encoding
            pass
        if columns := _open_cached(folder, digest.hexdigest()):
            return columns
    digest = _new_digest(recipe)
    with create_folder(folder, replace=True) as partial:
        records = write_columns(partial, map(encode, _blocks(rows, block_size, digest)))
        index = {"fingerprint": digest.hexdigest(), "columns": [asdict(record) for record in records]}
        write_atomic(partial / COLUMNS_FILE, json.dumps(index, indent=1))
    return {record.name: record.open(folder) for record in records}


def _open_cached(folder: Path, fingerprint: str) -> Columns | None:
    """The columns of a folder with this fingerprint, or None if it has another one or is damaged."""
    try:
        index = read_json(folder / COLUMNS_FILE, ColumnsIndex)
        records = [StoredColumn.from_json(entry) for entry in index["columns"]]
        if index["fingerprint"] != fingerprint or not all(record.is_intact(folder) for record in records):
            return None
        return {record.name: record.open(folder) for record in records}
    except (OSError, UserError, ValueError, KeyError, TypeError, DamagedColumn):
        return None


def _blocks(rows: Iterable[Any], block_size: int, digest: "hashlib._Hash | None" = None) -> Iterator[list]:
    """The rows in lists, added to the digest. Raises UserError without rows."""
    stream, empty = iter(rows), True
    while block := list(islice(stream, block_size)):
        empty = False
        if digest is not None:
            for row in block:
                texts = row if isinstance(row, tuple) else (row if isinstance(row, str) else repr(row),)
                for text in texts:
                    update_digest(digest, text)
        yield block
    if empty:
        describe = getattr(rows, "describe", lambda: type(rows).__name__)
        raise UserError(f"the data set is empty: {describe()} gave no text; check its path, its columns and its filter")


def _new_digest(recipe: str) -> "hashlib._Hash":
    """A digest of the text itself, not of the names of its files."""
    return hashlib.sha256(f"columns 1 {recipe}\n".encode())


class DamagedColumn(Exception):
    """The files of a column are not those that were written."""


@dataclass(frozen=True)
class StoredColumn:
    """The record of a column that was written whole.

    Attributes:
      rows, ids: their numbers.
      dtype: of the ids, as NumPy writes it.
      crc32: checksums of the two files.
    """

    name: str
    rows: int
    ids: int
    dtype: str
    crc32: tuple[int, int]

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        """Raises ValueError, KeyError or TypeError if `entry` is not a record."""
        record = cls(**{field.name: entry[field.name] for field in fields(cls)} | {"crc32": tuple(entry["crc32"])})
        counts = [*record.crc32, *(getattr(record, field.name) for field in fields(cls) if field.type is int)]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"column {record.name} has counts that are not whole numbers")
        if not re.fullmatch(r"[\w-]+", record.name) or not re.fullmatch("[<>|]?[uif][1248]", record.dtype):
            raise ValueError(f"column {record.name!r:.40} with ids of the type {record.dtype!r:.40}")
        return record

    def files(self, folder: Path) -> tuple[Path, Path]:
        """The files of the ids and of the ends."""
        return folder / f"{self.name}.ids", folder / f"{self.name}.ends.npy"

    def open(self, folder: Path) -> Ragged:
        """The rows, memory-mapped. Raises DamagedColumn if the sizes or the ends do not fit this record."""
        ids_file, ends_file = self.files(folder)
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<i8", "fortran_order": False, "shape": (self.rows,)})
        header = buffer.getvalue()
        try:
            size = ids_file.stat().st_size
            content = read_bounded(ends_file, len(header) + 8 * self.rows)
        except (OSError, UserError) as error:
            raise DamagedColumn(f"{self.name} of {folder} cannot be read ({error})") from error
        expected = self.ids * np.dtype(self.dtype).itemsize
        if size != expected:
            raise DamagedColumn(
                f"{ids_file} has {size:,} bytes, expected {expected:,} for {self.ids:,} ids: it was cut off or changed"
            )
        fits = content.startswith(header) and len(content) == len(header) + 8 * self.rows
        ends = np.frombuffer(content, np.int64, offset=len(header)) if fits else np.zeros(0, np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        if not fits or offsets[-1] != self.ids or (np.diff(offsets) < 0).any():
            raise DamagedColumn(f"{ends_file} does not hold the ends of {self.rows:,} rows of {self.ids:,} ids")
        return memory_map(os.fspath(ids_file), self.dtype, offsets)

    def is_intact(self, folder: Path) -> bool:
        """True if both files have the bytes that were written. Reads them whole."""
        try:
            return tuple(crc32_of_file(file) for file in self.files(folder)) == self.crc32
        except OSError:
            return False


def write_columns(folder: Path, blocks: Iterable[Columns]) -> list[StoredColumn]:
    """Write columns block by block, so that only one block is in memory; the files appear when all are done."""
    files: dict[str, Any] = {}
    crc32: dict[str, int] = {}
    dtypes: dict[str, str] = {}
    lengths: dict[str, list[np.ndarray]] = {}
    with contextlib.ExitStack() as stack:
        for block in blocks:
            for name, column in block.items():
                if name not in files:
                    files[name] = stack.enter_context(open_atomic(folder / f"{name}.ids"))
                    crc32[name], dtypes[name], lengths[name] = 0, column.flat.dtype.str, []
                content = column.flat.tobytes()
                files[name].write(content)
                crc32[name] = zlib.crc32(content, crc32[name])
                lengths[name].append(column.lengths)
    records = []
    for name in files:
        ends, packed = np.cumsum(np.concatenate(lengths[name]), dtype=np.int64), io.BytesIO()
        np.save(packed, ends)
        write_atomic(folder / f"{name}.ends.npy", packed.getvalue())
        num_ids = int(ends[-1]) if len(ends) else 0
        checks = crc32[name], zlib.crc32(packed.getvalue())
        records.append(StoredColumn(name, len(ends), num_ids, dtypes[name], checks))
    return records


def id_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The unsigned integers that the tokenizer's ids are stored as: two bytes an id if they suffice, else four."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def update_digest(digest: Any, text: str) -> int:
    """Add a text and its length to a digest of texts; the text's bytes as UTF-8."""
    content = text.encode("utf-8", "surrogatepass")
    digest.update(len(content).to_bytes(8, "little") + content)
    return len(content)


def crc32_of_file(file: Path) -> int:
    """The checksum of a file's bytes."""
    crc32 = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc32 = zlib.crc32(block, crc32)
    return crc32


NUM_SAMPLES, SAMPLE_LENGTH = 256, 4096
"""A column of more than `NUM_SAMPLES * SAMPLE_LENGTH` ids is sampled in as many runs of ids: few reads from a disk."""


def fingerprints(columns: Mapping[str, Ragged]) -> dict[str, dict[str, int | str]]:
    """The identity of a training split: for each column its rows, its ids and a digest.

    The digest covers all lengths and up to a million ids: it shows another data set, another order or other rows;
    a single other id among more than a million may go unnoticed.
    """
    result: dict[str, dict[str, int | str]] = {}
    for name, column in columns.items():
        size = len(column.flat)
        sample = np.arange(min(size, NUM_SAMPLES * SAMPLE_LENGTH))
        if size > len(sample):
            starts = np.linspace(0, size - SAMPLE_LENGTH, NUM_SAMPLES).astype(np.int64)
            sample = (starts[:, None] + np.arange(SAMPLE_LENGTH)).reshape(-1)
        digest = hashlib.sha256(np.ascontiguousarray(column.offsets, "<i8").tobytes())
        digest.update(np.ascontiguousarray(column.flat[sample], "<i8").tobytes())
        ids = int(column.offsets[-1] - column.offsets[0])
        result[name] = {"rows": len(column), "ids": ids, "digest": digest.hexdigest()[:16]}
    return result

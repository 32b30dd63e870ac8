"""Columns of ids on disk: rows of different lengths, written once, checksummed and memory-mapped.

NAME.ids        the ids of all rows, one after the other
NAME.ends.npy   int64: where each row ends in them
"""

import contextlib
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxlm.data.ragged import Columns, Ragged, memory_map
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import open_atomic, read_bounded, write_atomic


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
        header = _ends_header(self.rows)
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
            return tuple(_crc32_of_file(file) for file in self.files(folder)) == self.crc32
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


def _ends_header(rows: int) -> bytes:
    """The header of the NumPy file of `rows` int64."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (rows,)})
    return header.getvalue()


def _crc32_of_file(file: Path) -> int:
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

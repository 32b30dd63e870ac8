"""Rows of different lengths in one flat array: in memory, or on disk and memory-mapped. Text becomes ids once.

Several arrays read as one: the files of a data set that is too big for one, or for memory.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class ConcatArray:
    """Several arrays of one dtype as one, for reading: `parts[a:b]` and `parts[indexes]`."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = tuple(arrays)
        self.dtype = self.arrays[0].dtype
        self._starts = np.cumsum([0, *map(len, self.arrays)])

    def __reduce__(self) -> tuple[Any, tuple]:
        """Memory-mapped files travel to a worker process as their names, not as their content."""
        files = [array.filename for array in self.arrays if isinstance(array, np.memmap) and array.filename is not None]
        if len(files) == len(self.arrays):
            return _memory_map_files, ([os.fspath(file) for file in files], self.dtype.str)
        return ConcatArray, (self.arrays,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.arrays).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, indices: Any) -> np.ndarray:
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self)))
        indices = np.asarray(indices)
        part = np.searchsorted(self._starts, indices, side="right") - 1
        found = np.empty(indices.shape, self.dtype)
        for index in np.unique(part).tolist():
            here = part == index
            found[here] = self.arrays[index][indices[here] - self._starts[index]]
        return found


def _memory_map_files(files: Sequence[str], dtype: str) -> ConcatArray:
    return ConcatArray([np.memmap(file, dtype, "r") for file in files])


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is `flat[offsets[i] : offsets[i + 1]]`; `offsets` has one entry more than there are rows.

    Ids that lie in several files are a `ConcatArray`, which is read like an array.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | np.ndarray], dtype: np.dtype | type = np.int32) -> "Ragged":
        """The rows, joined in memory."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = np.concatenate([np.asarray(row, dtype) for row in rows]) if rows else np.zeros(0, dtype)
        return cls(flat, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """The number of ids of every row, int64."""
        return np.diff(self.offsets)

    def split_long(self, max_length: int) -> "Ragged":
        """The same ids, every row cut into pieces of `longest` and a last one of what is left."""
        count = np.maximum(-(-self.lengths // max_length), 1)
        first = np.repeat(self.offsets[:-1], count) + max_length * concat_ranges(np.zeros(len(count), np.int64), count)
        return Ragged(self.flat, np.append(first, self.offsets[-1]))

    def gather(self, rows: np.ndarray, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `rows` one after the other, and how many each gave: at most its first `limit`."""
        first = self.offsets[rows]
        lengths = self.offsets[np.asarray(rows) + 1] - first
        if max_length is not None:
            lengths = np.minimum(lengths, max_length)
        return self.flat[concat_ranges(first, lengths)], lengths

    def __reduce__(self) -> tuple[Any, tuple]:
        """A memory-mapped store travels to a worker process as its file names, not as its content."""
        if isinstance(self.flat, np.memmap) and self.flat.filename is not None:
            where = os.fspath(self.flat.filename)
            return _memory_map, (where, self.flat.dtype.str, self.offsets)
        flat: Any = self.flat
        flat = flat if isinstance(flat, ConcatArray) else np.asarray(flat)
        return Ragged, (flat, np.asarray(self.offsets))


Columns = Mapping[str, Ragged]
"""A data set as named columns of ids; `jaxlm.data.batching.collate` has the table of their names."""


def concat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`first[0], first[0] + 1, ...` for `lengths[0]` numbers, then the same from `first[1]`, and so on."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(np.sum(lengths)))


def _memory_map(path: str, dtype: str, offsets: np.ndarray) -> Ragged:
    # An empty file cannot be mapped.
    flat = np.memmap(path, dtype, "r") if offsets[-1] else np.zeros(0, dtype)
    return Ragged(flat, offsets)

"""Rows of different lengths in one flat array, in memory or memory-mapped; a data set is several such columns."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class ConcatArray:
    """Several arrays of one dtype, read as one: `array[a:b]` and `array[indices]`. They are not copied."""

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
        array_of_index = np.searchsorted(self._starts, indices, side="right") - 1
        values = np.empty(indices.shape, self.dtype)
        for number in np.unique(array_of_index).tolist():
            mask = array_of_index == number
            values[mask] = self.arrays[number][indices[mask] - self._starts[number]]
        return values


def _memory_map_files(files: Sequence[str], dtype: str) -> ConcatArray:
    return ConcatArray([np.memmap(file, dtype, "r") for file in files])


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is `flat[offsets[i] : offsets[i + 1]]`; `flat` is a `ConcatArray` if the ids are in several files."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | np.ndarray], dtype: np.dtype | type = np.int32) -> "Ragged":
        """The rows, joined in memory."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = np.concatenate([np.asarray(row, dtype) for row in rows]) if rows else np.zeros(0, dtype)
        return cls(flat, offsets)

    @classmethod
    def concat(cls, columns: Sequence["Ragged"]) -> "Ragged":
        """The rows of several columns, whose ids stay where they are."""
        lengths = [np.zeros(1, np.int64), *(column.lengths for column in columns)]
        flat: Any = ConcatArray([column.flat for column in columns])
        return cls(flat, np.cumsum(np.concatenate(lengths)))

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
        """The same ids, with every row cut into pieces of `max_length` ids and a last one of the remainder."""
        count = np.maximum(-(-self.lengths // max_length), 1)
        piece = concat_ranges(np.zeros(len(count), np.int64), count)
        first = np.repeat(self.offsets[:-1], count) + max_length * piece
        return Ragged(self.flat, np.append(first, self.offsets[-1]))

    def truncate(self, lengths: np.ndarray) -> "Ragged":
        """The first `lengths[i]` ids of every row i, or all that it has."""
        lengths = np.minimum(self.lengths, lengths)
        if (lengths == self.lengths).all():
            return self
        return Ragged(self.flat[concat_ranges(self.offsets[:-1], lengths)], np.append(0, np.cumsum(lengths)))

    def gather(self, rows: np.ndarray, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `rows` one after the other, the first `max_length` of each, and the number from each row."""
        first = self.offsets[rows]
        lengths = self.offsets[np.asarray(rows) + 1] - first
        if max_length is not None:
            lengths = np.minimum(lengths, max_length)
        return self.flat[concat_ranges(first, lengths)], lengths

    def __reduce__(self) -> tuple[Any, tuple]:
        """A memory-mapped column travels to a worker process as its file name, not as its content."""
        if isinstance(self.flat, np.memmap) and self.flat.filename is not None:
            return memory_map, (os.fspath(self.flat.filename), self.flat.dtype.str, self.offsets)
        flat: Any = self.flat
        return Ragged, (flat if isinstance(flat, ConcatArray) else np.asarray(flat), np.asarray(self.offsets))


Columns = Mapping[str, Ragged]
"""A data set as named columns; `jaxlm.data.batching.collate` has the table of their names."""


def concat_columns(blocks: Iterable[Columns]) -> dict[str, Ragged]:
    """The columns of several blocks, joined in memory."""
    parts: dict[str, list[Ragged]] = {}
    for block in blocks:
        for name, column in block.items():
            parts.setdefault(name, []).append(column)
    joined = {name: Ragged.concat(columns) for name, columns in parts.items()}
    return {name: Ragged(np.asarray(column.flat), column.offsets) for name, column in joined.items()}


def concat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`lengths[0]` numbers from `starts[0]` on, then `lengths[1]` numbers from `starts[1]` on, and so on."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(np.sum(lengths)))


def first_nonzero(column: Ragged) -> np.ndarray:
    """The place of the first entry of each row that is not 0; the length of a row that has none."""
    place = np.flatnonzero(np.asarray(column.flat))
    index = np.searchsorted(place, column.offsets[:-1])  # of the first such entry from the start of a row on
    following = np.append(place, column.offsets[-1])[index]
    return np.minimum(following, column.offsets[1:]) - column.offsets[:-1]


def memory_map(path: str, dtype: str, offsets: np.ndarray) -> Ragged:
    """A column whose ids are a file."""
    flat = np.memmap(path, dtype, "r") if offsets[-1] else np.zeros(0, dtype)  # an empty file cannot be mapped
    return Ragged(flat, offsets)

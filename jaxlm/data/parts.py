"""Several arrays read as one: the files of a data set that is too big for one, or for memory."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np


class Parts:
    """Several arrays of one dtype as one, for reading: `parts[a:b]` and `parts[indexes]`."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = tuple(arrays)
        self.dtype = self.arrays[0].dtype
        self._starts = np.cumsum([0, *map(len, self.arrays)])

    def __reduce__(self) -> tuple[Any, tuple]:
        """Memory-mapped files travel to a worker process as their names, not as their content."""
        files = [array.filename for array in self.arrays if isinstance(array, np.memmap) and array.filename is not None]
        if len(files) == len(self.arrays):
            return _mapped, ([os.fspath(file) for file in files], self.dtype.str)
        return Parts, (self.arrays,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.arrays).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, at: Any) -> np.ndarray:
        if isinstance(at, slice):
            at = np.arange(*at.indices(len(self)))
        at = np.asarray(at)
        part = np.searchsorted(self._starts, at, side="right") - 1
        found = np.empty(at.shape, self.dtype)
        for index in np.unique(part).tolist():
            here = part == index
            found[here] = self.arrays[index][at[here] - self._starts[index]]
        return found


def _mapped(files: Sequence[str], dtype: str) -> Parts:
    return Parts([np.memmap(file, dtype, "r") for file in files])

"""Many documents as one long sequence of ids that is never built: memory-mapped ids stay on disk."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.ragged import Ragged
from jaxlm.data.vocabulary import EOS


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of a column one after the other, each with EOS at its end where `end`: `stream[indexes]` is int32."""

    column: Ragged
    end: bool = True

    def __len__(self) -> int:
        return int(self.column.offsets[-1]) + self.end * len(self.column)

    @cached_property
    def _ends(self) -> np.ndarray:
        """The place of each row's EOS."""
        return self.column.offsets[1:] + np.arange(len(self.column))

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        at = np.asarray(at)
        if not self.end:
            return self.column.flat[at].astype(np.int32)
        row = np.searchsorted(self._ends, at)
        ends = self._ends[row] == at
        found = np.full(at.shape, EOS, np.int32)
        found[~ends] = self.column.flat[(at - row)[~ends]]
        return found

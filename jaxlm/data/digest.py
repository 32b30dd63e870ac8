"""What a training split is known by, so that a run can tell that it goes on with what it began with."""

import hashlib
from collections.abc import Mapping

import numpy as np

from jaxlm.data.ragged import Ragged

PLACES, RUN = 256, 4096
"""A column of more than `PLACES * RUN` ids is looked at in so many places, a run of ids each: few reads from a disk."""


def digests(columns: Mapping[str, Ragged]) -> dict[str, dict[str, int | str]]:
    """Column -> rows, ids, and a digest of all lengths and of up to a million ids.

    Another data set, another order or another cut is noticed; one other id among more than a million may not be.
    """
    return {name: _digest(column) for name, column in columns.items()}


def _digest(column: Ragged) -> dict[str, int | str]:
    size = len(column.flat)
    at = np.arange(min(size, PLACES * RUN))
    if size > len(at):
        at = (np.linspace(0, size - RUN, PLACES).astype(np.int64)[:, None] + np.arange(RUN)).reshape(-1)
    digest = hashlib.sha256(np.ascontiguousarray(column.offsets, "<i8").tobytes())
    digest.update(np.ascontiguousarray(column.flat[at], "<i8").tobytes())
    return {"rows": len(column), "ids": int(column.offsets[-1] - column.offsets[0]), "digest": digest.hexdigest()[:16]}

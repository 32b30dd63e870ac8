"""Batches for evaluation and inference: every row once, longest first, few shapes."""

import math
import sys
from collections.abc import Iterator

import numpy as np

from jaxlm.data.batching.collate import TEXT_COLUMNS, collate
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.types import Batch


def eval_batches(
    columns: Columns,
    tokens: int = 8192,
    row_multiple: int = 8,
    divisor: int = 1,
    max_length: int | None = None,
    special: SpecialIds = OWN_SPECIAL_IDS,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row of the columns exactly once, longest first, in few shapes: (row_B, batch).

    `row_B` gives the place of each batch row in the columns, and -1 for a row that only fills the shape (an empty
    source, no valid target). `tokens` bounds the positions of the longer side; at least `row_multiple` rows
    are made. Rows longer than `max_length` (EOS included) are cut: see `count_too_long`.
    """
    longer = np.max([columns[name].lengths for name in TEXT_COLUMNS if name in columns], axis=0) + 1
    limit = max_length or int(longer.max(initial=1))
    ranked = np.argsort(-longer, kind="stable")
    row_multiple = math.lcm(row_multiple, divisor)
    while len(ranked):
        length = _round_up_length(min(int(longer[ranked[0]]), limit), limit if max_length else sys.maxsize)
        rows = max(tokens // length // row_multiple, 1) * row_multiple
        # A few rows take a smaller shape: 1, 2, 4, ... multiples.
        rows = min(rows, row_multiple << (math.ceil(len(ranked) / row_multiple) - 1).bit_length())
        now, ranked = ranked[:rows], ranked[rows:]
        row_B = np.concatenate([now, np.full(rows - len(now), -1)])
        yield row_B, collate_rows(columns, row_B, length, special)


def collate_rows(columns: Columns, row_B: np.ndarray, length: int, special: SpecialIds = OWN_SPECIAL_IDS) -> Batch:
    """The named rows of the columns in this order, then, where `row_B` is -1, rows of an empty source and no target."""
    now = row_B[row_B >= 0]
    batch = collate(columns, now, np.arange(len(now)), len(row_B), length, length, packed=False, special=special)
    for field, value in ((batch.source_BS, special.eos), (batch.source_valid_BS, True)):
        if isinstance(field, np.ndarray):
            field[len(now) :, 0] = value
    return batch


def queue_shapes(column: Ragged, tokens: int, max_length: int) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """For a queue, longest first: (rows of the column, their length with padding, places, rows that begin together).

    `places` times the length is `tokens` at most. A length that would not fill a quarter of its places takes in the
    next shorter one.
    """
    longer = np.minimum(column.lengths + 1, max_length)
    ranked = np.argsort(-longer, kind="stable")
    level = np.array([_round_up_length(int(size), max_length) for size in longer[ranked]])
    while len(ranked):
        length, count = int(level[0]), 0
        places = max(tokens // length // 8, 1) * 8
        while count < len(ranked) and count < places // 4:
            count = int((level >= level[count]).sum())
        rows, ranked, level = ranked[:count], ranked[count:], level[count:]
        if count <= places:
            places = min(places, 1 << (count - 1).bit_length())
            yield rows, length, places, places
        else:
            yield rows, length, places, places // 8


def count_too_long(columns: Columns, max_length: int) -> int:
    """The number of rows of which `eval_batches` would cut a side."""
    return int(
        np.sum(np.any([columns[name].lengths >= max_length for name in TEXT_COLUMNS if name in columns], axis=0))
    )


def _round_up_length(length: int, limit: int) -> int:
    """The length rounded up to a multiple of 8; above 64 the steps are about a quarter."""
    level = 8
    while level < length:
        level = max(level + 8, level * 5 // 4 // 8 * 8)
    return min(level, limit)

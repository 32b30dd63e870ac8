"""Batches for evaluation and inference: every row once, longest first, few shapes."""

import math
import sys
from collections.abc import Iterator

import numpy as np

from jaxlm import runtime
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

    `row_B` is the index of each batch row in the columns, -1 for a row that only fills the shape (an empty source,
    no valid target). `tokens` bounds the positions of the longer side, but a batch has `row_multiple` rows at least.
    Rows longer than `max_length` (EOS included) are cut.
    """
    longer = np.max([columns[name].lengths for name in TEXT_COLUMNS if name in columns], axis=0) + 1
    limit = max_length or int(longer.max(initial=1))
    ranked = np.argsort(-longer, kind="stable")
    row_multiple = math.lcm(row_multiple, divisor)
    while len(ranked):
        length = round_up_length(min(int(longer[ranked[0]]), limit), limit if max_length else sys.maxsize)
        rows = max(tokens // length // row_multiple, 1) * row_multiple
        rows = min(rows, round_up_size(len(ranked), row_multiple))  # the last rows take a smaller shape
        chosen, ranked = ranked[:rows], ranked[rows:]
        row_B = np.concatenate([chosen, np.full(rows - len(chosen), -1)])
        runtime.between_batches()
        yield row_B, collate_rows(columns, row_B, length, special)


def round_up_size(size: int, multiple: int = 8) -> int:
    """The first of 1, 2, 4, ... times `multiple` that is not below `size`, 1 or more: few shapes are compiled."""
    return multiple << (math.ceil(size / multiple) - 1).bit_length()


def collate_rows(columns: Columns, row_B: np.ndarray, length: int, special: SpecialIds = OWN_SPECIAL_IDS) -> Batch:
    """The rows `row_B` of the columns in this order; rows at the end that are -1 have an empty source and no target."""
    rows = row_B[row_B >= 0]
    batch = collate(columns, rows, np.arange(len(rows)), (len(row_B), length, length), packed=False, special=special)
    for field, value in ((batch.source_BS, special.eos), (batch.source_valid_BS, True)):
        if isinstance(field, np.ndarray):
            field[len(rows) :, 0] = value
    return batch


def queue_shapes(
    column: Ragged, tokens: int, max_length: int, fixed_slots: int | None = None
) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """The shapes of continuous batching, longest first: (rows, padded length, slots, rows admitted at once).

    Slots times length is at most `tokens`. A length that would fill less than a quarter of its slots is merged with
    the next shorter one; and shorter ones as long as all have at most 2 x `tokens` of padding: a shape costs a compiled
    search, which the padding of two batches does not outweigh. `fixed_slots`: a row's shapes depend on its length.
    """
    longer = np.minimum(column.lengths + 1, max_length)
    ranked = np.argsort(-longer, kind="stable")
    level = np.array([round_up_length(int(size), max_length) for size in longer[ranked]])
    while len(ranked):
        length, count = int(level[0]), 0
        if fixed_slots:
            rows, ranked, level = ranked[level == length], ranked[level < length], level[level < length]
            yield rows, length, fixed_slots, 1
            continue
        slots = max(tokens // length // 8, 1) * 8
        while count < len(ranked):
            longer_count = int((level >= level[count]).sum())
            if count >= slots // 4 and (length - level[:longer_count]).sum() > 2 * tokens:
                break
            count = longer_count
        rows, ranked, level = ranked[:count], ranked[count:], level[count:]
        if count <= slots:
            slots = min(slots, round_up_size(count, 1))
            yield rows, length, slots, slots
        else:
            yield rows, length, slots, slots // 8


def round_up_length(length: int, limit: int) -> int:
    """The length rounded up to a multiple of 8, above 64 in steps of about a quarter; at most `limit`."""
    level = 8
    while level < length:
        level = max(level + 8, level * 5 // 4 // 8 * 8)
    return min(level, limit)

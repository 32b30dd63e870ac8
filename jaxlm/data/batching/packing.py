"""Packing: several examples in one row, kept apart by segment numbers."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.batching.plan import Bucket, PlannedBatches, check_row_count, select_examples
from jaxlm.data.batching.shuffle import permutation
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds


@dataclass(frozen=True)
class Packing:
    """Rows that hold several examples each, with source and target in the same row.

    The seed decides once which examples share a row; every epoch shuffles the rows.

    Attributes:
      length, source_length: positions of a row, and of its sources if they are much longer; None: `length`.
      tokens, row_multiple: a batch has `tokens // length` rows, rounded down to a multiple of `row_multiple`.
      too_long: "drop" or "truncate" the examples that are longer than a row.
    """

    length: int = 256
    source_length: int | None = None
    tokens: int = 8192
    row_multiple: int = 8
    too_long: Literal["drop", "truncate"] = "drop"

    def batches(
        self, columns: Columns, seed: int = 0, divisor: int = 1, *, special: SpecialIds = OWN_SPECIAL_IDS
    ) -> PlannedBatches:
        """Batches whose rows are multiples of `divisor` too.

        Raises UserError if no example is short enough, or if `tokens` cannot fill `row_multiple` rows.
        """
        capacity = {"source": self.source_length or self.length, "target": self.length}
        selected = select_examples(columns, capacity, self.too_long)
        multiple = math.lcm(self.row_multiple, divisor)
        side = "target" if "target" in columns else "source"
        rows = self.tokens // capacity[side] // multiple * multiple
        check_row_count(rows, multiple, self.tokens, capacity[side])
        bins = pack(selected.source, selected.target, capacity["source"], capacity["target"], seed)
        bins = Ragged(selected.examples[bins.flat], bins.offsets)
        source, target = (capacity[name] if name in columns else 0 for name in capacity)
        return PlannedBatches(columns, (Bucket(source, target, rows, bins),), selected, seed, True, special)


MAX_FAILED_FITS = 16
"""A bin that could not take an example this often is closed: 1M examples pack in a second, 0.2 % less full."""


def pack(source: np.ndarray, target: np.ndarray, source_capacity: int, target_capacity: int, seed: int) -> Ragged:
    """Bins of examples that fit the capacities of both sides together; every example is in exactly one bin.

    Best fit, in an order shuffled by the seed (with two capacities this fills better than the longest first): an
    example goes into the fullest open bin that takes it. A side that is absent has length 0 everywhere.
    """
    order = permutation(len(source), seed, 0)
    by_target = bool(np.any(target))  # side a sorts the bins into stacks: the targets, if there are any
    length_a, length_b = (target, source) if by_target else (source, target)
    capacity_a, capacity_b = (target_capacity, source_capacity) if by_target else (source_capacity, target_capacity)
    # stacks[room] are the open bins that have `room` positions left on side a; bit `room` of nonempty is set if
    # there are any, so that the fullest bin for an example of length a is the lowest bit from a on.
    stacks: list[list[int]] = [[] for _ in range(capacity_a + 1)]
    nonempty = 0
    left_b: list[int] = []  # of each bin, the room on side b
    failed: list[int] = []  # of each bin, how often it had room on side a but not on side b
    bin_of_example: list[int] = []  # in shuffled order
    for a, b in zip(length_a[order].tolist(), length_b[order].tolist(), strict=True):
        candidates, best = nonempty >> a << a, -1
        while candidates:
            lowest_bit = candidates & -candidates
            room = lowest_bit.bit_length() - 1
            bin_ = stacks[room][-1]
            fits = left_b[bin_] >= b
            failed[bin_] += not fits
            if fits or failed[bin_] == MAX_FAILED_FITS:
                stacks[room].pop()
                nonempty ^= 0 if stacks[room] else lowest_bit
            if fits:
                best = bin_
                break
            candidates ^= lowest_bit
        if best < 0:
            best, room = len(left_b), capacity_a
            left_b.append(capacity_b)
            failed.append(0)
        bin_of_example.append(best)
        left_b[best] -= b
        if room > a:  # a bin that is full on side a stays closed
            stacks[room - a].append(best)
            nonempty |= 1 << (room - a)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bin_of_example))])
    return Ragged(order[np.argsort(bin_of_example, kind="stable")], offsets)

"""Bucketing: batches of examples of similar length. Packing: several examples in one row, kept apart by segments."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.batching.batches import Bucket, PlannedBatches, check_row_count, effective_length, select_examples
from jaxlm.data.batching.collate import OTHER
from jaxlm.data.batching.shuffle import permutation
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError


@dataclass(frozen=True)
class Buckets:
    """Every example goes into the smallest bucket that holds its source and its target.

    Attributes:
      tokens, row_multiple: a batch has `tokens // target length` rows, rounded down to a multiple of `row_multiple`,
        but at most `2 * tokens` source positions. Without targets the source length counts.
      max_shapes, lengths: `lengths` of the buckets, the same for source and target; None: at most `max_shapes` shapes
        (source length, target length), fitted to the data.
      max_length, too_long: "drop" or "truncate" the examples that are longer than `max_length`.
    """

    tokens: int = 8192
    row_multiple: int = 8
    max_shapes: int = 10
    lengths: tuple[int, ...] | None = None
    max_length: int = 256
    too_long: Literal["drop", "truncate"] = "drop"

    def batches(
        self, columns: Columns, seed: int = 0, divisor: int = 1, *, special: SpecialIds = OWN_SPECIAL_IDS
    ) -> PlannedBatches:
        """Batches whose rows are multiples of `divisor` too. Raises UserError if no example or too few rows fit."""
        limit = min(self.max_length, max(self.lengths)) if self.lengths else self.max_length
        selected = select_examples(columns, {"source": limit, "target": limit}, self.too_long)
        multiple = math.lcm(self.row_multiple, divisor)
        if self.lengths:
            shapes = [(n * ("source" in columns), n * ("target" in columns)) for n in sorted(self.lengths)]
        else:
            shapes = fit_shapes(
                selected.source, selected.target, self.max_shapes, lambda s, t: self._rows_per_batch(s, t, multiple)
            )
        shapes = [(min(s, limit), min(t, limit)) for s, t in shapes]
        bucket_of_example = np.zeros(len(selected.examples), np.int64)
        for index, (s, t) in reversed(list(enumerate(shapes))):  # smaller shapes come last and win
            bucket_of_example[(selected.source <= s) & (selected.target <= t)] = index
        buckets = []
        for index, (s, t) in enumerate(shapes):
            examples = selected.examples[bucket_of_example == index]
            if len(examples):
                rows = int(self._rows_per_batch(s, t, multiple))
                check_row_count(rows, multiple, self.tokens, int(effective_length(s, t)))
                buckets.append(Bucket(s, t, rows, Ragged(examples, np.arange(len(examples) + 1))))
        return PlannedBatches(columns, tuple(buckets), selected, seed, False, special)

    def _rows_per_batch(self, source: np.ndarray | int, target: np.ndarray | int, row_multiple: int) -> np.ndarray:
        return self.tokens // effective_length(source, target) // row_multiple * row_multiple


TARGET_COST = 2.0
"""A target position costs about two source positions: attention to both sides, and the softmax."""


def fit_shapes(
    source: np.ndarray,
    target: np.ndarray,
    max_shapes: int,
    rows_per_batch: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> list[tuple[int, int]]:
    """At most `max_shapes` pairs (source length, target length) that hold all examples with little padding.

    Agglomerative: starts from the cells of a fine grid of lengths and merges the two shapes whose union adds the
    least padding until few enough are left. If the data allows it, no shape has fewer examples than
    `rows_per_batch(source, target)`, since a batch would show an example twice. Sorted by cost, the dearest last.
    On Multi30k ten shapes pad 8 % of the targets; one length for both sides pads 14 %.
    """
    longest = int(max(source.max(), target.max()))
    longest += longest % 2
    lengths = [0]  # even ones that grow by 2 and later by 15 %
    while lengths[-1] < longest:
        lengths.append(min(max(lengths[-1] + 2, int(lengths[-1] * 1.15) // 2 * 2), longest))
    grid = np.array(lengths)
    cells = np.stack([grid[np.searchsorted(grid, side)] for side in (source, target)], 1)
    # s, t: the lengths of each of the shapes, n: its number of examples.
    cells, n = np.unique(cells, axis=0, return_counts=True)
    s, t = cells.T
    while len(n) > 1:
        too_few = n < rows_per_batch(s, t)
        if len(n) <= max_shapes and not too_few.any():
            break
        # (shapes, shapes): the lengths of the union of two shapes, and the positions that merging them adds.
        union_s, union_t = np.maximum(s[:, None], s), np.maximum(t[:, None], t)
        cost = n * (s + TARGET_COST * t)
        added = (n[:, None] + n) * (union_s + TARGET_COST * union_t) - cost[:, None] - cost
        allowed = ~np.eye(len(n), dtype=bool)
        if len(n) <= max_shapes:
            allowed &= too_few[:, None] | too_few  # merge only for the sake of a shape with too few examples
        i, j = np.unravel_index(np.argmin(np.where(allowed, added, np.inf)), added.shape)
        s, t, n = s.copy(), t.copy(), n.copy()
        s[i], t[i], n[i] = union_s[i, j], union_t[i, j], n[i] + n[j]
        s, t, n = (np.delete(x, j) for x in (s, t, n))
    merged = zip(s.tolist(), t.tolist(), strict=True)
    return sorted(merged, key=lambda shape: (shape[0] + TARGET_COST * shape[1], shape))


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
        """Batches whose rows are multiples of `divisor` too. Raises UserError if no example or too few rows fit."""
        if OTHER + "target" in columns:
            raise UserError("pairs of answers cannot share a row with others: choose batching=Buckets(...)")
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

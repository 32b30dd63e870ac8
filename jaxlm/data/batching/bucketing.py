"""Bucketing: batches of examples of similar length, in the shapes that need the least padding."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.batching.plan import Bucket, PlannedBatches, check_row_count, effective_length, select_examples
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds


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
        """Batches whose rows are multiples of `divisor` too.

        Raises UserError if no example is short enough, or if the longest bucket cannot fill `row_multiple` rows.
        """
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
    grid = _length_grid(int(max(source.max(), target.max())))
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


def _length_grid(longest: int) -> np.ndarray:
    """0, then even lengths up to the longest that grow by 2 and later by 15 %."""
    longest += longest % 2
    lengths = [0]
    while lengths[-1] < longest:
        lengths.append(min(max(lengths[-1] + 2, int(lengths[-1] * 1.15) // 2 * 2), longest))
    return np.array(lengths)

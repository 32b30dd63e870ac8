"""Batches of examples of like length: buckets, and the shapes that waste least padding."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.batching.plan import (
    BatchPlan,
    Bucket,
    Columns,
    _check_row_count,
    _effective_length,
    _select_examples,
    _text_columns,
)
from jaxlm.data.ragged import Ragged


@dataclass(frozen=True)
class Buckets:
    """Every example goes into the smallest bucket that holds its source and its target.

    A batch has `tokens // target length` rows, rounded down to `row_multiple` (and to the plan's divisor), and no more
    than hold `2 * tokens` source positions. Where there is no target the source is counted. Without `lengths`, at most
    `max_shapes` shapes (source length, target length) are fitted to the data; with them, both sides get one length.
    """

    tokens: int = 8192
    row_multiple: int = 8
    max_shapes: int = 10
    lengths: tuple[int, ...] | None = None
    max_length: int = 256
    too_long: Literal["drop", "truncate"] = "drop"

    def plan(self, columns: Columns, seed: int = 0, divisor: int = 1) -> BatchPlan:
        """Raises UserError where no example is short enough, or the longest bucket cannot fill `row_multiple` rows."""
        limit = min(self.max_length, max(self.lengths)) if self.lengths else self.max_length
        columns = _text_columns(columns)
        kept = _select_examples(columns, {name: limit for name in columns}, self.too_long)
        source, target = kept.source, kept.target
        multiple = math.lcm(self.row_multiple, divisor)
        if self.lengths:
            shapes = [(n * ("source" in columns), n * ("target" in columns)) for n in sorted(self.lengths)]
        else:
            shapes = fit_shapes(source, target, self.max_shapes, lambda s, t: self._rows_per_batch(s, t, multiple))
        shapes = [(min(s, limit), min(t, limit)) for s, t in shapes]
        home = np.zeros(len(source), np.int64)
        for index, (s, t) in reversed(list(enumerate(shapes))):
            home[(source <= s) & (target <= t)] = index
        buckets = []
        for index, (s, t) in enumerate(shapes):
            examples = kept.examples[home == index]
            if len(examples):
                rows = int(self._rows_per_batch(s, t, multiple))
                _check_row_count(rows, multiple, self.tokens, int(_effective_length(s, t)))
                buckets.append(Bucket(s, t, rows, Ragged(examples, np.arange(len(examples) + 1))))
        return BatchPlan(tuple(buckets), seed, False, kept.token_counts, kept.dropped, kept.truncated)

    def _rows_per_batch(self, source: np.ndarray | int, target: np.ndarray | int, row_multiple: int) -> np.ndarray:
        return self.tokens // _effective_length(source, target) // row_multiple * row_multiple


TARGET_COST = 2.0
"""A target position costs about two source positions: attention to both sides, and the softmax."""


def fit_shapes(
    source: np.ndarray,
    target: np.ndarray,
    max_shapes: int,
    rows_per_batch: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> list[tuple[int, int]]:
    """At most `max_shapes` pairs (source length, target length) that hold all examples with little padding,
    dearest last.

    Starts from a fine lattice and merges, again and again, the two shapes whose union pads least. Where the data
    allows it no shape has fewer examples than `rows_per_batch(source, target)`: a batch would show an example twice.
    On Multi30k ten shapes pad 8 % of the targets, where one length for both sides pads 14 %.
    """
    lattice = _length_grid(int(max(source.max(), target.max())))
    cells = np.stack([lattice[np.searchsorted(lattice, side)] for side in (source, target)], 1)
    cells, count = np.unique(cells, axis=0, return_counts=True)
    s, t, n = cells[:, 0], cells[:, 1], count
    while len(n) > 1:
        few = n < rows_per_batch(s, t)
        if len(n) <= max_shapes and not few.any():
            break
        wide_s, wide_t = np.maximum(s[:, None], s), np.maximum(t[:, None], t)
        own = n * (s + TARGET_COST * t)
        added = (n[:, None] + n) * (wide_s + TARGET_COST * wide_t) - own[:, None] - own
        allowed = ~np.eye(len(n), dtype=bool)
        if len(n) <= max_shapes:
            allowed &= few[:, None] | few
        i, j = np.unravel_index(np.argmin(np.where(allowed, added, np.inf)), added.shape)
        s, t, n = s.copy(), t.copy(), n.copy()
        s[i], t[i], n[i] = wide_s[i, j], wide_t[i, j], n[i] + n[j]
        s, t, n = (np.delete(x, j) for x in (s, t, n))
    merged = zip(s.tolist(), t.tolist(), strict=True)
    return sorted(merged, key=lambda shape: (shape[0] + TARGET_COST * shape[1], shape))


def _length_grid(longest: int) -> np.ndarray:
    """0, then even lengths that grow by 2 and later by 15 %, up to the longest."""
    lengths, longest = [0], longest + longest % 2
    while lengths[-1] < longest:
        lengths.append(min(max(lengths[-1] + 2, int(lengths[-1] * 1.15) // 2 * 2), longest))
    return np.array(lengths)

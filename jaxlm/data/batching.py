"""Which examples share a batch, and in which shape: buckets of near lengths, or rows packed with several examples.

Lengths here count EOS: a source of n ids takes n + 1 positions, and so does a target (BOS + ids is read, ids + EOS is
said). Everything is decided from the lengths alone, in numpy, before the first batch is made.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from jaxlm.data.order import Order, permutation
from jaxlm.data.ragged import Ragged
from jaxlm.errors import UserError

Columns = Mapping[str, Ragged]
"""Columns "source" and "target", or one of them alone, whose lengths count; `jaxlm.data.collate` has the others."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """A shape and what goes into it: `bins[i]` are the examples of item i, one alone or several packed in a row."""

    source: int
    target: int
    rows: int
    bins: Ragged


@dataclass(frozen=True, eq=False)
class Plan:
    """What every batch will hold. `order[k]` says which items of which bucket batch k takes."""

    buckets: tuple[Bucket, ...]
    seed: int
    packed: bool
    real: dict[str, int]
    """Tokens of an epoch by column, EOS included."""
    dropped: int
    truncated: int

    @cached_property
    def order(self) -> Order:
        return Order([len(b.bins) for b in self.buckets], [b.rows for b in self.buckets], self.seed)

    @property
    def examples(self) -> int:
        """The examples of an epoch."""
        return sum(len(b.bins.flat) for b in self.buckets)

    @property
    def positions(self) -> dict[str, int]:
        """Positions of an epoch by column, padding included."""
        return {name: sum(len(b.bins) * getattr(b, name) for b in self.buckets) for name in self.real}

    def padding(self) -> dict[str, float]:
        """The share of positions that are padding: "source", "target" and "both"."""
        positions = self.positions
        share = {name: 1 - self.real[name] / positions[name] for name in self.real}
        return share | {"both": 1 - sum(self.real.values()) / sum(positions.values())}

    def statistics(self) -> dict[str, float]:
        """Numbers for a log. `tokens` are real ones a batch, of the target where there is one; `positions` padded."""
        side = "target" if "target" in self.real else "source"
        per_epoch = self.order.per_epoch
        return {
            "examples": self.examples,
            "dropped": self.dropped,
            "truncated": self.truncated,
            "shapes": len({(b.source, b.target, b.rows) for b in self.buckets}),
            "batches_per_epoch": per_epoch,
            "tokens": self.real[side] / per_epoch,
            "positions": self.positions[side] / per_epoch,
        } | {f"padding_{name}": share for name, share in self.padding().items()}


@dataclass(frozen=True)
class Buckets:
    """Every example goes into the smallest bucket that holds its source and its target.

    A batch has `tokens // target length` rows, rounded down to `multiple` (and to the plan's divisor), and no more
    than hold `2 * tokens` source positions. Where there is no target the source is counted. Without `lengths`, at most
    `shapes` shapes (source length, target length) are fitted to the data; with them, both sides get one length.
    """

    tokens: int = 8192
    multiple: int = 8
    shapes: int = 10
    lengths: tuple[int, ...] | None = None
    max_length: int = 256
    long: Literal["drop", "truncate"] = "drop"

    def plan(self, columns: Columns, seed: int = 0, divisor: int = 1) -> Plan:
        """Raises UserError where no example is short enough, or the longest bucket cannot fill `multiple` rows."""
        limit = min(self.max_length, max(self.lengths)) if self.lengths else self.max_length
        columns = _texts(columns)
        kept = _kept(columns, {name: limit for name in columns}, self.long)
        source, target = kept.source, kept.target
        multiple = math.lcm(self.multiple, divisor)
        if self.lengths:
            shapes = [(n * ("source" in columns), n * ("target" in columns)) for n in sorted(self.lengths)]
        else:
            shapes = fit_shapes(source, target, self.shapes, lambda s, t: self._rows(s, t, multiple))
        shapes = [(min(s, limit), min(t, limit)) for s, t in shapes]
        home = np.zeros(len(source), np.int64)
        for index, (s, t) in reversed(list(enumerate(shapes))):
            home[(source <= s) & (target <= t)] = index
        buckets = []
        for index, (s, t) in enumerate(shapes):
            examples = kept.examples[home == index]
            if len(examples):
                rows = int(self._rows(s, t, multiple))
                _check_rows(rows, multiple, self.tokens, int(_counted(s, t)))
                buckets.append(Bucket(s, t, rows, Ragged(examples, np.arange(len(examples) + 1))))
        return Plan(tuple(buckets), seed, False, kept.real, kept.dropped, kept.truncated)

    def _rows(self, source: np.ndarray | int, target: np.ndarray | int, multiple: int) -> np.ndarray:
        return self.tokens // _counted(source, target) // multiple * multiple


@dataclass(frozen=True)
class Packing:
    """Rows of `length` positions that hold several examples each, told apart by segment numbers.

    Source and target of an example lie in the same row. Which examples share a row is decided once, from the seed;
    every epoch shuffles the rows anew. `source_length` (default: `length`) suits sources much longer than targets.
    """

    length: int = 256
    source_length: int | None = None
    tokens: int = 8192
    multiple: int = 8
    long: Literal["drop", "truncate"] = "drop"

    def plan(self, columns: Columns, seed: int = 0, divisor: int = 1) -> Plan:
        """Raises UserError where no example is short enough, or `tokens` cannot fill `multiple` rows."""
        columns, room = _texts(columns), {"source": self.source_length or self.length, "target": self.length}
        kept = _kept(columns, room, self.long)
        multiple = math.lcm(self.multiple, divisor)
        side = "target" if "target" in columns else "source"
        rows = self.tokens // room[side] // multiple * multiple
        _check_rows(rows, multiple, self.tokens, room[side])
        bins = pack(kept.source, kept.target, room["source"], room["target"], seed)
        bins = Ragged(kept.examples[bins.flat], bins.offsets)
        source, target = (room[name] if name in columns else 0 for name in room)
        bucket = Bucket(source, target, rows, bins)
        return Plan((bucket,), seed, True, kept.real, kept.dropped, kept.truncated)


@dataclass(frozen=True, eq=False)
class _Kept:
    """The examples that take part, and their lengths (EOS included; 0 where there is no such column)."""

    examples: np.ndarray
    source: np.ndarray
    target: np.ndarray
    real: dict[str, int]
    dropped: int
    truncated: int


def _texts(columns: Columns) -> Columns:
    return {name: column for name, column in columns.items() if name in ("source", "target")}


def _kept(columns: Columns, limit: dict[str, int], long: str) -> _Kept:
    count = len(next(iter(columns.values())))
    if not count:
        raise UserError("the data set is empty: there is nothing to make batches of; check its path and its filter")
    length = {name: column.lengths + 1 for name, column in columns.items()}
    fits = np.all([length[name] <= limit[name] for name in columns], axis=0)
    late = int(np.sum(~fits))
    if long == "drop":
        if late == count:
            shortest = int(np.min(np.max(list(length.values()), axis=0)))
            raise UserError(
                f"none of the {count} examples is within the maximum length of {max(limit[name] for name in columns)} "
                f"tokens (EOS included): the shortest needs {shortest}; raise the maximum length, or truncate long ones"
            )
        examples = np.flatnonzero(fits)
    else:
        examples = np.arange(count)
    length = {name: np.minimum(length[name], limit[name])[examples] for name in columns}
    nothing = np.zeros(len(examples), np.int64)
    real = {name: int(np.sum(length[name])) for name in columns}
    dropped, truncated = (late, 0) if long == "drop" else (0, late)
    return _Kept(examples, length.get("source", nothing), length.get("target", nothing), real, dropped, truncated)


def _counted(source: np.ndarray | int, target: np.ndarray | int) -> np.ndarray:
    """The length that a row counts for: its target, or half its source, lest short targets make batches too large."""
    return np.where(np.equal(target, 0), source, np.maximum(target, -(-np.asarray(source) // 2)))


def _check_rows(rows: int, multiple: int, tokens: int, length: int) -> None:
    if rows < 1:
        raise UserError(
            f"a batch of {tokens} tokens holds {tokens // length} rows of length {length}, but rows come in "
            f"multiples of {multiple} (row multiple, gradient accumulation and devices): "
            f"raise tokens to {multiple * length} or lower the maximum length to {max(tokens // multiple, 1)}"
        )


TARGET_COST = 2.0
"""A target position costs about two source positions: attention to both sides, and the softmax."""


def fit_shapes(
    source: np.ndarray, target: np.ndarray, shapes: int, rows_of: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[tuple[int, int]]:
    """At most `shapes` pairs (source length, target length) that hold all examples with little padding, dearest last.

    Starts from a fine lattice and merges, again and again, the two shapes whose union pads least. Where the data
    allows it no shape has fewer examples than `rows_of(source, target)`: a batch would show an example twice.
    On Multi30k ten shapes pad 8 % of the targets, where one length for both sides pads 14 %.
    """
    lattice = _lattice(int(max(source.max(), target.max())))
    cells = np.stack([lattice[np.searchsorted(lattice, side)] for side in (source, target)], 1)
    cells, count = np.unique(cells, axis=0, return_counts=True)
    s, t, n = cells[:, 0], cells[:, 1], count
    while len(n) > 1:
        few = n < rows_of(s, t)
        if len(n) <= shapes and not few.any():
            break
        wide_s, wide_t = np.maximum(s[:, None], s), np.maximum(t[:, None], t)
        own = n * (s + TARGET_COST * t)
        added = (n[:, None] + n) * (wide_s + TARGET_COST * wide_t) - own[:, None] - own
        allowed = ~np.eye(len(n), dtype=bool)
        if len(n) <= shapes:
            allowed &= few[:, None] | few
        i, j = np.unravel_index(np.argmin(np.where(allowed, added, np.inf)), added.shape)
        s, t, n = s.copy(), t.copy(), n.copy()
        s[i], t[i], n[i] = wide_s[i, j], wide_t[i, j], n[i] + n[j]
        s, t, n = (np.delete(x, j) for x in (s, t, n))
    merged = zip(s.tolist(), t.tolist(), strict=True)
    return sorted(merged, key=lambda shape: (shape[0] + TARGET_COST * shape[1], shape))


def _lattice(longest: int) -> np.ndarray:
    """0, then even lengths that grow by 2 and later by 15 %, up to the longest."""
    lengths, longest = [0], longest + longest % 2
    while lengths[-1] < longest:
        lengths.append(min(max(lengths[-1] + 2, int(lengths[-1] * 1.15) // 2 * 2), longest))
    return np.array(lengths)


PATIENCE = 16
"""A bin that could not take an example this often is closed: 1M examples pack in a second, 0.2 % less full."""


def pack(source: np.ndarray, target: np.ndarray, source_room: int, target_room: int, seed: int) -> Ragged:
    """Bins of examples whose sources and targets fit the rooms together; every example is in exactly one bin.

    Best fit, in an order shuffled by the seed (with two rooms this fills better than the longest first): an example
    goes into the fullest open bin that takes it. Open bins are stacked by the target room that they have left, and
    `mask` has a bit for every stack that is not empty. A side that is absent has length 0 everywhere.
    """
    order = permutation(len(source), seed, 0)
    by_target = bool(np.any(target))  # else the sources choose the stack
    first, second = (target, source) if by_target else (source, target)
    room_a, room_b = (target_room, source_room) if by_target else (source_room, target_room)
    stacks: list[list[int]] = [[] for _ in range(room_a + 1)]
    left: list[int] = []
    failed: list[int] = []
    chosen: list[int] = []
    mask = 0
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        candidates, found = mask >> a << a, -1
        while candidates:
            bit = candidates & -candidates
            room = bit.bit_length() - 1
            bin_ = stacks[room][-1]
            fits = left[bin_] >= b
            failed[bin_] += not fits
            if fits or failed[bin_] == PATIENCE:
                stacks[room].pop()
                mask ^= 0 if stacks[room] else bit
            if fits:
                found = bin_
                break
            candidates ^= bit
        if found < 0:
            found, room = len(left), room_a
            left.append(room_b)
            failed.append(0)
        chosen.append(found)
        left[found] -= b
        if room > a:
            stacks[room - a].append(found)
            mask |= 1 << (room - a)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(chosen))])
    return Ragged(order[np.argsort(chosen, kind="stable")], offsets)

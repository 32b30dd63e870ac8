"""Which examples share a batch, and in which shape: buckets of near lengths, or rows packed with several examples.

Lengths here count EOS: a source of n ids takes n + 1 positions, and so does a target (BOS + ids is read, ids + EOS is
said). Everything is decided from the lengths alone, in numpy, before the first batch is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching.shuffle import EpochOrder
from jaxlm.data.ragged import Ragged
from jaxlm.errors import UserError

Columns = Mapping[str, Ragged]
"""Columns "source" and "target", or one of them alone, whose lengths count; `jaxlm.data.batching.collate` has
the others.
"""


@dataclass(frozen=True, eq=False)
class Bucket:
    """A shape and what goes into it: `bins[i]` are the examples of item i, one alone or several packed in a row."""

    source: int
    target: int
    rows: int
    bins: Ragged


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """What every batch will hold. `order[k]` says which items of which bucket batch k takes."""

    buckets: tuple[Bucket, ...]
    seed: int
    packed: bool
    token_counts: dict[str, int]
    """Tokens of an epoch by column, EOS included."""
    dropped: int
    truncated: int

    @cached_property
    def epoch_order(self) -> EpochOrder:
        return EpochOrder([len(b.bins) for b in self.buckets], [b.rows for b in self.buckets], self.seed)

    @property
    def num_examples(self) -> int:
        """The examples of an epoch."""
        return sum(len(b.bins.flat) for b in self.buckets)

    @property
    def position_counts(self) -> dict[str, int]:
        """Positions of an epoch by column, padding included."""
        return {name: sum(len(b.bins) * getattr(b, name) for b in self.buckets) for name in self.token_counts}

    def padding_fractions(self) -> dict[str, float]:
        """The share of positions that are padding: "source", "target" and "both"."""
        positions = self.position_counts
        share = {name: 1 - self.token_counts[name] / positions[name] for name in self.token_counts}
        return share | {"both": 1 - sum(self.token_counts.values()) / sum(positions.values())}

    def statistics(self) -> dict[str, float]:
        """Numbers for a log. `tokens` are real ones a batch, of the target where there is one; `positions` padded."""
        side = "target" if "target" in self.token_counts else "source"
        per_epoch = self.epoch_order.batches_per_epoch
        return {
            "examples": self.num_examples,
            "dropped": self.dropped,
            "truncated": self.truncated,
            "shapes": len({(b.source, b.target, b.rows) for b in self.buckets}),
            "batches_per_epoch": per_epoch,
            "tokens": self.token_counts[side] / per_epoch,
            "positions": self.position_counts[side] / per_epoch,
        } | {f"padding_{name}": share for name, share in self.padding_fractions().items()}


@dataclass(frozen=True, eq=False)
class _SelectedExamples:
    """The examples that take part, and their lengths (EOS included; 0 where there is no such column)."""

    examples: np.ndarray
    source: np.ndarray
    target: np.ndarray
    token_counts: dict[str, int]
    dropped: int
    truncated: int


def _text_columns(columns: Columns) -> Columns:
    return {name: column for name, column in columns.items() if name in ("source", "target")}


def _select_examples(columns: Columns, max_lengths: dict[str, int], too_long: str) -> _SelectedExamples:
    count = len(next(iter(columns.values())))
    if not count:
        raise UserError("the data set is empty: there is nothing to make batches of; check its path and its filter")
    length = {name: column.lengths + 1 for name, column in columns.items()}
    fits = np.all([length[name] <= max_lengths[name] for name in columns], axis=0)
    late = int(np.sum(~fits))
    if too_long == "drop":
        if late == count:
            shortest = int(np.min(np.max(list(length.values()), axis=0)))
            raise UserError(
                f"none of the {count} examples is within the maximum length of "
                f"{max(max_lengths[name] for name in columns)} "
                f"tokens (EOS included): the shortest needs {shortest}; raise the maximum length, or truncate long ones"
            )
        examples = np.flatnonzero(fits)
    else:
        examples = np.arange(count)
    length = {name: np.minimum(length[name], max_lengths[name])[examples] for name in columns}
    nothing = np.zeros(len(examples), np.int64)
    real = {name: int(np.sum(length[name])) for name in columns}
    dropped, truncated = (late, 0) if too_long == "drop" else (0, late)
    return _SelectedExamples(
        examples, length.get("source", nothing), length.get("target", nothing), real, dropped, truncated
    )


def _effective_length(source: np.ndarray | int, target: np.ndarray | int) -> np.ndarray:
    """The length that a row counts for: its target, or half its source, lest short targets make batches too large."""
    return np.where(np.equal(target, 0), source, np.maximum(target, -(-np.asarray(source) // 2)))


def _check_row_count(rows: int, row_multiple: int, tokens: int, length: int) -> None:
    if rows < 1:
        raise UserError(
            f"a batch of {tokens} tokens holds {tokens // length} rows of length {length}, but rows come in "
            f"multiples of {row_multiple} (row multiple, gradient accumulation and devices): "
            f"raise tokens to {row_multiple * length} or lower the maximum length to {max(tokens // row_multiple, 1)}"
        )

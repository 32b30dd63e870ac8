"""The interface of all batches, and batches of whole examples that are planned before the first one is made.

Batch k is a pure function of (columns, configuration, seed, k). A plan (which examples share a batch, in which shape)
needs only the lengths. They include EOS: a source of n ids takes n + 1 positions (ids, EOS), and so does a target (the
model reads BOS, ids and predicts ids, EOS).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxlm.data.batching.collate import OTHER, collate
from jaxlm.data.batching.shuffle import EpochOrder
from jaxlm.data.ragged import Columns, Ragged, first_nonzero
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.types import Batch


class Batches:
    """Base of the batches that `batching.batches(columns, seed)` returns for every batching.

    `batches[k]` is batch k, made of NumPy arrays. Objects can be read by several threads and pickled to
    worker processes.
    """

    @property
    def row_multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        raise NotImplementedError

    def statistics(self) -> dict[str, float]:
        """Numbers for the log: examples, shapes, batches of an epoch, tokens and positions of a batch, padding."""
        raise NotImplementedError

    def longest_example(self) -> dict[str, int]:
        """The most tokens of an example on its "source" and "target", EOS included, and on "both"; {}: not known."""
        return {}

    def host_part(self, k: int, host_index: int, num_hosts: int) -> Batch:
        """The rows of batch k that one of `num_hosts` hosts needs: an equal share each."""
        from jax import tree

        return tree.map(lambda leaf: leaf[host_slice(len(leaf), host_index, num_hosts)], self[k])

    def __getitem__(self, k: int) -> Batch:
        return self.host_part(k, 0, 1)


@dataclass(frozen=True)
class HostShard:
    """The part of every batch that host `host_index` of `num_hosts` needs."""

    batches: Batches
    host_index: int = 0
    num_hosts: int = 1

    def __getitem__(self, k: int) -> Batch:
        if self.num_hosts == 1:
            return self.batches[k]
        return self.batches.host_part(k, self.host_index, self.num_hosts)


class RunningTextBatches(Batches):
    """Base of the batches of running text: all have one shape."""

    config: Any
    batches_per_epoch: int

    @property
    def row_multiple(self) -> int:
        return self.config.rows

    def longest_example(self) -> dict[str, int]:
        """The lengths of a row: text fills it."""
        batch = self[0]
        source, target = (0 if ids is None else ids.shape[1] for ids in (batch.source_BS, batch.target_BT))
        return {"source": source, "target": target, "both": source + target}

    def _statistics(self, examples: int, tokens: float, side: str) -> dict[str, float]:
        """`tokens`: real tokens of a batch, counted on `side`."""
        padding = 1 - tokens / self.config.tokens
        counts: dict[str, float] = {"examples": examples, "dropped": 0, "truncated": 0, "shapes": 1}
        counts |= {"batches_per_epoch": self.batches_per_epoch, "tokens": tokens, "positions": self.config.tokens}
        return counts | {f"padding_{side}": padding, "padding_both": padding}


@dataclass(frozen=True)
class RunningText:
    """Base of the batchings that cut running text into rows.

    Attributes:
      rows, length: a batch has `rows` rows of `length` positions.
    """

    length: int
    rows: int

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    def batches(self, columns: Columns, seed: int = 0, *, special: SpecialIds = OWN_SPECIAL_IDS) -> RunningTextBatches:
        """The batches of the text in column "target", whose special ids are `special`."""
        raise NotImplementedError


def host_slice(rows: int, host_index: int, num_hosts: int) -> slice:
    """The rows of one host."""
    return slice(rows * host_index // num_hosts, rows * (host_index + 1) // num_hosts)


@dataclass(frozen=True, eq=False)
class Bucket:
    """A shape (rows, source), (rows, target) and its items: `bins[i]` are the examples of row i, several if packed."""

    source: int
    target: int
    rows: int
    bins: Ragged


@dataclass(frozen=True, eq=False)
class SelectedExamples:
    """The examples of batches, their lengths (EOS included; 0 without such a column), and the counts of longer ones."""

    examples: np.ndarray
    source: np.ndarray
    target: np.ndarray
    token_counts: dict[str, int]
    dropped: int
    truncated: int


@dataclass(frozen=True, eq=False)
class PlannedBatches(Batches):
    """Batches of planned shapes: batch k holds the items `epoch_order[k]` of a bucket; `packed`: many in a row."""

    columns: Columns
    buckets: tuple[Bucket, ...]
    selected: SelectedExamples
    seed: int
    packed: bool
    special: SpecialIds = OWN_SPECIAL_IDS

    @cached_property
    def epoch_order(self) -> EpochOrder:
        return EpochOrder([len(b.bins) for b in self.buckets], [b.rows for b in self.buckets], self.seed)

    @property
    def row_multiple(self) -> int:
        return math.gcd(*(bucket.rows for bucket in self.buckets))

    def longest_example(self) -> dict[str, int]:
        source, target = self.selected.source, self.selected.target
        return {"source": int(source.max()), "target": int(target.max()), "both": int((source + target).max())}

    def host_part(self, k: int, host_index: int, num_hosts: int) -> Batch:
        bucket_index, items = self.epoch_order[k]
        bucket = self.buckets[bucket_index]
        items = items[host_slice(len(items), host_index, num_hosts)]
        examples, count = bucket.bins.gather(items)
        row_index = np.repeat(np.arange(len(items)), count)
        shape = len(items), bucket.source, bucket.target
        return collate(self.columns, examples, row_index, shape, packed=self.packed, special=self.special)

    def reads(self, k: int, row: int) -> bool:
        """True if batch k has an example of the columns."""
        bucket, items = self.epoch_order[k]
        return bool((self.buckets[bucket].bins.gather(items)[0] == row).any())

    def statistics(self) -> dict[str, float]:
        """`tokens` and `positions` are those of a batch, of its targets if it has any."""
        tokens, per_epoch = self.selected.token_counts, self.epoch_order.batches_per_epoch
        positions = {name: sum(len(b.bins) * getattr(b, name) for b in self.buckets) for name in tokens}
        side = "target" if "target" in tokens else "source"
        return {
            "examples": sum(len(b.bins.flat) for b in self.buckets),
            "dropped": self.selected.dropped,
            "truncated": self.selected.truncated,
            "shapes": len({(b.source, b.target, b.rows) for b in self.buckets}),
            "batches_per_epoch": per_epoch,
            "tokens": tokens[side] / per_epoch,
            "positions": positions[side] / per_epoch,
            **{f"padding_{name}": 1 - tokens[name] / positions[name] for name in tokens},
            "padding_both": 1 - sum(tokens.values()) / sum(positions.values()),
        }


def select_examples(columns: Columns, max_lengths: dict[str, int], too_long: str) -> SelectedExamples:
    """The examples within `max_lengths`; longer ones are dropped or cut. Raises UserError if none is left."""
    texts = {name: column for name, column in columns.items() if name in max_lengths}
    count = len(next(iter(texts.values())))
    if not count:
        raise UserError("the data set is empty: there is nothing to make batches of; check its path and its filter")
    lengths = {name: column.lengths + 1 for name, column in texts.items()}
    if OTHER + "target" in columns:  # both answers of a row have one shape
        lengths["target"] = np.maximum(lengths["target"], columns[OTHER + "target"].lengths + 1)
    fits = np.all([lengths[name] <= max_lengths[name] for name in texts], axis=0)
    is_kept = fits if too_long == "drop" else np.ones(count, bool)
    if too_long == "truncate" and "loss_mask" in columns:  # without a label before the cut there is nothing to learn
        is_kept = fits | (first_nonzero(columns["loss_mask"]) < max_lengths["target"] - 1)
    if not is_kept.any():
        shortest = int(np.min(np.max(list(lengths.values()), axis=0)))
        raise UserError(
            f"none of the {count} examples is within the maximum length of {max(max_lengths[n] for n in texts)} "
            f"tokens (EOS included): the shortest needs {shortest}; raise the maximum length, or truncate long ones"
        )
    examples = np.flatnonzero(is_kept)
    lengths = {name: np.minimum(length, max_lengths[name])[examples] for name, length in lengths.items()}
    empty = np.zeros(len(examples), np.int64)
    token_counts = {name: int(np.sum(length)) for name, length in lengths.items()}
    dropped, truncated = int(np.sum(~is_kept)), int(np.sum(is_kept & ~fits))
    source, target = lengths.get("source", empty), lengths.get("target", empty)
    return SelectedExamples(examples, source, target, token_counts, dropped, truncated)


def effective_length(source: np.ndarray | int, target: np.ndarray | int) -> np.ndarray:
    """The length that a row counts for: its target, but half its source at least, to bound rows of short targets."""
    return np.where(np.equal(target, 0), source, np.maximum(target, -(-np.asarray(source) // 2)))


def check_row_count(rows: int, row_multiple: int, tokens: int, length: int) -> None:
    """Raises UserError if a batch of `tokens` tokens holds less than `row_multiple` rows of `length`."""
    if rows < 1:
        raise UserError(
            f"a batch of {tokens} tokens holds {tokens // length} rows of length {length}, but rows come in "
            f"multiples of {row_multiple} (row multiple, gradient accumulation and devices): "
            f"raise tokens to {row_multiple * length} or lower the maximum length to {max(tokens // row_multiple, 1)}"
        )

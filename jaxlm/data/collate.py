"""From columns of ids to arrays: `Batches[k]` makes batch k of a plan, `in_order` visits every row once.

Columns, each a `Ragged` of ids:

| column      | a row is                                     | becomes                                              |
|-------------|----------------------------------------------|------------------------------------------------------|
| "source"    | a text                                       | `source_BS` (ids, EOS)                               |
| "target"    | a text                                       | `target_BT` (BOS, ids), `label_BT` (ids, EOS)        |
| "label"     | an id for each token of the source           | `label_BS`, -1 where there is none                   |
| "class"     | one id, or one number                        | `label_B`, -1 (NaN) for rows that fill the shape     |
| "character" | the spelling of one token of all the sources | `character_BSW`, 0 after the last character          |
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.data.batching import Columns, Plan
from jaxlm.data.ragged import Ragged, runs
from jaxlm.data.vocabulary import BOS, EOS
from jaxlm.types import Batch

WORD_LENGTH = 16
"""Characters of a word that are kept."""
TEXTS = ("source", "target")
"""The columns whose lengths decide what shares a batch."""
WORDWISE = {"label_BS", "character_BSW"}


class Batches:
    """`batches[k]` is batch k of a plan, made of numpy arrays: a pure function of (columns, plan, k).

    Can be read by several threads and pickled to worker processes.
    """

    def __init__(self, columns: Columns, plan: Plan):
        self.columns = columns
        self.plan = plan

    def examples(self, k: int) -> Ragged:
        """The examples (positions in the columns) of every row of batch k."""
        bucket, items = self.plan.order[k]
        return Ragged.of([self.plan.buckets[bucket].bins[item] for item in items], np.int64)

    def __getitem__(self, k: int) -> Batch:
        return self.part(k, 0, 1)

    def part(self, k: int, index: int, of: int) -> Batch:
        """The rows of batch k that one of `of` hosts needs: an equal share each."""
        bucket_index, items = self.plan.order[k]
        bucket, items = self.plan.buckets[bucket_index], items[share(len(items), index, of)]
        examples, count = bucket.bins.take(items)
        row_of = np.repeat(np.arange(len(items)), count)
        return collate(self.columns, examples, row_of, len(items), bucket.source, bucket.target, self.plan.packed)

    @property
    def multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        return math.gcd(*(bucket.rows for bucket in self.plan.buckets))

    def statistics(self) -> dict[str, float]:
        """Numbers for a log; see `Plan.statistics`."""
        return self.plan.statistics()


def share(rows: int, index: int, of: int) -> slice:
    """Which of the rows are those of host `index`."""
    return slice(rows * index // of, rows * (index + 1) // of)


@dataclass(frozen=True)
class HostRows:
    """The rows of every batch that host `index` of `of` needs. No other rows are made, if the batches have a `part`."""

    batches: Any
    index: int = 0
    of: int = 1

    def __getitem__(self, k: int) -> Batch:
        if self.of == 1:
            return self.batches[k]
        if hasattr(self.batches, "part"):
            return self.batches.part(k, self.index, self.of)
        from jax import tree

        return tree.map(lambda leaf: leaf[share(len(leaf), self.index, self.of)], self.batches[k])

    @property
    def multiple(self) -> int:
        """The greatest number that divides the rows of every batch, those of all hosts."""
        return self.batches.multiple

    def statistics(self) -> dict[str, float]:
        """Numbers for a log, of whole batches."""
        return self.batches.statistics()


def collate(
    columns: Columns, examples: np.ndarray, row_of: np.ndarray, rows: int, source: int, target: int, packed: bool
) -> Batch:
    """A Batch of shape (rows, source) and (rows, target). `row_of` (ascending) gives the row of each example.

    Examples of one row follow each other without a gap; each ends with EOS, and one too long for its row is cut.
    Segment numbers are there only if `packed`. Ids are int32, masks bool, padding is 0.
    """
    fields: dict[str, Any] = {}
    if "source" in columns:
        ended, _, segment = _lay(columns["source"], examples, row_of, rows, source)
        fields |= {"source_BS": ended, "source_valid_BS": segment > 0}
        fields |= {"source_segment_BS": segment} if packed else {}
    if "target" in columns:
        ended, begun, segment = _lay(columns["target"], examples, row_of, rows, target)
        fields |= {"target_BT": begun, "label_BT": ended, "target_valid_BT": segment > 0}
        fields |= {"target_segment_BT": segment} if packed else {}
    if "label" in columns or "character" in columns:
        at, token = _places(columns["source"], examples, row_of, rows, source)
        if "label" in columns:
            fields["label_BS"] = np.full(rows * source, -1, np.int32)
            fields["label_BS"][at] = columns["label"].flat[token]
        if "character" in columns:
            fields["character_BSW"] = np.zeros((rows * source, WORD_LENGTH), np.int32)
            fields["character_BSW"][at] = _spelled(columns["character"], token)
        fields |= {name: fields[name].reshape(rows, source, *fields[name].shape[1:]) for name in WORDWISE & {*fields}}
    if "class" in columns:
        numbers = columns["class"].flat.dtype == np.float32
        fields["label_B"] = np.full(rows, np.nan if numbers else -1, np.float32 if numbers else np.int32)
        fields["label_B"][row_of] = columns["class"].flat[examples]
    return Batch(**fields)


def _places(
    column: Ragged, examples: np.ndarray, row_of: np.ndarray, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where in a flat (rows x length) array the tokens of the examples lie, and which tokens of the column they are."""
    count = np.minimum(column.lengths[examples], length - 1)
    before = np.cumsum(count + 1) - (count + 1)
    start = row_of * length + before - before[np.searchsorted(row_of, row_of)]
    return runs(start, count), runs(column.offsets[examples], count)


def _spelled(characters: Ragged, token: np.ndarray) -> np.ndarray:
    """(tokens, WORD_LENGTH): the first characters of each, then 0."""
    ids, count = characters.take(token, limit=WORD_LENGTH)
    spelled = np.zeros((len(token), WORD_LENGTH), np.int32)
    spelled.reshape(-1)[runs(np.arange(len(token)) * WORD_LENGTH, count)] = ids
    return spelled


def _lay(
    column: Ragged, examples: np.ndarray, row_of: np.ndarray, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids + EOS, BOS + ids, and segment numbers from 1, each int32 (rows, length)."""
    ids, count = column.take(examples, limit=length - 1)
    first_of_row = np.searchsorted(row_of, row_of)
    before = np.cumsum(count + 1) - (count + 1)
    start = row_of * length + before - before[first_of_row]
    ended, begun, segment = (np.zeros(rows * length, np.int32) for _ in range(3))
    at = runs(start, count)
    ended[at], ended[start + count] = ids, EOS
    begun[at + 1], begun[start] = ids, BOS
    segment[runs(start, count + 1)] = np.repeat(np.arange(len(row_of)) - first_of_row + 1, count + 1)
    return ended.reshape(rows, length), begun.reshape(rows, length), segment.reshape(rows, length)


def in_order(
    columns: Columns,
    tokens: int = 8192,
    multiple: int = 8,
    divisor: int = 1,
    max_length: int | None = None,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row of the columns exactly once, longest first, in few shapes: (row_B, batch).

    `row_B` gives the place of each batch row in the columns, and -1 for a row that only fills the shape (an empty
    source, no valid target). `tokens` bounds the positions of the longer side; at least `multiple` rows are made. Rows
    longer than `max_length` (EOS included) are cut: see `too_long`.
    """
    longer = np.max([columns[name].lengths for name in TEXTS if name in columns], axis=0) + 1
    limit = max_length or int(longer.max(initial=1))
    ranked = np.argsort(-longer, kind="stable")
    multiple = math.lcm(multiple, divisor)
    while len(ranked):
        length = _level(min(int(longer[ranked[0]]), limit), limit if max_length else sys.maxsize)
        rows = max(tokens // length // multiple, 1) * multiple
        # A few rows take a smaller shape: 1, 2, 4, ... multiples.
        rows = min(rows, multiple << (math.ceil(len(ranked) / multiple) - 1).bit_length())
        now, ranked = ranked[:rows], ranked[rows:]
        row_B = np.concatenate([now, np.full(rows - len(now), -1)])
        yield row_B, collate_some(columns, row_B, length)


def collate_some(columns: Columns, row_B: np.ndarray, length: int) -> Batch:
    """The named rows of the columns in this order, then, where `row_B` is -1, rows of an empty source and no target."""
    now = row_B[row_B >= 0]
    batch = collate(columns, now, np.arange(len(now)), len(row_B), length, length, packed=False)
    for field, value in ((batch.source_BS, EOS), (batch.source_valid_BS, True)):
        if isinstance(field, np.ndarray):
            field[len(now) :, 0] = value
    return batch


def shapes_in_order(column: Ragged, tokens: int, max_length: int) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """For a queue, longest first: (rows of the column, their length with padding, places, rows that begin together).

    `places` times the length is `tokens` at most. A length that would not fill a quarter of its places takes in the
    next shorter one.
    """
    longer = np.minimum(column.lengths + 1, max_length)
    ranked = np.argsort(-longer, kind="stable")
    level = np.array([_level(int(size), max_length) for size in longer[ranked]])
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


def too_long(columns: Columns, max_length: int) -> int:
    """The number of rows of which `in_order` would cut a side."""
    return int(np.sum(np.any([columns[name].lengths >= max_length for name in TEXTS if name in columns], axis=0)))


def _level(length: int, limit: int) -> int:
    """The length rounded up to a multiple of 8; above 64 the steps are about a quarter."""
    level = 8
    while level < length:
        level = max(level + 8, level * 5 // 4 // 8 * 8)
    return min(level, limit)

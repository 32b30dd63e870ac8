"""From a plan to arrays: `Batches[k]` makes batch k, `Pipeline` makes them ahead, `in_order` visits every row once."""

import collections
import itertools
import math
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from jaxlm.data.batching import Columns, Plan
from jaxlm.data.ragged import Ragged, runs
from jaxlm.data.vocabulary import BOS, EOS
from jaxlm.types import Batch


class Source(Protocol):
    """Batch k as a pure function of k."""

    def __getitem__(self, k: int) -> Batch: ...


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
        index, items = self.plan.order[k]
        bucket = self.plan.buckets[index]
        examples, count = bucket.bins.take(items)
        row_of = np.repeat(np.arange(len(items)), count)
        return collate(self.columns, examples, row_of, len(items), bucket.source, bucket.target, self.plan.packed)


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
    return Batch(**fields)


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
    longer = np.max([column.lengths for column in columns.values()], axis=0) + 1
    limit = max_length or int(longer.max(initial=1))
    ranked = np.argsort(-longer, kind="stable")
    multiple = math.lcm(multiple, divisor)
    while len(ranked):
        length = _level(min(int(longer[ranked[0]]), limit), limit if max_length else sys.maxsize)
        rows = max(tokens // length // multiple, 1) * multiple
        # A few rows take a smaller shape: 1, 2, 4, ... multiples.
        rows = min(rows, multiple << (math.ceil(len(ranked) / multiple) - 1).bit_length())
        now, ranked = ranked[:rows], ranked[rows:]
        batch = collate(columns, now, np.arange(len(now)), rows, length, length, packed=False)
        for field, value in ((batch.source_BS, EOS), (batch.source_valid_BS, True)):
            if isinstance(field, np.ndarray):
                field[len(now) :, 0] = value
        yield np.concatenate([now, np.full(rows - len(now), -1)]), batch


def too_long(columns: Columns, max_length: int) -> int:
    """The number of rows of which `in_order` would cut a side."""
    return int(np.sum(np.any([column.lengths >= max_length for column in columns.values()], axis=0)))


def _level(length: int, limit: int) -> int:
    """The length rounded up to a multiple of 8; above 64 the steps are about a quarter."""
    level = 8
    while level < length:
        level = max(level + 8, level * 5 // 4 // 8 * 8)
    return min(level, limit)


class Pipeline:
    """Iterates over `batches[start]`, `batches[start + 1]`, ... without end, up to `prefetch` of them made ahead.

    `threads=0` makes each batch when it is asked for; with `workers`, that many processes share the work (a script
    then needs the usual `if __name__ == "__main__"`). Neither changes a batch. Starting late costs nothing. Grain does
    the work; without it threads of our own do, and `workers` count as threads. Close it, or use it in a `with`.
    """

    def __init__(self, batches: Source, start: int = 0, threads: int = 1, workers: int = 0, prefetch: int = 8):
        self._shared = workers > 0
        source = _From(batches, start)
        self._running = [_grain(source, threads, workers, prefetch) or _Threads(source, threads + workers, prefetch)]
        # Also at exit, while there still are modules: what Grain frees later complains.
        self._stop = weakref.finalize(self, _stop, self._running)

    def __iter__(self) -> "Pipeline":
        return self

    def __next__(self) -> Batch:
        if not self._running:
            raise ValueError("this pipeline is closed")
        batch = next(self._running[0])
        return _unshared(batch) if self._shared else batch

    def close(self) -> None:
        """Stops threads and workers; may be called again."""
        self._stop()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stop(running: list) -> None:
    while running:
        running.pop().close()


def _unshared(batch: Batch) -> Batch:
    """Plain arrays: what workers send lies in shared memory, which may be gone before the arrays are."""
    from jax import tree

    return tree.map(np.array, batch)


class _From:
    """The batches from `start` on, as the random-access source that Grain asks for."""

    def __init__(self, batches: Source, start: int):
        self._batches = batches
        self._start = start

    def __len__(self) -> int:
        return sys.maxsize - self._start

    def __getitem__(self, index: int) -> Batch:
        return self._batches[self._start + index]

    def __repr__(self) -> str:
        return f"batches from {self._start}"


def _grain(source: _From, threads: int, workers: int, prefetch: int) -> Any:
    """A Grain iterator, or None where Grain is not installed. A record is a whole batch: its 0.1 ms does not count."""
    try:
        import grain
    except ImportError:
        return None
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if threads else 0)
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # workers read Grain's flags, which absl.app alone would parse
            flags.FLAGS.mark_as_parsed()
        ahead = max(1, prefetch // workers)
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead))
    return iter(dataset)


class _Threads:
    """The same without Grain: a queue of futures, in order."""

    def __init__(self, source: _From, threads: int, prefetch: int):
        self._source = source
        self._next = itertools.count()
        self._ahead = max(prefetch, threads) if threads else 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="batches") if threads else None
        self._queue: collections.deque[Future[Batch]] = collections.deque()

    def __next__(self) -> Batch:
        if self._pool is None:
            return self._source[next(self._next)]
        while len(self._queue) <= self._ahead:
            self._queue.append(self._pool.submit(self._source.__getitem__, next(self._next)))
        return self._queue.popleft().result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

"""Batches made ahead: `DataLoader` has the next ones ready while the device works on this one."""

import collections
import itertools
import sys
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from jaxlm.types import Batch


class BatchSource(Protocol):
    """Batch k as a pure function of k."""

    def __getitem__(self, k: int) -> Batch: ...


class DataLoader:
    """Iterates over `batches[start]`, `batches[start + 1]`, ... without end, up to `prefetch` of them made ahead.

    `num_threads=0` makes each batch when it is asked for; with `num_workers`, that many processes share the
    work (a script then needs the usual `if __name__ == "__main__"`). Neither changes a batch. Starting late
    costs nothing. Grain does the work; without it threads of our own do, and `num_workers` count as threads.
    Close it, or use it in a `with`.
    """

    def __init__(
        self, batches: BatchSource, start: int = 0, num_threads: int = 1, num_workers: int = 0, prefetch: int = 8
    ):
        self._uses_processes = num_workers > 0
        source = _OffsetSource(batches, start)
        self._iterators = [
            _grain_iterator(source, num_threads, num_workers, prefetch)
            or _ThreadedIterator(source, num_threads + num_workers, prefetch)
        ]
        # Also at exit, while there still are modules: what Grain frees later complains.
        self._finalizer = weakref.finalize(self, _close_all, self._iterators)

    def __iter__(self) -> "DataLoader":
        return self

    def __next__(self) -> Batch:
        if not self._iterators:
            raise ValueError("this pipeline is closed")
        batch = next(self._iterators[0])
        return _copy_from_shared_memory(batch) if self._uses_processes else batch

    def close(self) -> None:
        """Stops threads and workers; may be called again."""
        self._finalizer()

    def __enter__(self) -> "DataLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_all(iterators: list) -> None:
    while iterators:
        iterators.pop().close()


def _copy_from_shared_memory(batch: Batch) -> Batch:
    """Plain arrays: what workers send lies in shared memory, which may be gone before the arrays are."""
    from jax import tree

    return tree.map(np.array, batch)


class _OffsetSource:
    """The batches from `start` on, as the random-access source that Grain asks for."""

    def __init__(self, batches: BatchSource, start: int):
        self._batches = batches
        self._start = start

    def __len__(self) -> int:
        return sys.maxsize - self._start

    def __getitem__(self, index: int) -> Batch:
        return self._batches[self._start + index]

    def __repr__(self) -> str:
        return f"batches from {self._start}"


def _grain_iterator(source: _OffsetSource, num_threads: int, num_workers: int, prefetch: int) -> Any:
    """A Grain iterator, or None where Grain is not installed. A record is a whole batch: its 0.1 ms does not count."""
    try:
        import grain
    except ImportError:
        return None
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads) if num_threads else 0
    )
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if num_workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # workers read Grain's flags, which absl.app alone would parse
            flags.FLAGS.mark_as_parsed()
        ahead = max(1, prefetch // num_workers)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=ahead)
        )
    return iter(dataset)


class _ThreadedIterator:
    """The same without Grain: a queue of futures, in order."""

    def __init__(self, source: _OffsetSource, num_threads: int, prefetch: int):
        self._source = source
        self._next_index = itertools.count()
        self._prefetch = max(prefetch, num_threads) if num_threads else 0
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="batches") if num_threads else None
        self._queue: collections.deque[Future[Batch]] = collections.deque()

    def __next__(self) -> Batch:
        if self._pool is None:
            return self._source[next(self._next_index)]
        while len(self._queue) <= self._prefetch:
            self._queue.append(self._pool.submit(self._source.__getitem__, next(self._next_index)))
        return self._queue.popleft().result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

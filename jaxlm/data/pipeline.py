"""Batches made ahead: `Pipeline` has the next ones ready while the device works on this one."""

import collections
import itertools
import sys
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from jaxlm.types import Batch


class Source(Protocol):
    """Batch k as a pure function of k."""

    def __getitem__(self, k: int) -> Batch: ...


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

"""Batches made ahead of time: `DataLoader` prepares the next ones while the device works on this one."""

import sys
import weakref
from typing import Any, Protocol

import numpy as np

from jaxlm.types import Batch


class BatchSource(Protocol):
    """Batch k as a pure function of k."""

    def __getitem__(self, k: int) -> Batch: ...


class DataLoader:
    """Endless iterator over `batches[start]`, `batches[start + 1]`, ..., up to `prefetch` of them made ahead.

    `num_threads=0` makes each batch when it is needed. `num_workers` processes share the work (a script then
    needs the usual `if __name__ == "__main__"`). Neither changes a batch, and any start costs the same.
    Close the loader, or use it in a `with`.
    """

    def __init__(
        self, batches: BatchSource, start: int = 0, num_threads: int = 1, num_workers: int = 0, prefetch: int = 8
    ):
        import grain

        self._uses_processes = num_workers > 0
        ahead = max(prefetch, num_threads) if num_threads else 0
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
        # A Grain record is a whole batch, so that its 0.1 ms a record does not count.
        dataset = grain.MapDataset.source(_OffsetSource(batches, start)).to_iter_dataset(options)
        if num_workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # workers read Grain's flags, which only absl.app would parse
                flags.FLAGS.mark_as_parsed()
            ahead = max(1, prefetch // num_workers)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=ahead)
            )
        self._iterators: list[Any] = [iter(dataset)]
        # Also closed at exit, while modules still exist: Grain complains about what it frees later.
        self._finalizer = weakref.finalize(self, _close_all, self._iterators)

    def __iter__(self) -> "DataLoader":
        return self

    def __next__(self) -> Batch:
        if not self._iterators:
            raise ValueError("this pipeline is closed")
        batch = next(self._iterators[0])
        if self._uses_processes:  # the shared memory of a worker may be freed before the arrays are
            from jax import tree

            return tree.map(np.array, batch)
        return batch

    def close(self) -> None:
        """Stop threads and workers; may be called again."""
        self._finalizer()

    def __enter__(self) -> "DataLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_all(iterators: list) -> None:
    while iterators:
        iterators.pop().close()


class _OffsetSource:
    """The batches from `start` on, as a Grain random-access source."""

    def __init__(self, batches: BatchSource, start: int):
        self._batches = batches
        self._start = start

    def __len__(self) -> int:
        return sys.maxsize - self._start

    def __getitem__(self, index: int) -> Batch:
        return self._batches[self._start + index]

    def __repr__(self) -> str:
        return f"batches from {self._start}"

"""The order of the data: the items of batch k, as a pure function of (sizes, seed, k).

Every bucket is an endless stream: one epoch after the other, each in a new order, so nothing is dropped or padded
between two epochs. A bucket of n items, r a batch, gives floor(e n / r) batches in e epochs. The sum over buckets
gives the epoch of batch k, so seeking is a division and a short search.
"""

import functools
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

BATCH_ORDER_LANE = 0
"""The lane of random numbers for the order of batches; bucket b uses lane b + 1."""

FIRST_DRAW_LANE = 1 << 16
"""The first lane of random numbers for the content of batches."""


def permutation(n: int, seed: int, epoch: int, rng_lane: int = 0) -> np.ndarray:
    """A shuffled `arange(n)`, the same on every platform and with every NumPy."""
    # NumPy keeps the streams of raw bits stable, not `Generator.permutation` (NEP 19).
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, rng_lane))).random_raw(n)
    return np.argsort(bits, kind="stable")


def uniform_draws(count: int, seed: int, index: int, rng_lane: int) -> np.ndarray:
    """`count` random numbers in [0, 1) for batch `index`, the same on every platform and with every NumPy."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index, FIRST_DRAW_LANE + rng_lane))
    bits = np.random.PCG64(sequence).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


class PermutationCache:
    """The permutations of a seed; the last `size` in use are kept. Threads may share it; it is pickled empty."""

    def __init__(self, seed: int, size: int):
        self._arguments = seed, size
        self._cached = functools.lru_cache(size)(functools.partial(permutation, seed=seed))

    def __call__(self, n: int, epoch: int, rng_lane: int = 0) -> np.ndarray:
        return self._cached(n, epoch=epoch, rng_lane=rng_lane)

    def __reduce__(self) -> tuple[Any, tuple[int, int]]:
        return PermutationCache, self._arguments


class EpochOrder:
    """`order[k]` is (bucket, items): the bucket of batch k and the indices of its items in the bucket.

    `sizes[b]` is the number of items of bucket b, `rows[b]` the number in a batch. Threads may share it.
    """

    def __init__(self, sizes: Sequence[int], rows: Sequence[int], seed: int):
        if not sizes or min(sizes) < 1 or min(rows) < 1:
            raise ValueError(f"every bucket needs items and rows, found sizes {list(sizes)} and rows {list(rows)}")
        self.sizes = tuple(map(int, sizes))
        self.rows = tuple(map(int, rows))
        # Threads may be on both sides of an epoch's end, and a batch may reach back one epoch.
        self._permutation = PermutationCache(seed, 3 * (len(self.sizes) + 1))

    @property
    def batches_per_epoch(self) -> float:
        """Batches of an epoch, on average over epochs."""
        return sum(n / r for n, r in zip(self.sizes, self.rows, strict=True))

    def first_batch(self, epoch: int) -> int:
        """The number of batches before `epoch`, which is also the number of its first batch."""
        return sum(epoch * n // r for n, r in zip(self.sizes, self.rows, strict=True))

    def epoch_of(self, k: int) -> int:
        """The epoch of batch k: the last one with `first_batch(epoch) <= k`."""
        # epoch * rate - buckets < first_batch(epoch) <= epoch * rate; the 2 covers rounding.
        low = max(0, int(k / self.batches_per_epoch) - 2)
        high = int((k + len(self.sizes)) / self.batches_per_epoch) + 2
        return low + bisect_right(range(low, high + 1), k, key=self.first_batch) - 1

    def __getitem__(self, k: int) -> tuple[int, np.ndarray]:
        if k < 0:
            raise IndexError(f"batch {k}: batches are counted from 0")
        epoch = self.epoch_of(k)
        first = self.first_batch(epoch)
        # The batches of an epoch are shuffled; `place` is the number of this one if they went bucket by bucket.
        place = int(self._permutation(self.first_batch(epoch + 1) - first, epoch, BATCH_ORDER_LANE)[k - first])
        for bucket, (n, r) in enumerate(zip(self.sizes, self.rows, strict=True)):
            before, after = epoch * n // r, (epoch + 1) * n // r
            if place < after - before:
                return bucket, self._items(bucket, (before + place) * r, r)
            place -= after - before
        raise AssertionError("the buckets of an epoch hold all its batches")

    def _items(self, bucket: int, start: int, count: int) -> np.ndarray:
        """Items start .. start + count of the stream of a bucket."""
        n, parts = self.sizes[bucket], []
        while count:  # a batch may span the end of an epoch
            epoch, first = divmod(start, n)
            part = self._permutation(n, epoch, bucket + 1)[first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

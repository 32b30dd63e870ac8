"""The order of the data: which items batch k takes, as a pure function of (sizes, seed, k).

Every bucket is an endless stream: its items in a new order in every epoch, one epoch after the other, so that nothing
is dropped and nothing is padded where epochs meet. A bucket of n items, r to a batch, has given floor(e n / r) batches
after e epochs; the sum over buckets says in which epoch batch k lies, and seeking is a division and a short search.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

BATCH_ORDER_LANE = 0
"""Lane of the order of batches; bucket b draws from lane b + 1."""

FIRST_DRAW_LANE = 1 << 16
"""The first lane of what is drawn inside of batches."""


def permutation(n: int, seed: int, epoch: int, rng_lane: int = 0) -> np.ndarray:
    """A shuffled `arange(n)`, the same on every platform and with every numpy.

    NumPy promises stable streams of raw bits, not of `Generator.permutation` (NEP 19): so we sort raw bits ourselves.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, rng_lane))).random_raw(n)
    return np.argsort(bits, kind="stable")


def uniform_draws(count: int, seed: int, index: int, rng_lane: int) -> np.ndarray:
    """`count` numbers in [0, 1), the draws of batch `index`: the same on every platform and with every numpy."""
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index, FIRST_DRAW_LANE + rng_lane))).random_raw(
        count
    )
    return (bits >> np.uint64(11)) * 2.0**-53


def item_at(n: int, seed: int, index: int, rng_lane: int = 0) -> int:
    """Item `index` of the endless stream over n items."""
    epoch, at = divmod(index, n)
    return int(permutation(n, seed, epoch, rng_lane)[at])


class EpochOrder:
    """`order[k]` is (bucket, items): the bucket that batch k comes from and the positions of its items in the bucket.

    `sizes[b]` is the number of items in bucket b, `rows[b]` how many make a batch. The permutations of the epochs in
    use are kept; objects may be shared between threads and pickled (the kept ones stay behind).
    """

    def __init__(self, sizes: Sequence[int], rows: Sequence[int], seed: int):
        if not sizes or min(sizes) < 1 or min(rows) < 1:
            raise ValueError(f"every bucket needs items and rows, found sizes {list(sizes)} and rows {list(rows)}")
        self.sizes = tuple(map(int, sizes))
        self.rows = tuple(map(int, rows))
        self.seed = seed
        self._clear_cache()

    def _clear_cache(self) -> None:
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"sizes": self.sizes, "rows": self.rows, "seed": self.seed}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._clear_cache()

    @property
    def batches_per_epoch(self) -> float:
        """Batches of an epoch, on average over epochs."""
        return sum(n / r for n, r in zip(self.sizes, self.rows, strict=True))

    def first_batch(self, epoch: int) -> int:
        """The number of batches before `epoch`, which is also the first batch of it."""
        return sum(epoch * n // r for n, r in zip(self.sizes, self.rows, strict=True))

    def epoch_of(self, k: int) -> int:
        """The epoch that batch k belongs to: the last one with `first(epoch) <= k`."""
        # epoch * rate - buckets < first(epoch) <= epoch * rate; the 2 covers rounding.
        low = max(0, int(k / self.batches_per_epoch) - 2)
        high = int((k + len(self.sizes)) / self.batches_per_epoch) + 2
        return low + bisect_right(range(low, high + 1), k, key=self.first_batch) - 1

    def __getitem__(self, k: int) -> tuple[int, np.ndarray]:
        if k < 0:
            raise IndexError(f"batch {k}: batches are counted from 0")
        epoch = self.epoch_of(k)
        first = self.first_batch(epoch)
        place = int(self._permutation(self.first_batch(epoch + 1) - first, epoch, BATCH_ORDER_LANE)[k - first])
        for bucket, (n, r) in enumerate(zip(self.sizes, self.rows, strict=True)):
            before, after = epoch * n // r, (epoch + 1) * n // r
            if place < after - before:
                return bucket, self._items(bucket, (before + place) * r, r)
            place -= after - before
        raise AssertionError("the buckets of an epoch hold all its batches")

    def _items(self, bucket: int, start: int, count: int) -> np.ndarray:
        """Items start .. start + count of the bucket's stream."""
        n, parts = self.sizes[bucket], []
        while count:
            epoch, at = divmod(start, n)
            part = self._permutation(n, epoch, bucket + 1)[at : at + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _permutation(self, n: int, epoch: int, rng_lane: int) -> np.ndarray:
        key = (epoch, rng_lane)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        made = permutation(n, self.seed, epoch, rng_lane)
        with self._lock:
            self._cache[key] = made
            # Threads may stand on both sides of an epoch's end, and a batch may reach back one epoch.
            while len(self._cache) > 3 * (len(self.sizes) + 1):
                self._cache.popitem(last=False)
        return made

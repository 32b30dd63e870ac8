"""The order of the data: stable permutations, endless streams, and batch k by division and a short search."""

import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from jaxlm.data.batching.shuffle import EpochOrder, permutation


def item_at(n: int, seed: int, index: int, rng_lane: int = 0) -> int:
    """Item `index` of the endless stream over n items."""
    epoch, position = divmod(index, n)
    return int(permutation(n, seed, epoch, rng_lane)[position])


def test_permutation_is_a_permutation_and_depends_on_every_part_of_its_address():
    base = permutation(1000, seed=3, epoch=5, rng_lane=2)
    assert sorted(base) == list(range(1000))
    np.testing.assert_array_equal(base, permutation(1000, 3, 5, 2))
    for other in [(4, 5, 2), (3, 6, 2), (3, 5, 1), (5, 3, 2)]:
        assert np.mean(permutation(1000, *other) == base) < 0.01


def test_permutation_is_the_sorting_of_raw_pcg64_bits():
    """PCG64 (O'Neill 2014, XSL-RR 128/64) written out in Python integers, from NumPy's documented seeding."""
    words = np.random.SeedSequence(7, spawn_key=(1, 4)).generate_state(4, np.uint64).tolist()
    mask, multiplier = 2**128 - 1, 0x2360ED051FC65DA44385DF649FCCF645
    increment = ((words[2] << 64 | words[3]) << 1 | 1) & mask
    state = ((increment + (words[0] << 64 | words[1])) * multiplier + increment) & mask
    bits = []
    for _ in range(50):
        state = (state * multiplier + increment) & mask
        word, turn = (state >> 64 ^ state) & (2**64 - 1), state >> 122
        bits.append((word >> turn | word << (64 - turn)) & (2**64 - 1))
    assert permutation(50, 7, 1, 4).tolist() == sorted(range(50), key=bits.__getitem__)


def test_first_places_are_uniform():
    counts = Counter(int(permutation(5, seed, epoch)[0]) for seed in range(40) for epoch in range(50))
    chi_square = sum((counts[i] - 400) ** 2 / 400 for i in range(5))
    assert chi_square < 18.5  # 0.1 % of chi-square with 4 degrees of freedom


def test_stream_visits_every_item_once_an_epoch():
    items = [item_at(7, seed=1, index=i) for i in range(21)]
    epochs = [items[0:7], items[7:14], items[14:21]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    "sizes, rows",
    [([10], [10]), ([7], [3]), ([100, 37, 5], [8, 8, 4]), ([3, 1], [64, 16]), ([1], [1]), ([50, 2, 9], [7, 5, 10])],
)
def test_every_bucket_is_one_endless_stream_in_epoch_order(sizes, rows):
    """Against a brute-force walk: batches of a bucket, put in order, are its epochs joined."""
    order, epochs = EpochOrder(sizes, rows, seed=11), 12
    total = order.first_batch(epochs)
    assert total == sum(epochs * n // r for n, r in zip(sizes, rows, strict=True))
    seen: list[list[np.ndarray]] = [[] for _ in sizes]
    for epoch in range(epochs):
        batches = [order[k] for k in range(order.first_batch(epoch), order.first_batch(epoch + 1))]
        for bucket, (n, r) in enumerate(zip(sizes, rows, strict=True)):
            mine = [items for b, items in batches if b == bucket]
            assert len(mine) == (epoch + 1) * n // r - epoch * n // r
            assert all(len(items) == r for items in mine)
            joined = [item_at(n, 11, i, bucket + 1) for i in range(len(seen[bucket]) * r, (epoch + 1) * n // r * r)]
            expected = np.array(joined, int).reshape(-1, r)
            assert sorted(map(tuple, mine)) == sorted(map(tuple, expected))
            seen[bucket] += mine


def test_epoch_of_a_batch():
    order = EpochOrder([100, 37, 3], [8, 8, 64], seed=0)
    expected = [epoch for epoch in range(60) for _ in range(order.first_batch(epoch + 1) - order.first_batch(epoch))]
    assert [order.epoch_of(k) for k in range(len(expected))] == expected
    rare = EpochOrder([2], [64], seed=0)  # a batch every 32 epochs
    assert [rare.epoch_of(k) for k in range(3)] == [31, 63, 95]
    far = 10**12
    assert order.first_batch(order.epoch_of(far)) <= far < order.first_batch(order.epoch_of(far) + 1)


def test_every_epoch_has_its_own_order_of_batches():
    order = EpochOrder([64, 64], [4, 4], seed=5)
    epochs = [[order[k][0] for k in range(32 * e, 32 * e + 32)] for e in range(3)]
    assert all(sum(epoch) == 16 and epoch != sorted(epoch) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_seek_pickle_and_seed():
    order = EpochOrder([100, 37], [8, 8], seed=2)
    walked = [order[k] for k in range(200)]
    for k in (199, 0, 57, 100):
        for other in (EpochOrder([100, 37], [8, 8], seed=2), pickle.loads(pickle.dumps(order))):
            assert other[k][0] == walked[k][0]
            np.testing.assert_array_equal(other[k][1], walked[k][1])
    assert any(not np.array_equal(EpochOrder([100, 37], [8, 8], seed=3)[k][1], walked[k][1]) for k in range(3))


def test_another_process_gives_the_same_order():
    code = (
        "from jaxlm.data.batching.shuffle import EpochOrder; print(EpochOrder([100, 37], [8, 8], 2)[1234][1].tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(EpochOrder([100, 37], [8, 8], 2)[1234][1].tolist())


def test_kept_permutations_stay_few():
    order = EpochOrder([10, 20, 5], [4, 4, 4], seed=0)
    for k in range(500):
        order[k]
    assert 0 < order._permutation._cached.cache_info().currsize <= 12
    assert pickle.loads(pickle.dumps(order))._permutation._cached.cache_info().currsize == 0


def test_faults_are_refused():
    with pytest.raises(IndexError, match="batch -1"):
        EpochOrder([4], [2], 0)[-1]
    with pytest.raises(ValueError, match="every bucket needs items"):
        EpochOrder([4, 0], [2, 2], 0)

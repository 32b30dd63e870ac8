"""Buckets and packing: nothing lost, nothing twice, few shapes, padding counted right, errors with their cure."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.batching.bucketing import Buckets, Packing, fit_shapes, pack
from jaxlm.data.ragged import Ragged
from jaxlm.errors import UserError

BOS, EOS = 2, 3


def columns_of(source: list[int] | np.ndarray, target: list[int] | np.ndarray) -> dict[str, Ragged]:
    """Columns of these lengths. Example i says i + 4 in its first place, which identifies it in a batch."""

    def column(lengths):
        return Ragged.from_rows([np.concatenate([[i + 4], np.full(n, 9)])[:n] for i, n in enumerate(lengths)])

    return {"source": column(source), "target": column(target)}


def like_captions(count: int, seed: int = 0) -> dict[str, Ragged]:
    """Lengths as in Multi30k: means 14, a few over 40, both sides alike."""
    rng = np.random.default_rng(seed)
    source = np.clip(np.exp(rng.normal(2.55, 0.36, count)), 1, 60).astype(int)
    return columns_of(source, np.clip(source * np.exp(rng.normal(0, 0.15, count)), 1, 60).astype(int))


def _example_indices(batches, k: int) -> Ragged:
    """The examples of every row of batch k."""
    bucket, items = batches.epoch_order[k]
    return Ragged.from_rows([batches.buckets[bucket].bins[item] for item in items], np.int64)


def _padding(batches) -> dict[str, float]:
    shares = batches.statistics().items()
    return {name.removeprefix("padding_"): share for name, share in shares if name.startswith("padding_")}


CAPTIONS = like_captions(1500)
CONFIGS = [
    Buckets(tokens=512, max_shapes=5),
    Buckets(tokens=512, lengths=(8, 16, 24, 32, 61), max_length=61),
    Packing(length=64, tokens=1024),
    Packing(length=64, source_length=96, tokens=1024),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_example_once_an_epoch(config):
    batches, epochs = config.batches(CAPTIONS, seed=1), 4
    all_examples = np.concatenate([bucket.bins.flat for bucket in batches.buckets])
    assert sorted(all_examples) == list(range(1500))
    counts = Counter()
    for k in range(batches.epoch_order.first_batch(epochs)):
        counts.update(_example_indices(batches, k).flat.tolist())
    # A bucket still owes less than one batch of its last epoch; when that is longer than an epoch, an example waits.
    slack = max(-(-bucket.rows // len(bucket.bins)) for bucket in batches.buckets)
    assert all(epochs - slack <= counts[i] <= epochs for i in range(1500))
    missing = epochs * 1500 - sum(counts.values())
    assert missing < sum(bucket.rows * np.max(bucket.bins.lengths) for bucket in batches.buckets)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_batches_hold_the_ids_of_the_columns(config):
    """Each batch against one that is built row by row, example by example."""
    batches = config.batches(CAPTIONS, seed=4)
    for k in (0, 1, 17, 40):
        batch, rows = batches[k], _example_indices(batches, k)
        for side, length in (("source", batch.source_BS.shape[1]), ("target", batch.target_BT.shape[1])):
            label, model_input, segment = (np.zeros((len(rows), length), np.int32) for _ in range(3))
            for r in range(len(rows)):
                at = 0
                for number, example in enumerate(rows[r], start=1):
                    ids = CAPTIONS[side][example]
                    end = at + len(ids) + 1
                    label[r, at:end], model_input[r, at:end] = [*ids, EOS], [BOS, *ids]
                    segment[r, at:end] = number
                    at = end
            array = batch.source_BS if side == "source" else batch.label_BT
            np.testing.assert_array_equal(array, label)
            assert array.dtype == np.int32
            valid = batch.source_valid_BS if side == "source" else batch.target_valid_BT
            np.testing.assert_array_equal(valid, segment > 0)
            assert valid.dtype == bool
            numbers = batch.source_segment_BS if side == "source" else batch.target_segment_BT
            if batches.packed:
                np.testing.assert_array_equal(numbers, segment)
            else:
                assert numbers is None
            if side == "target":
                np.testing.assert_array_equal(batch.target_BT, model_input)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_padding_is_what_a_count_finds(config):
    batches = config.batches(CAPTIONS, seed=1)
    if isinstance(config, Buckets):
        home = {int(example): bucket for bucket in batches.buckets for example in bucket.bins.flat}
        positions = [sum(getattr(home[i], side) for i in range(1500)) for side in ("source", "target")]
    else:
        rows = len(batches.buckets[0].bins)
        positions = [rows * (config.source_length or config.length), rows * config.length]
    real = [sum(len(CAPTIONS[side][i]) + 1 for i in range(1500)) for side in ("source", "target")]
    share = _padding(batches)
    assert share["source"] == pytest.approx(1 - real[0] / positions[0])
    assert share["target"] == pytest.approx(1 - real[1] / positions[1])
    assert share["both"] == pytest.approx(1 - sum(real) / sum(positions))
    total = batches.epoch_order.first_batch(3)
    valid = [batches[k].target_valid_BT for k in range(total)]
    assert sum(v.sum() for v in valid) / total == pytest.approx(batches.statistics()["tokens"], rel=0.04)
    assert 1 - sum(v.sum() for v in valid) / sum(v.size for v in valid) == pytest.approx(share["target"], abs=0.02)


def test_batch_k_depends_on_data_seed_and_k_alone():
    def fresh(seed=1):
        return CONFIGS[0].batches(CAPTIONS, seed=seed)

    walked = fresh()
    first = [walked[k] for k in range(120)]
    for k in (119, 3, 64):
        for other in (fresh(), pickle.loads(pickle.dumps(walked)), walked):
            np.testing.assert_array_equal(other[k].label_BT, first[k].label_BT)
            np.testing.assert_array_equal(other[k].source_BS, first[k].source_BS)
    assert not all(np.array_equal(fresh(2)[k].label_BT, first[k].label_BT) for k in range(4))


@pytest.mark.parametrize("config", [Buckets(tokens=2048, max_shapes=5), Packing(length=64, tokens=4096)], ids=str)
@pytest.mark.parametrize("divisor", [1, 6, 16])
def test_rows_divide_and_keep_to_the_budget(config, divisor):
    batches = config.batches(CAPTIONS, divisor=divisor)
    for k in range(30):
        rows, length = batches[k].label_BT.shape
        assert rows % divisor == 0 and rows % config.row_multiple == 0
        assert rows * length <= config.tokens


def test_fitted_shapes_are_few_and_pad_less_than_one_length_for_both_sides():
    columns = like_captions(8000, seed=3)
    fitted = Buckets(tokens=2048).batches(columns)
    square = Buckets(tokens=2048, lengths=(8, 12, 16, 20, 24, 32, 40, 48, 61)).batches(columns)
    assert fitted.statistics()["shapes"] <= 10
    assert _padding(fitted)["target"] < 0.1 < _padding(square)["target"]
    assert _padding(fitted)["both"] < _padding(square)["both"]
    for bucket in fitted.buckets:
        assert len(bucket.bins) >= bucket.rows, "a batch of this shape would show an example twice"
        for column, room in ((columns["source"], bucket.source), (columns["target"], bucket.target)):
            assert np.all(column.lengths[bucket.bins.flat] < room)


def test_fitted_shapes_reach_the_longest_example_and_not_beyond_the_limit():
    shapes = fit_shapes(np.array([3, 5, 9]), np.array([4, 4, 7]), 10, lambda s, t: np.ones(len(s)))
    assert shapes[-1] == (10, 8)
    assert max(fit_shapes(np.array([5]), np.array([251]), 4, lambda s, t: np.ones(len(s)))) == (6, 252)
    (bucket,) = Buckets(tokens=4096, max_length=31).batches(columns_of([30] * 200, [12] * 200)).buckets
    assert (bucket.source, bucket.target) == (31, 14)


def test_a_short_target_does_not_make_batches_of_endless_sources():
    columns = columns_of([200] * 64, [3] * 64)
    (bucket,) = Buckets(tokens=4096).batches(columns).buckets
    assert bucket.rows * bucket.source <= 2 * 4096


def test_fewer_examples_than_rows_make_full_batches():
    columns = columns_of([4, 5, 3], [4, 5, 3])
    for config in (Buckets(tokens=128), Packing(length=16, tokens=128)):
        batches = config.batches(columns)
        counts = Counter(i for k in range(6) for i in _example_indices(batches, k).flat.tolist())
        assert batches[0].label_BT.shape[0] >= 8
        assert max(counts.values()) - min(counts.values()) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=80), st.integers(0, 5))
def test_packing_puts_every_example_in_one_bin_that_holds_it(lengths, seed):
    source, target = np.array(lengths).T
    bins = pack(source, target, 24, 20, seed)
    assert sorted(bins.flat) == list(range(len(lengths)))
    for row in range(len(bins)):
        assert len(bins[row]) > 0
        assert source[bins[row]].sum() <= 24
        assert target[bins[row]].sum() <= 20


def test_packing_fills_well():
    batches = Packing(length=128, tokens=2048).batches(like_captions(4000))
    assert _padding(batches)["target"] < 0.06
    assert _padding(batches)["both"] < 0.06


def test_one_column_alone():
    for name, other in (("source", "target"), ("target", "source")):
        alone = {name: CAPTIONS[name]}
        for config in (Buckets(tokens=512), Packing(length=64, tokens=1024)):
            batches = config.batches(alone)
            batch = batches[5]
            assert set(_padding(batches)) == {name, "both"}
            assert (batch.source_BS is None, batch.label_BT is None) == (name == "target", name == "source")
            present = batch.source_BS if name == "source" else batch.label_BT
            assert present.size <= config.tokens
            assert getattr(batches.buckets[0], other) == 0


def test_long_examples_are_dropped_or_cut_and_counted():
    columns = columns_of([3, 40, 5, 6], [3, 4, 50, 6])
    for config in (Buckets(tokens=256, max_length=16), Packing(length=16, tokens=256)):
        dropped = config.batches(columns)
        assert (dropped.selected.dropped, dropped.selected.truncated, dropped.statistics()["examples"]) == (2, 0, 2)
        assert dropped.selected.token_counts == {"source": 4 + 7, "target": 4 + 7}
        cut = type(config)(**{**config.__dict__, "too_long": "truncate"}).batches(columns)
        assert (cut.selected.dropped, cut.selected.truncated, cut.statistics()["examples"]) == (0, 2, 4)
        rows = {
            i: (k, r) for k in range(4) for r in range(cut[k].label_BT.shape[0]) for i in _example_indices(cut, k)[r]
        }
        k, r = rows[1]
        place = int(np.flatnonzero(cut[k].source_BS[r] == 5)[0])
        assert cut[k].source_BS[r, place : place + 16].tolist() == [5, *[9] * 14, EOS]
        assert cut.selected.token_counts == {"source": 4 + 16 + 6 + 7, "target": 4 + 5 + 16 + 7}


@pytest.mark.parametrize("config", [Buckets(max_length=8), Packing(length=8)], ids=str)
def test_nothing_short_enough(config):
    with pytest.raises(UserError, match=r"none of the 2 examples .* maximum length of 8 .* shortest needs 11"):
        config.batches(columns_of([10, 20], [4, 4]))


@pytest.mark.parametrize("config", [Buckets(tokens=100, max_length=21), Packing(length=21, tokens=100)], ids=str)
def test_a_budget_too_small_for_the_longest_rows(config):
    with pytest.raises(UserError, match=r"100 tokens holds 4 rows of length 21.* raise tokens to 168 .* length to 12"):
        config.batches(columns_of([20] * 50, [20] * 50))
    with pytest.raises(UserError, match=r"multiples of 24 "):
        Buckets(tokens=400).batches(columns_of([20] * 50, [20] * 50), divisor=6)


def test_no_examples():
    with pytest.raises(UserError, match="the data set is empty"):
        Buckets().batches(columns_of([], []))


@pytest.mark.data
def test_multi30k_lengths(data_root):
    """The defaults on real captions, in characters / 4 for want of a tokenizer: few shapes, little padding."""
    import gzip

    sides = []
    for language in ("en", "de"):
        with gzip.open(data_root / f"multi30k_eng_deu/train.{language}.gz", "rt", encoding="utf-8") as lines:
            sides.append(np.array([len(line) // 4 for line in lines]))
    columns = {
        name: Ragged(np.zeros(0, np.uint16), np.concatenate([[0], np.cumsum(lengths)]))
        for name, lengths in zip(("source", "target"), sides, strict=True)
    }
    for tokens in (4096, 8192):
        numbers = Buckets(tokens=tokens).batches(columns).statistics()
        assert numbers["shapes"] <= 10
        assert numbers["padding_target"] < 0.12

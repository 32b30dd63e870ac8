"""Mixtures: one source a row, shares within 1.3 rows, seekable, the same on every number of hosts."""

import random

import jax
import numpy as np
import pytest

from jaxlm.data.batching.bucketing import Buckets, Packing
from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.batching.mixture import make_batches
from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.span_corruption import SpanCorruption
from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.mixed import Mixed, MixedOrder, Temperature, UniMax
from jaxlm.data.sources.text import TextFile
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS
from jaxlm.data.tokenizers.simple import Bytes
from jaxlm.errors import UserError


@pytest.mark.parametrize("sources", range(2, 13))
def test_closed_form(sources: int):
    """Every row has one source, no source's rows skip or repeat, and the shares stay within 1.3 rows."""
    draw = random.Random(sources)
    for _ in range(4):
        kind = draw.choice([lambda: max(draw.random(), 1e-4), lambda: 10 ** draw.uniform(-4, 0)])
        weights = np.array([[kind() for _ in range(sources - 1)] + [1e-4]])
        order, size = MixedOrder([0], weights), 3000
        source_N, index_N = order.rows(0, size)
        share_S = weights[0] / weights.sum()
        counts_NS = np.cumsum(source_N[:, None] == np.arange(sources), 0)
        assert (index_N == counts_NS[np.arange(size), source_N] - 1).all()
        assert np.abs(counts_NS - np.arange(1, size + 1)[:, None] * share_S).max() <= 1.3
        for first, count in ((1, 1), (17, 5), (2990, 10), (1234, 1)):  # any row without those before it
            part = order.rows(first, count)
            assert (part[0] == source_N[first : first + count]).all() and (
                part[1] == index_N[first : first + count]
            ).all()
        scaled = MixedOrder([0], weights * 7).rows(0, size)
        assert (scaled[0] == source_N).all()
        more = MixedOrder([0], np.append(weights, [[0.0]], 1)).rows(0, size)
        assert (more[0] == source_N).all() and (more[1] == index_N).all()


def test_equal_weights_go_round():
    assert MixedOrder([0], np.ones((1, 3))).rows(0, 6)[0].tolist() == [1, 2, 0, 1, 2, 0]
    assert MixedOrder([0], np.ones((1, 3))).rows(3 * 10**9, 3)[1].tolist() == [10**9] * 3


def test_stages():
    """A source that comes in later, and one that ends: the shares of each stage, no row skipped."""
    order = MixedOrder([0, 100, 300], np.array([[3.0, 1, 0], [0, 1, 1], [0, 1, 3]]))
    source_N, index_N = order.rows(0, 700)
    for start, stop, shares in ((0, 100, (0.75, 0.25, 0)), (100, 300, (0, 0.5, 0.5)), (300, 700, (0, 0.25, 0.75))):
        counts = np.bincount(source_N[start:stop], minlength=3)
        assert np.abs(counts - (stop - start) * np.array(shares)).max() <= 2
    for source in range(3):
        assert (index_N[source_N == source] == np.arange((source_N == source).sum())).all()
    part = order.rows(95, 300)
    assert (part[0] == source_N[95:395]).all() and (part[1] == index_N[95:395]).all()


def test_weights_by_size():
    tokens = np.array([100.0, 10_000.0])
    assert Temperature().weights(tokens).tolist() == [0.01, 1]
    assert Temperature(2).weights(tokens).tolist() == [0.1, 1]
    assert UniMax(4, 2000).weights(tokens).tolist() == [400, 1600]
    assert UniMax(4, 200).weights(tokens).tolist() == [100, 100]


@pytest.fixture
def mixture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, letter in (("a", "a"), ("b", "b"), ("c", "c")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{letter * 7}{number:03}\n" for number in range(60)))
    return Mixed(tuple(TextFile(f"{name}.txt") for name in "abc"), (6.0, 3.0, 1.0))


BATCHINGS = {
    "windows": Windows(20, 5, carry_state=False),
    "packing": Packing(24, tokens=120, row_multiple=5),
    "denoising": SpanCorruption(length=20, rows=5),
}


@pytest.mark.parametrize("name", BATCHINGS)
def test_batches(mixture, name: str):
    """A row has the text of one source; hosts make their rows of the same batch; shares follow weights."""
    stats = ReadStats()
    column = mixture.encode(Bytes().fit(iter(mixture)), stats)
    assert stats.kept == 180 == len(column)
    tokenizer = Bytes().fit(iter(mixture))
    columns = {"target": column, "symbol": Ragged.from_rows([[150, 151, 152, 153, 154]])}
    batches = make_batches(
        BATCHINGS[name], columns if name == "denoising" else {"target": column}, 3, tokenizer.special
    )
    letters = [0, 0, 0]
    for k in range(20):
        batch = batches[k]
        halves = [batches.host_part(k, host, 5) for host in range(5)]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *halves)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), joined, batch))
        for ids in batch.target_BT:
            text = tokenizer.decode([ids.tolist()])[0]
            present = [letter in text for letter in "abc"]
            assert sum(present) <= 1
            letters = [count + there for count, there in zip(letters, present, strict=True)]
    assert name == "denoising" or np.abs(np.array(letters) - [60, 30, 10]).max() <= 2
    statistics = batches.statistics()
    assert statistics["tokens"] <= statistics["positions"] and batches.row_multiple == 5
    table = batches.table(200)
    assert [round(row["weight"], 2) for row in table] == [0.6, 0.3, 0.1]
    assert "more than 4 epochs" in batches.describe(2000) and "more than" not in batches.describe(2)


def test_refusals(mixture):
    column = mixture.encode(Bytes().fit(iter(mixture)))
    for batching in (Windows(20, 5), Buckets()):
        with pytest.raises(UserError, match="of a mixture: each row has the text of one source"):
            make_batches(batching, {"target": column}, 0, OWN_SPECIAL_IDS)
    for weights in ((1.0, float("nan"), 1.0), (0.0, 0.0, 0.0), (1.0, 2.0), (1.0, -1.0, 2.0)):
        with pytest.raises(UserError, match="expected a number for each, 0 or more, not all 0"):
            Mixed(mixture.sources, weights)
    with pytest.raises(UserError, match="expected rising steps from 1"):
        Mixed(mixture.sources, (1.0, 1.0, 1.0), stages=((5, (1.0, 0.0, 0.0)), (2, (1.0, 0.0, 0.0))))

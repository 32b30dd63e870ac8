"""Span corruption and its inverse, prefix LM batches, and the attention mask of a prefix LM."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import ZOO, batch_of, examples, logits, one_by_one, params_of

from jaxlm.data.pretraining.span_corruption import PrefixLMWindows, SpanCorruption
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import BOS, EOS
from jaxlm.errors import UserError
from jaxlm.models.prefix_lm import PrefixLM

RNG = np.random.default_rng(0)
SENTINELS = np.arange(60, 80)
DOCUMENTS = [RNG.integers(4, 60, size) for size in (300, 0, 1, 500, 90)]
COLUMNS = {"target": Ragged.from_rows(DOCUMENTS), "symbol": Ragged.from_rows([SENTINELS])}
WHOLE = np.concatenate(DOCUMENTS)


def put_back(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text: each sentinel of the source replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target.tolist():
        if token in SENTINELS:
            assert token not in spans
            spans[token] = last = []
        else:
            last.append(token)
    assert [token for token in source.tolist() if token in SENTINELS] == list(spans) == SENTINELS[: len(spans)].tolist()
    return [token for place in source.tolist() for token in spans.get(place, [place])]


@pytest.mark.parametrize(
    "config",
    [SpanCorruption(), SpanCorruption(noise_density=0.5, mean_noise_span_length=1.5), SpanCorruption(64, 8, 0.3, 10)],
)
def test_a_span_comes_back(config):
    sizes = []
    for size in (2, 3, 4, 7, 20, 51, config.window_length):
        ids, noise = RNG.integers(4, 60, size), config.noise_counts(size)
        if noise[1] > len(SENTINELS):
            continue
        for _ in range(20):
            source, target = config.corrupt(ids, SENTINELS, RNG.random(size))
            assert put_back(source, target) == ids.tolist()
            assert len(target) == sum(noise) and len(source) == size - noise[0] + noise[1]
            assert source[0] not in SENTINELS and source[-1] in SENTINELS
            sizes += np.diff(np.flatnonzero(np.isin([*target, SENTINELS[0]], SENTINELS))).tolist() if size > 60 else []
    assert config.corrupt(ids[:1], SENTINELS, RNG.random(1))[0].tolist() == ids[:1].tolist()
    assert config.noise_counts(200) == (
        round(200 * config.noise_density),
        round(round(200 * config.noise_density) / config.mean_noise_span_length),
    )
    if sizes:
        assert np.mean(sizes) - 1 == pytest.approx(config.mean_noise_span_length, rel=0.15) and len(set(sizes)) > 3


def test_every_span_has_the_same_chance():
    """Of 5 removed tokens in 2 spans, the first is 1 to 4 long, each a quarter of the time."""
    config, ids = SpanCorruption(noise_density=0.25, mean_noise_span_length=2.5), np.arange(4, 24)
    assert config.noise_counts(20) == (5, 2)
    firsts = [
        np.flatnonzero(config.corrupt(ids, SENTINELS, RNG.random(20))[1] == SENTINELS[1])[0] - 1 for _ in range(2000)
    ]
    counts = np.bincount(firsts, minlength=5)[1:5]
    assert counts.sum() == 2000 and abs(counts - 500).max() < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_batches_of_spans():
    """A full row fills the source to its last place; an epoch shows the whole text; batch k depends on k alone."""
    config = SpanCorruption(32, 4)
    assert config.window_length == 34 and config.noise_counts(34) == (5, 2)
    assert SpanCorruption(512).window_length == 568 and sum(SpanCorruption(512).noise_counts(568)) + 1 == 114, (
        "the sizes of T5"
    )
    batches, again = config.batches(COLUMNS, 1), config.batches(COLUMNS, 1)
    seen = np.zeros(len(WHOLE), int)
    for k in reversed(range(batches.batches_per_epoch)):
        batch = batches[k]
        jax.tree.map(np.testing.assert_array_equal, batch, again[k])
        assert batch.source_BS.shape == (4, 32) and batch.target_BT.shape == (4, 8)
        for row in range(4):
            source, target = (
                batch.source_BS[row, batch.source_valid_BS[row]],
                batch.label_BT[row, batch.target_valid_BT[row]],
            )
            assert source[-1] == EOS == target[-1] and batch.target_BT[row, 0] == BOS
            ids = put_back(source[:-1], target[:-1])
            assert EOS not in ids
            if len(ids) > 6:
                (start,) = [at for at in range(len(WHOLE)) if WHOLE[at : at + len(ids)].tolist() == ids]
                seen[start : start + len(ids)] += 1
    assert (seen[6:-6] > 0).all()
    assert (batches[0].label_BT != batches[batches.batches_per_epoch].label_BT).any()


def test_rows_with_more_spans_than_sentinels():
    with pytest.raises(UserError, match=r"28 spans, and there are 20 sentinels"):
        SpanCorruption(512).batches(COLUMNS)


def test_batches_of_prefixes():
    """Source and target are a window of the documents with their ends, cut at one place for all rows."""
    config, stream = PrefixLMWindows(16, 4, prefix_steps=4), [i for text in DOCUMENTS for i in [*text, EOS]]
    batches, cuts = config.batches(COLUMNS, 2), set()
    for batch in (batches[k] for k in range(batches.batches_per_epoch)):
        cuts.add(batch.source_BS.shape[1] - 1)
        assert batch.source_BS.shape[1] + batch.target_BT.shape[1] == 17
        for row in range(4):
            source, labels = (
                batch.source_BS[row, batch.source_valid_BS[row]],
                batch.label_BT[row, batch.target_valid_BT[row]],
            )
            read = batch.target_BT[row, batch.target_valid_BT[row]]
            assert source[-1] == EOS and read.tolist() == [BOS, *labels[:-1]][: len(labels)]
            ids = [*source[:-1].tolist(), *labels.tolist()]
            assert any(stream[at : at + len(ids)] == ids for at in range(len(stream)))
    assert cuts == {4, 8, 12}


def test_the_attention_mask_of_a_prefix_lm():
    """Every token of the source sees the whole source, no token of it a target; targets see what is before them."""
    model, rows = ZOO["prefix_lm"].model, examples(3, 5, 5)
    params = jax.tree.map(jnp.asarray, params_of(model))
    batch = batch_of(rows, 6, 5)

    def features(batch):
        state = model.apply({"params": params}, batch, 0, method="start")
        tokens = jnp.concatenate([state.source_BS, jnp.asarray(batch.target_BT)], 1)
        valid = jnp.concatenate([state.source_valid_BS, jnp.asarray(batch.target_valid_BT)], 1)
        inner = model.model.clone(parent=None)
        return inner.apply({"params": params["model"]}, tokens, state.model_state, valid, 6, method="extend")[0]

    features = jax.jit(features)
    plain = np.asarray(features(batch))
    for at in range(5):
        source_BS = batch.source_BS.copy()
        source_BS[:, at] += 1
        moved = np.abs(np.asarray(features(batch.replace(source_BS=source_BS))) - plain).max(-1) > 1e-6
        assert moved[:, :5].all() and moved[:, 6:].all()
        target_BT = batch.target_BT.copy()
        target_BT[:, at] += 1
        moved = np.abs(np.asarray(features(batch.replace(target_BT=target_BT))) - plain).max(-1) > 1e-6
        assert not moved[:, : 6 + at].any() and moved[:, 6 + at :].all()


def test_a_prefix_lm_is_not_a_causal_one():
    """Reading both ways changes the numbers, with a cache as without; a recurrent network cannot."""
    model, batch = ZOO["prefix_lm"].model, batch_of(examples(3), 6, 6)
    causal = PrefixLM(model.model.clone(parent=None))
    both = np.asarray(logits(model, params_of(model), batch))
    np.testing.assert_allclose(
        one_by_one(model, params_of(model), batch)[batch.target_valid_BT],
        both[batch.target_valid_BT],
        rtol=1e-4,
        atol=1e-5,
    )
    assert np.abs(np.asarray(logits(causal, params_of(model), batch)) - both).max() > 1e-3
    with pytest.raises(UserError, match="RecurrentLM reads from left to right"):
        replace(ZOO["joined"].model, bidirectional_source=True).init(jax.random.key(0), batch)

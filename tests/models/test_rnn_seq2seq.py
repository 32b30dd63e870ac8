"""Recurrent sequence-to-sequence models: against their equations in NumPy, attention weights, and decoding."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from fixtures.zoo import SEQ2SEQ, VOCAB, batch_of, by_example, examples, logits, params_of, sharpened
from references.recurrent_oracle import Oracle, named_float64

from jaxlm.config.serialization import from_json, to_json
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.score import score_targets
from jaxlm.errors import UserError
from jaxlm.models.rnn_seq2seq import Seq2Seq
from jaxlm.nn.rnn.attention import AttentionScore, masked_softmax
from jaxlm.nn.rnn.cells import Elman
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.objectives.next_token import NextToken
from jaxlm.pytree import named_leaves

ROWS = examples(6, high=6)
BATCH = batch_of(ROWS, 8, 7)
ELMAN = Seq2Seq(VOCAB, 6, Recurrent(Elman(5), bidirectional=True), Recurrent(Elman(7)))
CASES = {
    "first": replace(ELMAN, context="first", tie_embeddings="none"),
    "first of the table's width": replace(ELMAN, context="first", width=7, tie_embeddings="target"),
    "every": replace(ELMAN, context="every"),
    "dot": replace(ELMAN, score="dot", encoder=Recurrent(Elman(7))),
    "scaled dot, feeding": replace(ELMAN, score="scaled_dot", encoder=Recurrent(Elman(7)), input_feeding=True),
    "general, coverage": replace(ELMAN, score="general", coverage=True, decoder=Recurrent(Elman(7), layers=2)),
    "additive": replace(ELMAN, score="additive"),
    "additive, before, coverage": replace(ELMAN, score="additive", attention_order="before", coverage=True),
    "additive, before, feeding": replace(ELMAN, score="additive", attention_order="before", input_feeding=True),
}
ATTENTIVE = {name: model for name, model in CASES.items() if model.context == "attention"}


@partial(jax.jit, static_argnums=0)
def attention(model, params, batch):
    return model.apply({"params": params}, batch, method="cross_attention_weights")


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(name):
    """Every logit and every attention weight of padded sources and targets, from the equations of the docstring."""
    model = CASES[name]
    params = params_of(model)
    found_BTV = np.asarray(logits(model, params, BATCH))
    weight_BTS = np.asarray(attention(model, params, BATCH)) if name in ATTENTIVE else None
    for row, example in enumerate(ROWS):
        oracle = Oracle(model, named_float64(params))
        expected_TV, weight_TS = oracle.read(example.source, example.target)
        t, s = len(example.target), len(example.source)
        np.testing.assert_allclose(found_BTV[row, :t], expected_TV, rtol=1e-5, atol=1e-5)
        if weight_BTS is not None:
            np.testing.assert_allclose(weight_BTS[row, :t, :s], weight_TS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coverage", [False, True])
@pytest.mark.parametrize("kind", ["dot", "scaled_dot", "general", "additive"])
def test_scores_against_numpy(kind, coverage):
    """score(h, m) for every pair of a query and a memory, one pair at a time."""
    rng = np.random.default_rng(0)
    width, memory_BSD = 4, rng.normal(size=(2, 5, 4 if "dot" in kind else 3)).astype(np.float32)
    query_BTD, covered_BS = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, width), (2, 5)))
    score = AttentionScore(kind, width, coverage)

    def run(module):
        return module(query_BTD, module.project_keys(memory_BSD), covered_BS[:, None] if coverage else None)

    shapes = jax.eval_shape(partial(score.init, method=run), jax.random.key(0)).get("params", {})
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    found_BTS = score.apply({"params": params}, method=run)
    w = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(params).items()}
    for b, t, s in np.ndindex(2, 3, 5):
        h, m, c = query_BTD[b, t], memory_BSD[b, s], covered_BS[b, s] if coverage else 0.0
        if kind == "additive":
            inner = h @ w["query/kernel"] + w["query/bias"] + m @ w["key/kernel"] + c * w.get("cover", 0.0)
            expected = w["vector"] @ np.tanh(inner)
        else:
            m = m @ w["key/kernel"] if kind == "general" else m
            expected = h @ m / (2.0 if kind == "scaled_dot" else 1.0) + c * w.get("cover", np.zeros(1))[0]
        np.testing.assert_allclose(found_BTS[b, t, s], expected, rtol=1e-5, atol=1e-5)


def test_attention_to_nothing_gives_zeros():
    """Weights sum to 1 over the valid positions; a row without one has zeros, and a finite gradient."""
    score_BTS = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    valid_BS = np.array([[True, False, True, True], [False] * 4])
    weight_BTS = masked_softmax(score_BTS, valid_BS)
    np.testing.assert_allclose(weight_BTS.sum(-1), [[1.0] * 3, [0.0] * 3], rtol=1e-6)
    assert (np.asarray(weight_BTS)[0, :, 1] == 0).all()
    grad_BTS = jax.grad(lambda score: (masked_softmax(score, valid_BS)[:, :, 0] ** 2).sum())(score_BTS)
    assert np.isfinite(grad_BTS).all() and (np.asarray(grad_BTS)[1] == 0).all() and abs(grad_BTS[0]).max() > 1e-3


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_weights(name):
    """They sum to 1 over the source for each target token; 0 for padding of either, anywhere in a row."""
    batch = batch_of(ROWS, 8, 7, "holes", "holes")
    weight_BTS = np.asarray(attention(ATTENTIVE[name], params_of(ATTENTIVE[name]), batch))
    np.testing.assert_allclose(weight_BTS.sum(-1), batch.target_valid_BT, atol=1e-6)
    assert (weight_BTS[~(batch.target_valid_BT[:, :, None] & batch.source_valid_BS[:, None])] == 0).all()
    plain = attention(ATTENTIVE[name], params_of(ATTENTIVE[name]), BATCH)
    for row, example in enumerate(ROWS):
        real = np.ix_([row], batch.target_valid_BT[row], batch.source_valid_BS[row])
        expected = plain[row, : len(example.target), : len(example.source)]
        np.testing.assert_allclose(weight_BTS[real][0], expected, atol=1e-5)


def test_coverage_with_zero_weight_changes_nothing():
    """With w = 0 the scan over the target equals the parallel computation."""
    covering = ATTENTIVE["general, coverage"]
    params = dict(params_of(covering))
    params["scores"] = params["scores"] | {"cover": np.zeros(1, np.float32)}
    actual, expected = (logits(m, params, BATCH) for m in (covering, replace(covering, coverage=False)))
    valid_BT = BATCH.target_valid_BT
    np.testing.assert_allclose(by_example(actual, valid_BT), by_example(expected, valid_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("every", marks=pytest.mark.slow), "additive, before, coverage"])
def test_beam_and_greedy_search(name):
    """One beam is greedy search; the score of a hypothesis is that of forced decoding."""
    model, limit_B = CASES[name], np.full(len(ROWS), 5)
    params = sharpened(params_of(model), 4)
    bos_B1, true_B1 = np.full((len(ROWS), 1), 2, np.int32), np.ones((len(ROWS), 1), bool)
    source = BATCH.replace(target_BT=None, target_valid_BT=None, label_BT=None)
    request = DecodeRequest(source, bos_B1, true_B1, limit_B)
    greedy = generate(model, params, request, GenerationConfig(5))
    beams = (Beam(size, length_penalty_kind="none", at_max_length="keep") for size in (1, 4))
    one, four = (beam_search(model, params, request, BeamSearchConfig(5, beam=beam)) for beam in beams)
    np.testing.assert_array_equal(one.tokens_BNT[:, 0], greedy.tokens_BT)
    assert len(np.unique(greedy.tokens_BT)) > 4
    label_BT = np.asarray(four.tokens_BNT[:, 0])
    valid_BT = np.arange(5)[None] < np.asarray(four.length_BN)[:, :1]
    target_BT = np.concatenate([bos_B1, label_BT[:, :-1]], 1)
    batch = source.replace(target_BT=target_BT, target_valid_BT=valid_BT, label_BT=label_BT)
    scored = score_targets(model, params, batch)
    np.testing.assert_allclose(scored.logprob_B, four.logprob_BN[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param("dot", marks=pytest.mark.slow), "additive, before, coverage"])
def test_scheduled_sampling(name):
    """With a key and a rate near 1 every token but the first is the model's own prediction; without a key, none;
    in between, some."""
    model = replace(CASES[name], scheduled_sampling=1 - 1e-6)
    params, batch = params_of(model), batch_of(ROWS, 8, 7, "right", "holes")

    def run(rate, key, batch=batch):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        return np.asarray(replace(model, scheduled_sampling=rate).apply({"params": params}, batch, rngs=rngs))

    plain_BTV = run(1 - 1e-6, None)
    np.testing.assert_array_equal(plain_BTV, run(0.0, 5))
    said_BT, own_BT = plain_BTV.argmax(2), batch.target_BT.copy()
    for row, valid in enumerate(batch.target_valid_BT):
        places = np.flatnonzero(valid)
        own_BT[row, places[1:]] = said_BT[row, places[:-1]]
    valid_BT = batch.target_valid_BT
    expected = by_example(run(0.0, None, batch.replace(target_BT=own_BT)), valid_BT)
    np.testing.assert_allclose(by_example(run(1 - 1e-6, 5), valid_BT), expected, rtol=1e-5, atol=1e-5)
    some = by_example(run(0.5, 5), valid_BT)
    assert abs(some - expected).max() > 1e-3 and abs(some - by_example(plain_BTV, valid_BT)).max() > 1e-3


def test_scheduled_sampling_has_a_gradient():
    """With sampling, dropout and a scan the loss is finite, and every parameter has a gradient."""
    model = replace(CASES["additive, before, feeding"], scheduled_sampling=0.3, dropout=0.2, coverage=True)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: NextToken()(model, p, BATCH, jax.random.key(0)).total))(
        params_of(model)
    )
    assert np.isfinite(loss)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_dropout_is_on_with_a_key():
    model = replace(CASES["dot"], dropout=0.3)
    run = jax.jit(lambda key: model.apply({"params": params_of(model)}, BATCH, rngs={"dropout": key}))
    a, b = (run(jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(a, run(jax.random.key(0)))
    assert abs(a - b).max() > 1e-2
    np.testing.assert_array_equal(
        logits(model, params_of(model), BATCH), logits(replace(model, dropout=0.0), params_of(model), BATCH)
    )


@pytest.mark.parametrize(
    "options, locked",
    [({"weight_drop": 0.5}, True), ({"dropout": 0.5, "variational": True}, True), ({"dropout": 0.5}, False)],
    ids=str,
)
def test_masks_that_hold_for_all_positions(options, locked):
    """A decoder that reads one token repeatedly converges, unless its mask changes from step to step."""
    decoder = Recurrent(Elman(6), layers=2, **options)
    model = replace(ELMAN, decoder=decoder, coverage=True)  # a step at a time
    params = dict(params_of(model))
    params["decoder"] = jax.tree.map(lambda leaf: 0.3 * leaf, params["decoder"])
    params["scores"] = params["scores"] | {"cover": np.zeros(1, np.float32)}
    batch = batch_of(examples(2, low=40, high=40), 40, 40)
    batch = batch.replace(target_BT=np.full_like(batch.target_BT, 5))
    found_BTV = model.apply({"params": params}, batch, rngs={"dropout": jax.random.key(0)})
    moved = abs(found_BTV[:, -1] - found_BTV[:, -2]).max()
    assert moved < 1e-5 if locked else moved > 1e-3
    assert abs(found_BTV[:, -1] - logits(model, params, batch)[:, -1]).max() > 1e-3


def test_one_object_is_two_networks():
    """Encoder and decoder made of one `Recurrent`, or of one cell, do not share parameters; the config survives."""
    one, cell = Recurrent(Elman(6)), Elman(6)
    twice = Seq2Seq(VOCAB, 6, one, one, score="dot")
    assert twice == Seq2Seq(VOCAB, 6, Recurrent(Elman(6)), Recurrent(cell), score="dot")
    assert from_json(to_json(twice)) == twice
    for model in (twice, replace(twice, encoder=Recurrent(cell), decoder=Recurrent(cell))):
        params = params_of(model)
        shapes = [jax.tree.map(np.shape, params[side]) for side in ("encoder", "decoder")]
        assert shapes[0] == shapes[1] and jax.tree.leaves(shapes[0])


@pytest.mark.parametrize(
    "model, match",
    [
        (replace(SEQ2SEQ, context="first", input_feeding=True, coverage=True), "input_feeding, coverage"),
        (replace(SEQ2SEQ, context="every", attention_order="before"), 'attention_order: only context="attention"'),
        (replace(ELMAN, score="dot"), "width 10 with decoder states of width 7"),
        (replace(SEQ2SEQ, decoder=Recurrent(Elman(8), bidirectional=True)), "bidirectional decoder"),
    ],
)
def test_options_that_contradict_each_other(model, match):
    with pytest.raises(UserError, match=match):
        jax.eval_shape(model.init, jax.random.key(0), BATCH)


def test_unsupported_batches():
    params = params_of(SEQ2SEQ)
    with pytest.raises(UserError, match="no source"):
        logits(SEQ2SEQ, params, BATCH.replace(source_BS=None))
    with pytest.raises(UserError, match="Buckets, not Packing"):
        logits(SEQ2SEQ, params, BATCH.replace(source_segment_BS=np.ones_like(BATCH.source_BS)))
    with pytest.raises(UserError, match='context="every" has no attention'):
        attention(CASES["every"], params_of(CASES["every"]), BATCH)

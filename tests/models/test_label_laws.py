"""The laws of all taggers and classifiers: padding and batch mates leave no trace; sharded is unsharded."""

from functools import partial
from itertools import product
from typing import Any

import jax
import numpy as np
import pytest
from fixtures.zoo_labels import CLASSIFIERS, LABELS, TAGGERS, ZOO, batch_of, params_of, texts

from jaxlm.data.tokenizers.base import UNK
from jaxlm.distributed.sharding import data_mesh, replicated_sharding, row_sharding
from jaxlm.errors import UserError
from jaxlm.losses import Loss
from jaxlm.objectives.labels import SequenceClassification, TokenClassification
from jaxlm.types import Batch, Params

ROWS = texts(8)
TIGHT = 6
"""Positions of the longest text, EOS included."""


OTHERS = sorted(set(ZOO) - {"tagger", "bag"})


@pytest.fixture(params=ZOO)
def name(request) -> str:
    return request.param


@partial(jax.jit, static_argnums=0)
def logits(model: Any, params: Params, batch: Batch) -> jax.Array:
    return model.apply({"params": params}, batch)


@partial(jax.jit, static_argnums=0)
def best(model: Any, params: Params, batch: Batch) -> jax.Array:
    return model.apply({"params": params}, batch, method="predict_labels")


@partial(jax.jit, static_argnums=(0, 1))
def loss_and_gradient(model: Any, objective: Any, params: Params, batch: Batch) -> tuple[Loss, Params]:
    def total(params):
        loss = objective(model, params, batch, None)
        return loss.total, loss

    grads, loss = jax.grad(total, has_aux=True)(params)
    return loss, grads


def objective_of(name: str) -> Any:
    return TokenClassification() if name in TAGGERS else SequenceClassification()


def said(name: str, batch: Batch) -> np.ndarray:
    """The logits of the words (and EOS) of all rows, or of the rows."""
    actual = np.asarray(logits(ZOO[name], params_of(ZOO[name]), batch))
    actual = actual[batch.source_valid_BS] if name in TAGGERS else actual
    assert actual.dtype == np.float32 and actual.shape[-1] == LABELS
    assert np.isfinite(actual).all() and actual.std() > 0.01
    return actual


@pytest.mark.parametrize("layout", ["left", "holes"])
def test_padding_leaves_no_trace(name, layout):
    np.testing.assert_allclose(said(name, batch_of(ROWS, layout=layout)), said(name, batch_of(ROWS)), 1e-5, 1e-5)


def test_batch_mates_leave_no_trace(name):
    expected = np.asarray(logits(ZOO[name], params_of(ZOO[name]), batch_of(ROWS)))
    order = np.random.default_rng(0).permutation(len(ROWS))[:3]
    batch = batch_of([ROWS[row] for row in order], TIGHT)
    rows = expected[order]
    rows = rows[:, :TIGHT][batch.source_valid_BS] if name in TAGGERS else rows
    np.testing.assert_allclose(said(name, batch), rows, 1e-5, 1e-5)


def test_loss_and_gradients_do_not_depend_on_padding(name):
    """Nor sums and counts; the random padding has no gradient."""
    model, params = ZOO[name], params_of(ZOO[name])
    expected, expected_grads = loss_and_gradient(model, objective_of(name), params, batch_of(ROWS))
    actual, grads = loss_and_gradient(model, objective_of(name), params, batch_of(ROWS, layout="holes"))
    assert expected.count == (sum(len(row.words) for row in ROWS) if name in TAGGERS else len(ROWS))
    assert expected.total > 0
    for (path, grad), like in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        assert np.abs(like).max() > 0, path
        np.testing.assert_allclose(grad, like, 1e-4, 1e-5, err_msg=jax.tree_util.keystr(path))
    np.testing.assert_allclose(jax.tree.leaves(actual), jax.tree.leaves(expected), 1e-5)


@pytest.mark.parametrize("name", ["tagger", "bag", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_sharded_is_unsharded(name):
    """Eight rows on eight devices: the same sums and the same gradients."""
    model, params, mesh = ZOO[name], params_of(ZOO[name]), data_mesh(8)
    expected, expected_grads = loss_and_gradient(model, objective_of(name), params, batch_of(ROWS))
    placed = jax.device_put(params, replicated_sharding(mesh)), jax.device_put(batch_of(ROWS), row_sharding(mesh))
    actual, grads = loss_and_gradient(model, objective_of(name), *placed)
    np.testing.assert_allclose(jax.tree.leaves(actual), jax.tree.leaves(expected), 1e-5)
    for grad, like in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, like, 1e-4, 1e-5)


@pytest.mark.parametrize("name", TAGGERS)
def test_the_best_labels(name):
    """One per word for any padding, -1 elsewhere and at EOS; without a CRF each is the most likely one."""
    model, params, batch = ZOO[name], params_of(ZOO[name]), batch_of(ROWS)
    label_BS, word_BS = np.asarray(best(model, params, batch)), batch.token_label_BS >= 0
    assert ((label_BS >= 0) == word_BS).all() and label_BS.max() < LABELS
    holes = batch_of(ROWS, layout="holes")
    np.testing.assert_array_equal(np.asarray(best(model, params, holes))[holes.token_label_BS >= 0], label_BS[word_BS])
    if not model.crf:
        likeliest_BS = np.asarray(logits(model, params, batch)).argmax(2)
        np.testing.assert_array_equal(label_BS[word_BS], likeliest_BS[word_BS])


@pytest.mark.parametrize("name", ["tagger", "bag"])
def test_the_loss_is_that_of_the_definition(name):
    """Smoothing e: (1 - e) of the label's -log p and e of the mean over all labels; -1 is not counted."""
    model, params, batch = ZOO[name], params_of(ZOO[name]), batch_of(ROWS)
    objective = TokenClassification(0.1) if name == "tagger" else SequenceClassification(0.1)
    label = np.array(batch.token_label_BS if name == "tagger" else batch.class_B)
    label[1] = -1
    loss, _ = loss_and_gradient(model, objective, params, batch.replace(token_label_BS=label, class_B=label))
    log_p = np.asarray(jax.nn.log_softmax(logits(model, params, batch)))[label >= 0]
    picked = log_p[np.arange(len(log_p)), label[label >= 0]].sum()
    np.testing.assert_allclose(loss.total, -0.9 * picked - 0.1 * log_p.mean(-1).sum(), rtol=1e-5)
    np.testing.assert_allclose(loss.nll, -picked, rtol=1e-5)
    assert loss.count == len(log_p)


def test_packed_is_alone():
    """Two texts packed in a row, with segment numbers, give the same results as in rows of their own."""
    model, params = ZOO["tagger"], params_of(ZOO["tagger"])
    pair = texts(2, 3, 3)
    single = batch_of(pair, 4)
    joined = jax.tree.map(lambda x: x.reshape(1, 8, *x.shape[2:]) if x.ndim > 1 else x[:1], single)
    packed = joined.replace(source_segment_BS=np.array([[1] * 4 + [2] * 4], np.int32))
    expected_BSC = np.asarray(logits(model, params, single))
    np.testing.assert_allclose(np.asarray(logits(model, params, packed))[0], np.concatenate(expected_BSC), 1e-5, 1e-5)
    for other in ("tagger_crf", "last", "bag"):
        with pytest.raises(UserError, match="use Buckets"):
            jax.eval_shape(partial(logits, ZOO[other]), params_of(ZOO[other]), packed)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_order_of_words(name):
    """A bag of words ignores it; all others do not."""
    model, params, batch = ZOO[name], params_of(ZOO[name]), batch_of(texts(4, 4, 5))
    turned = batch.replace(
        source_BS=batch.source_BS.copy(),
        source_valid_BS=batch.source_valid_BS,
        character_BSW=batch.character_BSW.copy(),
    )
    for field, own in ((turned.source_BS, batch.source_BS), (turned.character_BSW, batch.character_BSW)):
        field[:, :4] = own[:, 3::-1]
    difference = np.abs(np.asarray(logits(model, params, turned)) - np.asarray(logits(model, params, batch))).max()
    assert difference < 1e-6 if name == "bag" else difference > 1e-3


def test_word_dropout_and_unknown_words():
    """With a key some words are read as UNK and give its result; without one none is."""
    params, batch, seen = jax.device_put(params_of(ZOO["tagger_plain"])), batch_of(texts(1, 5, 5)), slice(0, 5)
    model = ZOO["tagger_plain"].clone(word_dropout=0.5, parent=None)
    plain = np.asarray(logits(ZOO["tagger_plain"], params, batch))
    np.testing.assert_array_equal(np.asarray(logits(model, params, batch)), plain)

    @jax.jit
    @jax.vmap
    def dropped(key):
        return model.apply({"params": params}, batch, rngs={"dropout": key})[0, seen]

    every = np.unique(np.asarray(dropped(jax.random.split(jax.random.key(0), 400))).round(5), axis=0)
    masks = np.array(list(product([False, True], repeat=5)))
    ids = np.repeat(batch.source_BS, len(masks), 0)
    ids[:, seen] = np.where(masks, UNK, ids[:, seen])
    all_ways = batch.replace(source_BS=ids, source_valid_BS=np.repeat(batch.source_valid_BS, len(masks), 0))
    expected = np.asarray(logits(model, params, all_ways))[:, seen]
    np.testing.assert_allclose(every, np.unique(expected.round(5), axis=0), atol=1e-4)  # each way occurs, no other


def test_errors():
    batch = batch_of(ROWS)
    with pytest.raises(UserError, match="WordsWithChars"):
        jax.eval_shape(partial(logits, ZOO["tagger"]), params_of(ZOO["tagger"]), batch.replace(character_BSW=None))
    with pytest.raises(UserError, match="pooling 'sum'.*attention"):
        jax.eval_shape(ZOO["last"].clone(pooling="sum", parent=None).init, jax.random.key(0), batch)
    with pytest.raises(UserError, match="smoothing 0.1 with a CRF"):
        TokenClassification(0.1)(ZOO["tagger_crf"], params_of(ZOO["tagger_crf"]), batch, None)

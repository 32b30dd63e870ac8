"""The encoder-only Transformer: sizes, invariances and loss; its values are checked in tests/huggingface."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import VOCAB, batch_of, by_example, examples, logits, packed, params_of

from jaxlm.models.encoder import Encoder
from jaxlm.models.properties import abstract_params
from jaxlm.objectives.masked_lm import MaskedLM, features_and_nsp_logits

MODEL = Encoder(VOCAB, 8, 2, 12, 2, max_length=20, dropout=0.0, attention_dropout=0.0)
PAIRS = replace(MODEL, nsp_head=True)
ROWS = examples(6)


def alone(model: Encoder, layout: str = "right") -> np.ndarray:
    batch = batch_of(ROWS, 8, 8, layout)
    return by_example(logits(model, params_of(model), batch), batch.source_valid_BS)


@pytest.mark.parametrize("size, count", [((768, 12, 3072, 12), 109_514_298), ((1024, 16, 4096, 24), 335_174_458)])
def test_the_published_sizes(size, count):
    """BERT base and large, uncased, with the masked language model head."""
    model = Encoder(30_522, *size)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model))) == count
    width, both = size[0], abstract_params(replace(model, nsp_head=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(both)) == count + width * (width + 1) + 2 * (width + 1)


@pytest.mark.parametrize(
    "model", [MODEL, replace(MODEL, norm="pre", scan=True, position_offset=2)], ids=["bert", "pre"]
)
def test_padding_and_batch_mates_leave_no_trace(model):
    for layout in ("left", "holes"):
        np.testing.assert_allclose(alone(model, layout), alone(model), rtol=1e-5, atol=1e-5)
    batch = packed([ROWS[:2], ROWS[2:3], ROWS[3:]], 15)
    actual = by_example(logits(model, params_of(model), batch), batch.source_valid_BS)
    np.testing.assert_allclose(actual, alone(model), rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_masked_tokens():
    """By hand; next sentence prediction adds its loss, weighted by its share of the positions."""
    batch, params = batch_of(ROWS, 8, 8), jax.tree.map(jnp.asarray, params_of(PAIRS))
    label_BS = np.where(batch.source_valid_BS & (np.arange(8) % 2 == 0), batch.source_BS, -1)
    hidden = batch.replace(token_label_BS=label_BS, token_type_BS=(np.arange(8) > 3) * np.ones((6, 1), np.int32))
    loss = jax.jit(lambda batch: MaskedLM(0.25)(PAIRS, params, batch, None))
    actual = loss(hidden)
    logprob_BSV = np.asarray(jax.nn.log_softmax(logits(PAIRS, params, hidden)))
    asked = label_BS >= 0
    np.testing.assert_allclose(actual.total, -logprob_BSV[asked, label_BS[asked]].sum(), rtol=1e-5)
    assert actual.count == asked.sum() and actual.nll == actual.total
    class_B = np.array([0, 1, 1, 0, 1, 0], np.int32)
    both = loss(hidden.replace(class_B=class_B))
    reading = jax.jit(lambda batch: PAIRS.apply({"params": params}, batch, method=features_and_nsp_logits))
    features_BSD, told_BC = reading(hidden.replace(class_B=class_B))
    first_BD = np.asarray(features_BSD)[np.arange(6), np.asarray(hidden.source_valid_BS).argmax(1)]
    pooler, last = params_of(PAIRS)["pooler"], params_of(PAIRS)["next_sentence"]
    said_BC = np.tanh(first_BD @ pooler["kernel"] + pooler["bias"]) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(told_BC, said_BC, rtol=1e-4, atol=1e-5)
    expected = -np.asarray(jax.nn.log_softmax(said_BC))[np.arange(6), class_B].sum()
    np.testing.assert_allclose(both.total - actual.total, 0.25 * 8 * expected, rtol=1e-4)
    assert both.nll == actual.nll and both.count == actual.count


def test_token_types_are_added():
    """Each type has a vector, and a row without types has type 0."""
    batch, params = batch_of(ROWS, 8, 8), jax.tree.map(jnp.asarray, params_of(MODEL))
    plain = logits(MODEL, params, batch)
    zero, one = (logits(MODEL, params, batch.replace(token_type_BS=np.full((6, 8), kind))) for kind in (0, 1))
    np.testing.assert_array_equal(zero, plain)
    shift_1D = params["type_embedding"][1:] - params["type_embedding"][:1]
    moved = {**params, "embedding": params["embedding"] + shift_1D}
    features = jax.jit(lambda params, batch: MODEL.apply({"params": params}, batch, method="features"))
    feature = features(params, batch.replace(token_type_BS=np.ones((6, 8), int))), features(moved, batch)
    real = np.asarray(batch.source_valid_BS)
    np.testing.assert_allclose(np.asarray(feature[0])[real], np.asarray(feature[1])[real], rtol=1e-4, atol=1e-5)
    assert np.abs(one - plain).max() > 1e-3


def test_padding_has_no_position():
    """A row may be longer than the position table; a token beyond the table has no logits that look right."""
    batch, params = batch_of(ROWS, 8, 8), params_of(MODEL)
    for size, position_offset in ((max(len(row.source) for row in ROWS), 0), (4, 2)):
        table = params["position"]["table"][: size + position_offset]
        short = replace(MODEL, max_length=size + position_offset, position_offset=position_offset)
        full = replace(MODEL, position_offset=position_offset)
        actual = np.asarray(logits(short, params | {"position": {"table": table}}, batch))
        expected = np.asarray(logits(full, params, batch))
        fits_B = batch.source_valid_BS.sum(1) <= size
        fits_BS = batch.source_valid_BS & fits_B[:, None]
        np.testing.assert_allclose(actual[fits_BS], expected[fits_BS], rtol=1e-5)
        assert np.isnan(actual[batch.source_valid_BS & ~fits_B[:, None]]).all() and fits_B.any()

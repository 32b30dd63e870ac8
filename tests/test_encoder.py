"""The encoder-only Transformer: sizes, what leaves no trace, loss; tests/test_huggingface.py has its numbers."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from zoo import VOCAB, batch_of, by_example, examples, logits, packed, params_of

from jaxlm.errors import UserError
from jaxlm.models.encoder import Encoder
from jaxlm.workdir import abstract_params

MODEL = Encoder(VOCAB, 8, 2, 12, 2, max_length=20, dropout=0.0, attention_dropout=0.0)
ROWS = examples(6)


def alone(model: Encoder, layout: str = "right") -> np.ndarray:
    batch = batch_of(ROWS, 8, 8, layout)
    return by_example(logits(model, params_of(model), batch), batch.source_valid_BS)


@pytest.mark.parametrize("size, count", [((768, 12, 3072, 12), 109_514_298), ((1024, 16, 4096, 24), 335_174_458)])
def test_the_published_sizes(size, count):
    """BERT base and large, uncased, with the head that fills gaps."""
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(Encoder(30_522, *size)))) == count


@pytest.mark.parametrize("model", [MODEL, replace(MODEL, norm="pre", scan=True, first_position=2)], ids=["bert", "pre"])
def test_neither_padding_nor_neighbours_leave_a_trace(model):
    for layout in ("left", "holes"):
        np.testing.assert_allclose(alone(model, layout), alone(model), rtol=1e-5, atol=1e-5)
    batch = packed([ROWS[:2], ROWS[2:3], ROWS[3:]], 15)
    found = by_example(logits(model, params_of(model), batch), batch.source_valid_BS)
    np.testing.assert_allclose(found, alone(model), rtol=1e-5, atol=1e-5)


def test_the_loss_is_of_what_was_asked():
    batch, params = batch_of(ROWS, 8, 8), params_of(MODEL)
    label_BS = np.where(batch.source_valid_BS & (np.arange(8) % 2 == 0), batch.source_BS, -1)
    found = MODEL.apply({"params": params}, batch.replace(label_BS=label_BS), method="loss")
    logprob_BSV = np.asarray(jax.nn.log_softmax(logits(MODEL, params, batch)))
    asked = label_BS >= 0
    np.testing.assert_allclose(found.total, -logprob_BSV[asked, label_BS[asked]].sum(), rtol=1e-5)
    assert found.count == asked.sum()


def test_a_source_beyond_its_positions():
    with pytest.raises(UserError, match="source of 8 tokens, but positions reach 5"):
        replace(MODEL, max_length=7, first_position=2).init(jax.random.key(0), batch_of(ROWS, 8, 8))

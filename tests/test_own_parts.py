"""Parts of one's own: a plain Linen module that keeps the contract, and pairings that are refused by name."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import (
    BagOfWords,
    Bytes,
    Classification,
    Decoder,
    Experiment,
    LanguageModeling,
    MiniLang,
    NextToken,
    Regression,
    SequenceClassification,
    TextFile,
    TokenClassification,
)
from jaxlm.errors import UserError
from jaxlm.models.properties import dummy_batch, forward_method, init_params
from jaxlm.nn.weights.weight_formats import PRECISIONS
from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params


class PlainLM(nn.Module):
    """A sum of embeddings, without `__call__`, in layers of Flax."""

    vocab: int

    def setup(self):
        self.embed = nn.Embed(self.vocab, 16)
        self.hidden = nn.Dense(16)
        self.out = nn.Dense(self.vocab)

    def start(self, batch, capacity):
        return jnp.zeros((len(batch.target_BT), 16))

    def extend(self, tokens_BT, state, valid_BT):
        sum_BTD = state[:, None] + jnp.cumsum(jnp.where(valid_BT[..., None], self.embed(tokens_BT), 0), axis=1)
        return jnp.tanh(self.hidden(sum_BTD)), sum_BTD[:, -1]

    def readout(self, features):
        return self.out(features)


def logits(model, params):
    return np.asarray(model.apply({"params": params}, dummy_batch(), method=forward_method(model)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_plain_module_without_call_keeps_its_logits_in_every_precision(precision):
    model = PlainLM(260)
    params = init_params(model, jax.random.key(0), dummy_batch())
    narrow = prepare_params(*cast_for_inference(model, params, precision))
    tolerance = 1e-5 if precision == "float32" else 0.05
    np.testing.assert_allclose(logits(model, narrow), logits(model, params), atol=tolerance)


TEXT, PAIRS = TextFile("x.txt"), MiniLang("test", 2)
LM = LanguageModeling(TEXT, TEXT, TEXT)
CLASSES = Classification(PAIRS, PAIRS, PAIRS, labels=("a", "b"))


@pytest.mark.parametrize(
    ("task", "model", "objective", "message"),
    [
        (CLASSES, BagOfWords(260, 2, 8), NextToken(), "NextToken learns from the column 'target'.*Classification have "
         "source, class: set objective=SequenceClassification"),
        (LM, PlainLM(260), SequenceClassification(), "column 'class'.*LanguageModeling have target: set "
         r"objective=NextToken\(\)"),
        (CLASSES, BagOfWords(260, 2, 8), TokenClassification(), "column 'label'"),
        (CLASSES, BagOfWords(260, 2, 8), Regression(), "column 'number'"),
        (LM, BagOfWords(260, 2, 8), NextToken(), "NextToken calls start, extend, readout, and the model BagOfWords has "
         "no start, extend, readout"),
        (CLASSES, PlainLM(260), SequenceClassification(), "calls __call__, and the model PlainLM has no __call__"),
    ],
    ids=["class_by_token", "text_by_class", "tags", "number", "no_contract", "no_call"],
)  # fmt: skip
def test_a_wrong_pairing_is_refused_by_name(task, model, objective, message):
    experiment = Experiment(task, model, Bytes(), objective=objective)
    with pytest.raises(UserError, match=message):
        experiment.check_parts()


def test_other_pairings_are_not_judged():
    Experiment(LM, Decoder(260, 8, 2, 8, 1), Bytes()).check_parts()
    own = dataclasses.make_dataclass("Own", [], frozen=True)()
    Experiment(CLASSES, BagOfWords(260, 2, 8), Bytes(), objective=own).check_parts()

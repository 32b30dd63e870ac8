"""`predict --jsonl --attention`: what each piece of an answer looked at, and who cannot tell."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures.cli_runs import command  # noqa: F401 (a fixture)
from fixtures.tiny_run import EXPERIMENT, LSTM, MODEL

from jaxlm.distributed.sharding import data_mesh
from jaxlm.models.prefix_lm import PrefixLM
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.nn.rnn import cells
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.training.loop import train

SOURCE = b"a b c\n\nh\n"


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Eight take twice as long to compile for."""
    monkeypatch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))


@pytest.mark.parametrize("model", [pytest.param(LSTM, marks=pytest.mark.slow), MODEL], ids=["lstm", "transformer"])
def test_attention_of_answers(tmp_path, command, model):  # noqa: F811
    """A row a target piece, a column a source piece, each row sums to one; a blank line looked at nothing."""
    train(replace(EXPERIMENT, model=model, steps=2), tmp_path / "run")
    found = command("predict", tmp_path / "run", "--jsonl", "--attention", stdin=SOURCE)
    assert found.code == 0, found.err
    records = [json.loads(line) for line in found.lines]
    for record, pieces in zip(records, (["a", "b", "c", "</s>"], [], ["h", "</s>"]), strict=True):
        looked = record["attention"]
        assert looked["source"] == pieces
        weights = np.array(looked["weights"]).reshape(len(looked["target"]), len(pieces))
        np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-3)
    plain = command("predict", tmp_path / "run", "--jsonl", stdin=SOURCE)
    for with_it, without in zip(records, map(json.loads, plain.lines), strict=True):
        assert {key: with_it[key] for key in without} == without
    page = command("report", tmp_path / "run", "--attention", "a b c", "--num-examples", 0)
    assert page.code == 0, page.err
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") >= 3


def test_who_cannot_tell(tmp_path, command):  # noqa: F811
    model = PrefixLM(RecurrentLM(MODEL.vocab, 8, Recurrent(cells.LSTM(8))))
    train(replace(EXPERIMENT, model=model, steps=2), tmp_path / "run")
    refused = command("predict", tmp_path / "run", "--jsonl", "--attention", stdin=SOURCE)
    assert refused.code == 1 and "PrefixLM has no attention weights" in refused.err
    refused = command("predict", tmp_path / "run", "--attention", stdin=SOURCE)
    assert refused.code == 2 and "--attention needs --jsonl" in refused.err

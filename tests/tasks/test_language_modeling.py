"""Language modelling from text to text: streams with carried state, resume, figures by hand, the verbs."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.cli_runs import command, environment  # noqa: F401 (a fixture)
from fixtures.tiny_run import lines, stored
from fixtures.zoo import params_of

from jaxlm.data.batching.bucketing import Buckets
from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.sources.text import TextFile
from jaxlm.data.tokenizers.simple import Characters
from jaxlm.distributed.sharding import data_mesh
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.inference.base import TrainedModel
from jaxlm.models.decoder import Decoder
from jaxlm.models.ngram import NGram
from jaxlm.models.properties import dummy_batch
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.ngram.smoothing import WittenBell
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.objectives.next_token import NextToken
from jaxlm.optim import SGD, Constant, StepDecay
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.training.loop import train
from jaxlm.training.run_options import RunOptions
from jaxlm.training.step import StepConfig, make_train_step
from jaxlm.training.stopping import EarlyStopping
from jaxlm.workdir import Workdir

TEXT = "the green witch arrived\nthe red witch left\n\nno witch is blue\n" * 12
VOCAB = 4 + len(set(TEXT))
WINDOWS = Windows(length=16, rows=8, append_eos=False, reset_prob=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(autouse=True)
def data(folder, monkeypatch):
    monkeypatch.setenv("JAXLM_DATA", str(folder))
    monkeypatch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))  # eight take twice as long


def experiment(model=None, **changes) -> Experiment:
    parts = [TextFile("text.txt", "whole", *part) for part in ((0.0, 0.8), (0.8, 1.0))]
    if isinstance(model, NGram):
        changes = {"optimizer": Experiment.optimizer, **changes}
    made = Experiment(
        task=LanguageModeling(parts[0], parts[1], parts[1], windows=Windows(8, 2, append_eos=False), sample_tokens=8),
        model=model or RecurrentLM(VOCAB, 8, Recurrent(LSTM(8)), dropout=0.1),
        tokenizer=Characters(VOCAB),
        batching=WINDOWS,
        optimizer=SGD(Constant(1.0), momentum=0.5, weight_decay=1e-4, clip=1.0),
        steps=12,
        log_every=3,
        evaluate_every=6,
        checkpoint_every=6,
        best_metric="valid/perplexity",
    )
    return replace(made, **changes)


def test_resume_is_bit_for_bit_with_a_carried_state(tmp_path):
    """Broken off between two evaluations: parameters, carried state, average and figures are those of one run."""
    whole = experiment(nt_asgd_patience=1)
    train(whole, tmp_path / "whole")
    train(replace(whole, steps=5, checkpoint_every=5, evaluate_every=6), tmp_path / "parts")
    train(whole, tmp_path / "parts")
    from jaxlm.training.setup import setup_training

    abstract = setup_training(whole, Workdir(tmp_path / "whole"), lambda _: None).compiled.abstract_state
    expected, found = stored(tmp_path / "whole", abstract), stored(tmp_path / "parts", abstract)
    assert expected[1] == found[1] == 12
    assert jax.tree.leaves(expected[0].carry) and expected[0].averaged_updates is not None
    jax.tree.map(np.testing.assert_array_equal, expected[0], found[0])


def test_carried_state_is_reading_on():
    """Two batches of a stream under one state are one long batch: the same logits where nothing is dropped."""
    model, objective = experiment().model, NextToken()
    batches = WINDOWS.batches({"target": _ids()})
    params = model.init(jax.random.key(0), dummy_batch())["params"]
    params = jax.tree.map(lambda x: 8 * x, params)  # so that what was read long ago matters
    state, total = None, 0.0
    for k in range(3):
        batch = batches[k]
        fresh = model.apply({"params": params}, batch, 0, method="start")
        loss = objective(model, params, batch.replace(state=fresh if state is None else state), None)
        state, total = loss.state, total + float(loss.total)
    long = Windows(48, 8, append_eos=False).batches({"target": _ids()})[0]
    at_once = objective(model, params, long.replace(reset_B=None), None)
    seen = sum(batches[k].target_valid_BT.sum() for k in range(3))
    assert int(at_once.count) == seen and total == pytest.approx(float(at_once.total), rel=1e-5)
    alone = sum(float(objective(model, params, batches[k].replace(reset_B=None), None).total) for k in range(3))
    assert abs(alone - total) > 1e-3  # what was carried matters


def test_a_text_that_fills_no_batch_is_one_row(folder):
    """And resets of training do not reach evaluation."""
    chosen = experiment()
    params = chosen.model.init(jax.random.key(0), dummy_batch())["params"]
    trained = TrainedModel(chosen.model, params, Characters(VOCAB).fit([TEXT]))
    (folder / "short.txt").write_text("no witch")
    task = replace(chosen.task, test=TextFile("short.txt", "whole"), windows=Windows(32, 4, append_eos=False))
    one_row = replace(task, windows=Windows(9, 1, append_eos=False, reset_prob=1.0))
    scores = task.evaluate(trained, "test")
    assert scores["tokens"] == 9 and scores == one_row.evaluate(trained, "test")


def test_where_a_stream_begins_the_carried_state_is_forgotten():
    model, batches = experiment().model, WINDOWS.batches({"target": _ids()})
    params = model.init(jax.random.key(0), dummy_batch())["params"]
    fresh = model.apply({"params": params}, batches[0], 0, method="start")
    junk = jax.tree.map(lambda x: x + 1e3, fresh)
    expected = NextToken()(model, params, batches[0].replace(state=fresh), None)
    assert float(NextToken()(model, params, batches[0].replace(state=junk), None).total) == float(expected.total)


def test_micro_batches_carry_their_rows():
    """Accumulation over two parts leaves the parameters and the carried state of the whole batch."""
    chosen = experiment(RecurrentLM(VOCAB, 8, Recurrent(LSTM(8))))
    from jaxlm.training.state import create_train_state

    batches, optimizer = WINDOWS.batches({"target": _ids()}), chosen.optimizer.build(4)
    found = []
    for accumulate in (1, 2):
        config = StepConfig(grad_accum=accumulate)
        step = make_train_step(chosen.model, NextToken(), optimizer, lambda _: jnp.float32(0), config)
        state = create_train_state(chosen.model, optimizer, dummy_batch(), 0, "", 8)
        for k in range(2):
            state, _ = step(state, batches[k])
        found.append(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), found[0].carry, found[1].carry)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), found[0].params, found[1].params)


def test_penalties_are_for_training_alone():
    model, batch = experiment().model, WINDOWS.batches({"target": _ids()})[0].replace(reset_B=None)
    params = model.init(jax.random.key(0), dummy_batch())["params"]
    plain, penalised = NextToken(), NextToken(activation_reg=2.0, temporal_reg=1.0)
    key = jax.random.key(1)
    assert float(plain(model, params, batch, None).total) == float(penalised(model, params, batch, None).total)
    with_key, without = penalised(model, params, batch, key), plain(model, params, batch, key)
    assert float(with_key.total) > float(without.total) and float(with_key.nll) == float(without.nll)


def test_the_average_begins_where_evaluations_stall(tmp_path, monkeypatch):
    """NT-ASGD: from that step on the stored parameters are the mean of those after each update."""
    figures = iter([5.0, 4.0, 6.0, 5.5, 5.0, 4.9])
    monkeypatch.setattr(LanguageModeling, "validate", lambda *_: {"valid/perplexity": next(figures)})
    chosen = experiment(nt_asgd_patience=1, evaluate_every=2, checkpoint_every=2, keep_checkpoints=6)
    train(chosen, tmp_path / "run")
    from jaxlm.training.setup import setup_training

    abstract = setup_training(chosen, Workdir(tmp_path / "run"), lambda _: None).compiled.abstract_state
    from jaxlm.checkpoint.manager import Checkpoints

    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        states = {step: checkpoints.restore(abstract, step)[0] for step in checkpoints.steps()}
    # a state on disk has the average as `params` and the last update's parameters as `ema`
    assert {step: int(state.averaged_updates) for step, state in states.items()} == {
        2: 0,
        4: 0,
        6: 1,
        8: 3,
        10: 5,
        12: 7,
    }
    jax.tree.map(np.testing.assert_array_equal, states[4].params, states[4].ema)
    apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), states[8].params, states[8].ema)
    assert max(jax.tree.leaves(apart)) > 0


def test_samples_end_where_the_positions_do():
    """Of a beginning that is longer than the positions, the end is continued."""
    model = Decoder(VOCAB, 8, 2, 16, 1, max_length=8)
    made = experiment(model, task=replace(experiment().task, sample_tokens=40))
    tokenizer = made.tokenizer.fit(made.task.train)
    trained = TrainedModel(model, params_of(model), tokenizer)
    samples = [*made.task.show_examples(trained, 2)]
    assert samples and all(" | " in sample for sample in samples)


def test_stalled():
    progress = EarlyStopping()
    for figure, expected in ((1.0, False), (2.0, False), (1.5, False), (1.4, True), (3.0, False)):
        progress = progress.update(figure, 0)
        assert progress.no_longer_improving(2) is expected, progress


def test_a_fitted_model_goes_through_the_same_folder(tmp_path):
    """Train, load, evaluate: the perplexity is that of the model's own log-probabilities, summed by hand."""
    chosen = experiment(
        NGram(VOCAB, 3, WittenBell(), continuous_text=True, append_eos=False), steps=1, best_metric="valid/nll"
    )
    summary = train(chosen, tmp_path / "run")
    trained = Workdir(tmp_path / "run").load()
    figures = trained.experiment.task.evaluate(trained, "valid")
    assert summary["valid/nll"] == pytest.approx(figures["nll"], abs=1e-6) and 0 < figures["nll"] < 1.5
    assert figures["bits_per_character"] == pytest.approx(figures["nll"] / math.log(2))
    assert train(chosen, tmp_path / "run") == {"step": 1}
    assert lines(tmp_path / "run")[0]["valid/nll"] == summary["valid/nll"]


@pytest.mark.parametrize(
    "field, value",
    [("objective", NextToken(label_smoothing=0.1)), ("optimizer", SGD(Constant(1.0))), ("ema_decay", 0.9)],
)
def test_a_fitted_model_has_no_gradients(field, value, tmp_path):
    """A field that only training by gradients reads is refused by its name, before anything is written."""
    chosen = experiment(NGram(VOCAB, 3), steps=1, best_metric="valid/nll")
    with pytest.raises(UserError, match=f"^{field}: NGram is fitted in closed form"):
        train(replace(chosen, **{field: value}), tmp_path / "run")
    with pytest.raises(UserError, match="NGram has no stack of layers to recompute"):
        train(chosen, tmp_path / "run", run_options=RunOptions(remat="full"))
    assert not (tmp_path / "run").exists()


def test_a_penalty_of_another_family_is_refused_by_name():
    model = Decoder(VOCAB, 8, 2, 16, 1, max_length=16)
    with pytest.raises(UserError, match="activation_reg and temporal_reg are for RNN language models: .* Decoder"):
        NextToken(activation_reg=2.0)(model, params_of(model), dummy_batch(), None)


def test_texts_by_themselves(tmp_path):
    """A line is a text between BOS and EOS; every token is counted once, blank lines are their EOS."""
    texts = TextFile("text.txt")
    task = LanguageModeling(texts, texts, texts, windows=None, batch_tokens=128, sample_tokens=4)
    model = RecurrentLM(VOCAB - 1, 8, Recurrent(LSTM(8)))  # a line does not hold its end
    chosen = experiment(model, task=task, tokenizer=Characters(VOCAB - 1), batching=Buckets(tokens=256, max_shapes=2))
    train(replace(chosen, steps=2), tmp_path / "run")
    trained = Workdir(tmp_path / "run").load()
    figures = task.evaluate(trained, "test")
    assert figures["tokens"] == len(TEXT) and figures["lines"] == 48 and figures["unknown_tokens"] == 0


def test_staircase():
    rate = StepDecay(peak=2.0, hold_steps=10, decay_every=5, decay_factor=0.5).build(100)
    assert [float(rate(step)) for step in (0, 9, 10, 14, 15, 20)] == [2.0, 2.0, 1.0, 1.0, 0.5, 0.25]


def test_the_verbs(tmp_path, command):  # noqa: F811
    """`generate` goes on from a text, `score` weighs lines, `predict` says that there is no answer."""
    train(experiment(), tmp_path / "run")
    out = command("generate", tmp_path / "run", "--prompt", "the ", "--num-samples", 2, "--max-tokens", 5, "--jsonl")
    assert out.code == 0, out.err
    assert [json.loads(line)["tokens"] for line in out.lines] == [5, 5]
    again = command("generate", tmp_path / "run", "--prompt", "the ", "--max-tokens", 5, "--jsonl")
    assert again.lines[0] == out.lines[0]
    scored = command("score", tmp_path / "run", "--jsonl", stdin=b"the witch\n\nzz\n")
    found = [json.loads(line) for line in scored.lines]
    assert [line["tokens"] for line in found] == [9, 0, 2] and found[0]["logprob"] < 0, scored.err
    refused = command("predict", tmp_path / "run", stdin=b"x\n")
    assert refused.code == 1 and "generate" in refused.err and "Traceback" not in refused.err
    page = command("report", tmp_path / "run", "--gradient-flow", "--num-examples", 1)
    assert page.code == 0, page.err
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("<svg") >= 4 and "RecurrentLM" in text and "http-equiv" not in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"start_fraction": 0.5, "end_fraction": 0.5}, "0 <= start_fraction < end_fraction <= 1"),
        ({"unit": "line", "start_fraction": 0.1}, "cut from unit='whole'"),
    ],
)
def test_parts_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        TextFile("text.txt", **{"unit": "whole", **arguments})


def test_parts_of_a_file_are_the_file(folder):
    whole = list(TextFile("text.txt", "whole"))
    parts = [next(iter(TextFile("text.txt", "whole", *part))) for part in ((0.0, 0.9), (0.9, 1.0))]
    assert whole == [TEXT] and "".join(parts) == TEXT


def _ids():
    tokenizer = Characters(VOCAB).fit([TEXT])
    return TextFile("text.txt", "whole").encode(tokenizer)

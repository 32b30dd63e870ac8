"""Runs that start from others: what comes along, what is trained and what stays as it is, bit for bit."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures import cli_runs
from fixtures.tiny_run import EXPERIMENT, MODEL, Backwards
from fixtures.zoo import ZOO, batch_of, examples, logits

from jaxlm.cli.training.merge import merge_lora_workdir
from jaxlm.distributed.sharding import data_mesh
from jaxlm.errors import UserError
from jaxlm.finetuning import Adapters, FineTuning, LoRA
from jaxlm.objectives.next_token import NextToken
from jaxlm.optim import AdamW, Constant
from jaxlm.pytree import combine, named_leaves, partition, swap_leaves, tree_bytes
from jaxlm.training.initialize import match_params
from jaxlm.training.loop import train
from jaxlm.training.state import TrainState, create_train_state
from jaxlm.training.step import StepConfig, make_train_step
from jaxlm.workdir import Workdir

command = cli_runs.command  # a fixture
GPT2, BATCH = ZOO["gpt2"].model, batch_of(examples(8), 6, 6)
ADAM = AdamW(Constant(1e-2), weight_decay=0.1, clip=1.0)
LAST = FineTuning(trainable=("last_norm",))
LORA = FineTuning(lora=LoRA(rank=2, dropout=0.1))
SHORT = {"steps": 4, "log_every": 2, "evaluate_every": 4, "checkpoint_every": 2}


def stepped(tuning: FineTuning, steps: int = 2, accumulate: int = 1, averages: str = "") -> tuple[TrainState, dict]:
    """The state after some steps, and the leaves that it began with."""
    optimizer = ADAM.build(steps)
    state = create_train_state(GPT2, optimizer, BATCH, 0, averages, finetuning=tuning)
    began = {name: np.array(leaf) for name, leaf in named_leaves(state.params).items()}
    ema = 0.9 if averages else 0.0
    config = StepConfig(0, accumulate, ema, is_trainable=tuning.is_trainable)
    step = make_train_step(GPT2, NextToken(), optimizer, lambda step: 1e-2, config)
    for _ in range(steps):
        state, _ = step(state, BATCH)
    return state, began


@pytest.mark.parametrize(
    ("tuning", "accumulate", "averages"),
    [(LAST, 2, "ema"), (LORA, 1, ""), (FineTuning(adapters=Adapters(bottleneck_dim=2)), 1, "")],
)
def test_what_is_not_trained_stays_bit_for_bit(tuning, accumulate, averages):
    """With decay, clipping, accumulation and a moving average, each of which could touch it."""
    state, began = stepped(tuning, accumulate=accumulate, averages=averages)
    whole = swap_leaves(state.ema, state.params)[0] if averages else state.params
    for tree in (state.params, whole):
        for name, leaf in named_leaves(tree).items():
            same = np.array_equal(leaf, began[name])
            assert same != tuning.is_trainable(name), name
    frozen = [name for name in began if not tuning.is_trainable(name)]
    assert frozen and len(frozen) < len(began)


def test_the_optimizer_keeps_what_is_trained():
    """Adam has two numbers for each parameter that is trained, and the average one; none for the others."""
    for tuning in (FineTuning(), LAST, LORA):
        state = jax.eval_shape(
            lambda tuning=tuning: create_train_state(GPT2, ADAM.build(1), BATCH, 0, "ema", finetuning=tuning)
        )
        learnt = tree_bytes(partition(state.params, tuning.is_trainable)[0])
        assert tree_bytes(state.opt_state) - 2 * learnt <= 8 < learnt, "two counters"
        assert tree_bytes(state.ema) == learnt
    assert learnt < 0.2 * tree_bytes(state.params)


def test_no_gradient_of_what_is_not_trained():
    """The step that trains one norm has no sum over positions as large as a table: nothing makes its gradient."""
    optimizer = ADAM.build(1)
    products = {}
    for tuning in (FineTuning(), LAST):
        state = jax.eval_shape(lambda tuning=tuning: create_train_state(GPT2, optimizer, BATCH, 0, finetuning=tuning))
        config = StepConfig(is_trainable=tuning.is_trainable)
        step = make_train_step(GPT2, NextToken(), optimizer, lambda step: 1e-2, config)
        products[tuning] = str(step.trace(state, BATCH).jaxpr).count("dot_general")
    assert products[LAST] < 0.6 * products[FineTuning()]


def test_trees_taken_apart():
    tree = {"a": np.ones(2), "b": {"c": np.zeros(3), "d": np.ones(1)}}
    chosen, rest = partition(tree, lambda name: name != "b/c")
    assert set(named_leaves(chosen)) == {"a", "b/d"} and set(named_leaves(rest)) == {"b/c"}
    assert jax.tree.map(np.array_equal, combine(chosen, rest), tree) == {"a": True, "b": {"c": True, "d": True}}
    other = jax.tree.map(lambda leaf: leaf + 1, chosen)
    whole, taken = swap_leaves(other, tree)
    assert whole["a"][0] == 2 and whole["b"]["c"] is tree["b"]["c"] and taken["a"] is tree["a"]
    back, again = swap_leaves(taken, whole)
    assert back["a"] is tree["a"] and again["a"] is other["a"]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Eight take as long again to compile for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A workdir of the toy language."""
    folder = tmp_path_factory.mktemp("source") / "run"
    train(replace(EXPERIMENT, **SHORT), folder)
    return folder


def started(source: Path, folder: Path, **options) -> dict:
    tuning = replace(options.pop("tuning", FineTuning()), init=str(source))
    made = replace(EXPERIMENT, task=replace(EXPERIMENT.task, train=Backwards(48, 5)), finetuning=tuning)
    return train(replace(made, **SHORT | options), folder)


@pytest.mark.slow
def test_lora_from_a_run_and_merged(source, tmp_path, capsysbinary, command):
    """Trained, evaluated, merged; the merged workdir says the same, and the parameters beside are those of before."""
    tuned, plain = tmp_path / "tuned", tmp_path / "plain"
    started(source, tuned, tuning=FineTuning(lora=LoRA(("attention/(query|value)$", "ffn"), 2)))
    said = capsysbinary.readouterr().err.decode()
    assert "numbers in" in said and "unused: nothing" in said and "are trained" in said
    before, after = Workdir(source).load(), Workdir(tuned).load(merge=False)
    for name, leaf in named_leaves(before.params).items():
        np.testing.assert_array_equal(leaf, named_leaves(after.params)[name], err_msg=name)
    assert command("merge", tuned, plain).code == 0
    merged, again = Workdir(plain).load(), Workdir(tuned).load()
    assert merged.experiment.finetuning == FineTuning()
    jax.tree.map(np.testing.assert_array_equal, merged.params, again.params)
    batch = batch_of([replace(row, source=row.source % 20, target=row.target % 20) for row in examples(4)], 6, 6)
    found, expected = logits(MODEL, merged.params, batch), logits(MODEL, after.params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - logits(MODEL, before.params, batch)).max() > 1e-3
    with pytest.raises(UserError, match="plain workdir already"):
        merge_lora_workdir(Workdir(plain), Workdir(tmp_path / "twice"))


@pytest.mark.slow
def test_a_run_goes_on_without_its_source(source, tmp_path):
    """A workdir is self-contained; and its start cannot be changed afterwards."""
    copy, folder = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(source, copy)
    started(copy, folder, steps=2)
    with pytest.raises(UserError, match="tuning.init: .* here"):
        started(source, folder)
    shutil.rmtree(copy)
    assert started(copy, folder)["step"] == 4
    ours, theirs = ((one / "tokenizer" / "tokenizer.json").read_bytes() for one in (folder, source))
    assert ours == theirs and json.loads((folder / "experiment.json").read_text())["experiment"]["finetuning"]


def test_what_does_not_fit(source, tmp_path):
    wide = MODEL.clone(hidden=48)
    with pytest.raises(UserError, match=r"do not fit the model:\n  .*ffn.* has shape .*48.*, .* there"):
        started(source, tmp_path / "wide", model=wide)
    with pytest.raises(UserError, match="nowhere does not exist"):
        started(tmp_path / "nowhere", tmp_path / "run")
    tree = {"head": {"kernel": jax.numpy.ones((2, 2))}}
    with pytest.raises(UserError, match="no parameter of x matches this model. x has: body"):
        match_params(tree, {"body": np.ones(3)}, 0, "x")
    found = match_params({"model": tree, "new": jax.numpy.ones(1)}, tree | {"old": np.ones(1)}, 0, "x")
    assert (list(found.loaded), found.initialized, found.unused) == (["model/head/kernel"], ["new"], ["old"])


def test_new_rows_of_a_table_are_fresh():
    given = {"embedding": np.zeros((3, 2), np.float32)}
    made = match_params({"embedding": jax.numpy.ones((5, 2))}, given, 2, "x").loaded["embedding"]
    np.testing.assert_array_equal(made, [[0, 0]] * 3 + [[1, 1]] * 2)
    with pytest.raises(UserError, match="do not fit"):
        match_params({"embedding": jax.numpy.ones((5, 2))}, given, 1, "x")

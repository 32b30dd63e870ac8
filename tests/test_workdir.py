"""The folder of a run: moved, averaged, mistaken for another one, damaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.tiny_run import EXPERIMENT, MODEL, VOCAB
from fixtures.zoo import params_of

from jaxlm import workdir
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.data.tokenizers.simple import Words
from jaxlm.errors import UserError
from jaxlm.training.state import TrainState

METRICS = {10: 1.0, 20: 5.0, 30: 2.0}


def params_at(step: int):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf * (step / 10) ** 2), params_of(MODEL))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A workdir with three checkpoints of known parameters, the second the best."""
    folder = tmp_path_factory.mktemp("made") / "run"
    workdir.open_or_create(folder, EXPERIMENT)
    EXPERIMENT.tokenizer.fit(EXPERIMENT.task.texts()).save(folder / "tokenizer")
    with Checkpoints(folder / "checkpoints", keep_best="valid/bleu") as checkpoints:
        for step, metric in METRICS.items():
            checkpoints.save(step, TrainState(jnp.int32(step), params_at(step), ()), {}, metric)
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    """The same folder, elsewhere."""
    return Path(shutil.copytree(made, tmp_path / "moved" / "run"))


def same(found, expected) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_moved_workdir_is_whole(run):
    """Experiment, tokenizer and the parameters of the best step; nothing in it names the old place."""
    trained = workdir.load_trained_model(run)
    assert trained.experiment == EXPERIMENT and trained.steps == [20]
    assert trained.tokenizer.decode(trained.tokenizer.encode(["a b C"])) == ["a b C"]
    same(trained.params, params_at(20))


def test_loading_changes_nothing(run):
    before = sorted((str(path), path.stat().st_mtime_ns) for path in run.rglob("*"))
    workdir.load_trained_model(run)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.parametrize("count", [2, 3])
def test_the_mean_of_the_last_checkpoints(run, count):
    trained = workdir.load_trained_model(run, average_last=count)
    assert trained.steps == [10, 20, 30][-count:]
    trees = [jax.tree.map(np.asarray, params_at(step)) for step in trained.steps]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0, dtype=np.float64), *trees)
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert a.dtype == np.float32


def test_the_experiment_says_how_many_are_averaged(run):
    """More than a short run has saved counts as all that there is; asked for by name it is refused."""
    workdir.write_experiment(run, replace(EXPERIMENT, average_last=2))
    assert workdir.load_trained_model(run).steps == [20, 30]
    assert workdir.load_trained_model(run, average_last=1).steps == [20]
    workdir.write_experiment(run, replace(EXPERIMENT, average_last=50))
    assert workdir.load_trained_model(run).steps == [10, 20, 30]
    with pytest.raises(UserError, match="mean of the last 50.*3 whole ones"):
        workdir.load_trained_model(run, average_last=50)


def test_one_step_by_number(run):
    trained = workdir.load_trained_model(run, step=10)
    assert trained.steps == [10]
    same(trained.params, params_at(10))
    with pytest.raises(UserError, match="not step 15"):
        workdir.load_trained_model(run, step=15)


def test_a_run_without_checkpoints(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet.*jaxlm train"):
        workdir.load_trained_model(run)


def test_another_vocabulary_is_named_with_both_numbers(run):
    shutil.rmtree(run / "tokenizer")
    Words(12).fit(EXPERIMENT.task.texts()).save(run / "tokenizer")
    with pytest.raises(UserError, match=rf"tokenizer has 12 ids, the model embeds {VOCAB}.*--model.vocab 12"):
        workdir.load_trained_model(run)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"experiment": 3}', '{"experiment": {"type": "os.path"}}']
)
def test_a_damaged_record(run, text):
    (run / "experiment.json").write_text(text)
    with pytest.raises(UserError, match="experiment.json|os.path"):
        workdir.read_experiment(run)
    with pytest.raises(UserError):
        workdir.open_or_create(run, EXPERIMENT)


def test_bytes_that_are_no_text(run):
    (run / "experiment.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(UserError, match=r"experiment.json is damaged"):
        workdir.read_experiment(run)


def test_an_unknown_field_is_named(run):
    record = json.loads((run / "experiment.json").read_text())
    record["experiment"]["model"]["wdith"] = 3
    (run / "experiment.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="no field wdith"):
        workdir.read_experiment(run)


def test_what_is_no_workdir(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no workdir.*jaxlm train"):
            workdir.load_trained_model(folder)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has checkpoints but no experiment.json"):
        workdir.open_or_create(tmp_path, EXPERIMENT)


def test_a_run_without_a_checkpoint_is_begun_anew(tmp_path):
    """Whoever mistyped a path may mend it without another workdir; the tokenizer is learnt again."""
    workdir.open_or_create(tmp_path, EXPERIMENT)
    (tmp_path / "tokenizer").mkdir()
    assert workdir.open_or_create(tmp_path, replace(EXPERIMENT, seed=5))
    assert workdir.read_experiment(tmp_path).seed == 5 and not (tmp_path / "tokenizer").exists()


def test_claiming(tmp_path):
    """New, then known; another experiment is refused and the record stays as it was."""
    assert not workdir.open_or_create(tmp_path / "run", EXPERIMENT)
    assert workdir.open_or_create(tmp_path / "run", EXPERIMENT)
    (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match=r"another experiment:\n  seed: 5 here, 0 in .*experiment.json"):
        workdir.open_or_create(tmp_path / "run", replace(EXPERIMENT, seed=5))
    assert workdir.read_experiment(tmp_path / "run") == EXPERIMENT
    search = replace(EXPERIMENT.task.search, max_len_extra=9)
    assert workdir.open_or_create(tmp_path / "run", replace(EXPERIMENT, task=replace(EXPERIMENT.task, search=search)))


def test_the_record_names_the_libraries(made):
    record = json.loads((made / "experiment.json").read_text())
    assert {"jaxlm", "python", "jax", "flax", "numpy"} <= set(record["versions"])

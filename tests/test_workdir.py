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

from jaxlm.checkpoint import step_io
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.data.tokenizers.simple import Words
from jaxlm.errors import UserError
from jaxlm.training.state import TrainState
from jaxlm.workdir import Workdir

NO_EXPERIMENT = '{"format": 2, "experiment": 3}'
WRONG_TYPE = '{"format": 2, "experiment": {"type": "os.path"}}'
METRICS = {10: 1.0, 20: 5.0, 30: 2.0}


def params_at(step: int):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf * (step / 10) ** 2), params_of(MODEL))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A workdir with three checkpoints of known parameters, the second the best."""
    folder = tmp_path_factory.mktemp("made") / "run"
    Workdir(folder).open_or_create(EXPERIMENT)
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
    trained = Workdir(run).load()
    assert trained.experiment == EXPERIMENT and trained.steps == [20]
    assert trained.tokenizer.decode(trained.tokenizer.encode(["a b C"])) == ["a b C"]
    same(trained.params, params_at(20))


def test_loading_changes_nothing(run):
    before = sorted((str(path), path.stat().st_mtime_ns) for path in run.rglob("*"))
    Workdir(run).load()
    assert sorted((str(path), path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.parametrize("count", [2, 3])
def test_the_mean_of_the_last_checkpoints(run, count):
    trained = Workdir(run).load(average_last=count)
    assert trained.steps == [10, 20, 30][-count:]
    trees = [jax.tree.map(np.asarray, params_at(step)) for step in trained.steps]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0, dtype=np.float64), *trees)
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert a.dtype == np.float32


def test_the_experiment_says_how_many_are_averaged(run):
    """More than a short run has saved counts as all that there is; asked for by name it is refused."""
    Workdir(run).write_experiment(replace(EXPERIMENT, average_last=2))
    assert Workdir(run).load().steps == [20, 30]
    assert Workdir(run).load(average_last=1).steps == [20]
    Workdir(run).write_experiment(replace(EXPERIMENT, average_last=50))
    assert Workdir(run).load().steps == [10, 20, 30]
    with pytest.raises(UserError, match="last 50 checkpoints.*3 whole ones"):
        Workdir(run).load(average_last=50)


def test_one_step_by_number(run):
    trained = Workdir(run).load(step=10)
    assert trained.steps == [10]
    same(trained.params, params_at(10))
    with pytest.raises(UserError, match="not step 15"):
        Workdir(run).load(step=15)


def test_a_run_without_checkpoints(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet.*jaxlm train"):
        Workdir(run).load()


def test_another_vocabulary_is_named_with_both_numbers(run):
    shutil.rmtree(run / "tokenizer")
    Words(12).fit(EXPERIMENT.task.texts()).save(run / "tokenizer")
    with pytest.raises(UserError, match=rf"tokenizer has 12 ids, the model embeds {VOCAB}.*--model.vocab 12"):
        Workdir(run).load()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"experiment": 3}', WRONG_TYPE, NO_EXPERIMENT])
def test_a_damaged_record(run, text):
    (run / "experiment.json").write_text(text)
    with pytest.raises(UserError, match="experiment.json|os.path"):
        Workdir(run).read_experiment()
    with pytest.raises(UserError):
        Workdir(run).open_or_create(EXPERIMENT)


@pytest.mark.parametrize(("number", "shown"), [(None, 1), (1, 1), (3, 3), ("new", "new")])
def test_another_format_is_refused(run, number, shown):
    """A workdir of an older or newer jaxlm is refused in one sentence and not changed."""
    record = {"format": number, "experiment": {"type": "jaxlm.run.OldExperiment"}}
    text = json.dumps({key: value for key, value in record.items() if value is not None})
    (run / "experiment.json").write_text(text)
    for action in (Workdir(run).load, lambda: Workdir(run).open_or_create(EXPERIMENT)):
        with pytest.raises(UserError, match=rf"experiment.json has workdir format {shown}, this jaxlm reads format 2"):
            action()
    assert (run / "experiment.json").read_text() == text


def test_bytes_that_are_no_text(run):
    (run / "experiment.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(UserError, match=r"experiment.json: not UTF-8 at byte 0: restore it from a copy"):
        Workdir(run).read_experiment()


def test_an_unknown_field_is_named(run):
    record = json.loads((run / "experiment.json").read_text())
    record["experiment"]["model"]["wdith"] = 3
    (run / "experiment.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="no field wdith"):
        Workdir(run).read_experiment()


def test_what_is_no_workdir(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="(not a workdir|does not exist).*jaxlm train"):
            Workdir(folder).load()
    (tmp_path / "notes.md").write_text("a file")
    with pytest.raises(UserError, match="notes.md is not a workdir: it is not a folder.*--workdir D`"):
        Workdir(tmp_path / "notes.md").load()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has checkpoints but no experiment.json"):
        Workdir(tmp_path).open_or_create(EXPERIMENT)


def test_a_run_without_a_checkpoint_is_begun_anew(tmp_path):
    """Whoever mistyped a path may mend it without another workdir; the tokenizer is learnt again."""
    Workdir(tmp_path).open_or_create(EXPERIMENT)
    (tmp_path / "tokenizer").mkdir()
    assert Workdir(tmp_path).open_or_create(replace(EXPERIMENT, seed=5))
    assert Workdir(tmp_path).read_experiment().seed == 5 and not (tmp_path / "tokenizer").exists()


def test_claiming(tmp_path):
    """New, then known; another experiment is refused and the record stays as it was."""
    assert not Workdir(tmp_path / "run").open_or_create(EXPERIMENT)
    assert Workdir(tmp_path / "run").open_or_create(EXPERIMENT)
    (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match=r"another experiment:\n  seed: 5 here, 0 in .*experiment.json"):
        Workdir(tmp_path / "run").open_or_create(replace(EXPERIMENT, seed=5))
    assert Workdir(tmp_path / "run").read_experiment() == EXPERIMENT
    search = replace(EXPERIMENT.task.search, max_len_extra=9)
    assert Workdir(tmp_path / "run").open_or_create(replace(EXPERIMENT, task=replace(EXPERIMENT.task, search=search)))


def test_the_record_names_the_libraries(made):
    record = json.loads((made / "experiment.json").read_text())
    assert {"jaxlm", "python", "jax", "flax", "numpy"} <= set(record["versions"])


def test_a_step_that_is_deleted_while_it_is_read(run, monkeypatch):
    """By the run that is still trained: the steps are listed again, and the best of those is read."""
    read, newest = step_io.read_step, run / "checkpoints" / "30"

    def delete_and_read(manager, folder, step, trees):
        if step == 20 and not (run / "checkpoints" / "40").exists():
            shutil.copytree(newest, run / "checkpoints" / "40")
            shutil.rmtree(run / "checkpoints" / "20")
        return read(manager, folder, step, trees)

    monkeypatch.setattr(step_io, "read_step", delete_and_read)
    assert Workdir(run).load().steps == [30]
    with pytest.raises(UserError, match="not step 20"):
        Workdir(run).load(step=20)


def test_a_copied_tokenizer_is_there_whole_or_not_at_all(run, tmp_path, monkeypatch):
    def die(source, target, **_):
        (target / "half").write_text("")
        raise KeyboardInterrupt

    new = Workdir(tmp_path / "new")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "copytree", die)
        new.copy_tokenizer(Workdir(run))
    assert not new.tokenizer_folder.exists()
    new.copy_tokenizer(Workdir(run))
    assert new.load_tokenizer().fingerprint == Workdir(run).load_tokenizer().fingerprint


def test_a_step_that_was_not_finished_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not Workdir(tmp_path).has_checkpoint()
    (tmp_path / "checkpoints" / "10").mkdir()
    assert Workdir(tmp_path).has_checkpoint()

"""Laws of damage: what is read is what was saved, or an older step with a word on it, or an error."""

import gc
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.tiny_state import ABSTRACT, assert_same, data_files, make_state, three_steps

from jaxlm import filesystem
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.errors import UserError
from jaxlm.filesystem import check_writable, lock_folder
from jaxlm.pytree import tree_bytes


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return three_steps(tmp_path_factory.mktemp("three"))


@pytest.fixture
def folder(three, tmp_path):
    return shutil.copytree(three, tmp_path / "moved" / "checkpoints")


def flip(file, offset):
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("item", ["params", "rest"])
def test_flipped_bytes_never_restore_silently(folder, item, capfd, caplog):
    skipped = 0
    with Checkpoints(folder, read_only=True) as checkpoints:
        for file in data_files(folder / "30", item):
            original = file.read_bytes()
            for offset in np.linspace(0, len(original) - 1, 3).astype(int):
                flip(file, offset)
                state, meta, step = checkpoints.restore(ABSTRACT)
                assert_same(state, make_state(step))  # a file that is not read any more may change
                assert meta["seed"] == step
                skipped += step == 20
                file.write_bytes(original)
    assert skipped >= 3
    gc.collect()
    error = capfd.readouterr().err
    assert error.count(f"{folder / '30'} is damaged and skipped") == error.count("\n") == skipped
    assert caplog.text == ""


def test_flipped_byte_that_orbax_does_not_notice(tmp_path, capfd):
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (256, 512))}, "step": 1}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    file = max(data_files(tmp_path / "2", "params"), key=lambda f: f.stat().st_size)
    flip(file, file.stat().st_size // 2)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state)[2] == 1
        assert "2 is damaged and skipped: params/w does not match its checksum (stored" in capfd.readouterr().err
        with pytest.raises(UserError, match="step 2 cannot be read"):
            checkpoints.restore_params(state["params"], step=2)


DAMAGE = {
    "truncated data": lambda d: [os.truncate(f, 40) for f in data_files(d, "params")],
    "emptied data": lambda d: [os.truncate(f, 0) for f in data_files(d, "params")],
    "removed data": lambda d: [os.remove(f) for f in data_files(d, "params")],
    "removed manifest": lambda d: os.remove(d / "params" / "manifest.ocdbt"),
    "truncated tree": lambda d: os.truncate(d / "params" / "_METADATA", 20),
    "half deleted: no meta": lambda d: shutil.rmtree(d / "meta"),
    "half deleted: no params": lambda d: shutil.rmtree(d / "params"),
    "half deleted: an empty folder": lambda d: [shutil.rmtree(d), d.mkdir()],
    "truncated meta": lambda d: os.truncate(d / "meta" / "metadata", 30),
    "changed meta": lambda d: (d / "meta" / "metadata").write_text(
        (d / "meta" / "metadata").read_text().replace('"seed": 30', '"seed": 31').replace('"seed":30', '"seed":31')
    ),
}


ALIKE = {"emptied data", "removed data", "truncated tree", "half deleted: no params", "truncated meta"}
"""Damages that are met where another one is met too."""


@pytest.mark.parametrize("damage", [pytest.param(d, marks=pytest.mark.slow if d in ALIKE else ()) for d in DAMAGE])
def test_damaged_step_is_skipped_for_the_one_before(folder, damage, capfd):
    DAMAGE[damage](folder / "30")
    with Checkpoints(folder, keep=3, keep_best="valid/bleu") as checkpoints:
        state, meta, step = checkpoints.restore(ABSTRACT)
        assert (step, meta["seed"]) == (20, 20)
        assert_same(state, make_state(20))
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and f"jaxlm: checkpoint {folder / '30'} is damaged and skipped: " in error
        params, steps = checkpoints.average(ABSTRACT.params, 2)
        assert steps == [10, 20]
        assert checkpoints.save(30, make_state(30), {"seed": 30})  # the run goes on and comes to step 30 again
        checkpoints.wait()
        assert checkpoints.steps() == [10, 20, 30]
        assert (folder / "30.damaged").is_dir()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(ABSTRACT)[0], make_state(30))
        assert checkpoints.steps() == [10, 20, 30] and checkpoints.best_step() == 20


def test_all_damaged_is_an_error(folder, capfd):
    for step in (10, 20, 30):
        shutil.rmtree(folder / str(step) / "meta")
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(UserError, match="all 3 steps cannot be read"):
            checkpoints.restore(ABSTRACT)
        with pytest.raises(UserError, match="has 0 whole ones"):
            checkpoints.average(ABSTRACT.params, 1)
    assert capfd.readouterr().err.count("damaged and skipped") == 6


def test_killed_while_saving(folder):
    left = folder / "40.orbax-checkpoint-tmp"
    shutil.copytree(folder / "30" / "params", left / "params.orbax-checkpoint-tmp")
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [10, 20, 30]
    assert left.is_dir()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(ABSTRACT)[2] == 30
        checkpoints.save(40, make_state(40), {})
        checkpoints.wait()
        assert_same(checkpoints.restore(ABSTRACT)[0], make_state(40))
    assert not left.exists()


# ---- the disk


def test_failed_background_save_is_reported_once_and_not_fatal(tmp_path):
    """A limit on the size of a file stands for a full disk: the write in the background fails."""
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (200_000,))}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            with pytest.raises(UserError, match=r"step 2 was not saved in .*: check the disk"):
                checkpoints.save(2, state, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps() == [1]
        checkpoints.save(3, state, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]
        assert_same(checkpoints.restore(state)[0], state)


def test_check_writable(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b", 1000)
    (tmp_path / "a" / "b" / ".probe-1").touch()  # of a process that was killed
    check_writable(tmp_path / "a" / "b", 1000)
    assert not [*(tmp_path / "a" / "b").iterdir()]
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub", "/proc/jaxlm"):
        with pytest.raises(UserError, match="cannot write into .*choose another"):
            check_writable(folder, 1)
    usage = type("Usage", (), {"free": 3_000_000})
    monkeypatch.setattr(filesystem.shutil, "disk_usage", lambda _: usage)
    check_writable(tmp_path, 3_000_000)
    with pytest.raises(UserError, match="has 3.0 MB free, the checkpoints of this run need 1.5 GB"):
        check_writable(tmp_path, 1_500_000_000)
    assert (
        tree_bytes({"a": jnp.zeros((3, 4), jnp.bfloat16), "b": jax.ShapeDtypeStruct((5,), jnp.int32), "c": None}) == 44
    )


def test_one_run_a_folder(tmp_path):
    run = tmp_path / "run"
    with lock_folder(run):
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) is training in .*--workdir"):
            with lock_folder(run):
                raise AssertionError("two runs in one folder")
        (run / "metrics.jsonl").write_text("")
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]
    with lock_folder(run), lock_folder(tmp_path / "empty"):
        pass
    assert run.exists() and not (tmp_path / "empty").exists()


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not saved.*NotADirectoryError.*check the disk"):
        Checkpoints(tmp_path / "file").save(1, make_state(), {})

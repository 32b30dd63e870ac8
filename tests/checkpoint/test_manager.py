"""Laws of checkpoints: what comes back is bit for bit what went in, for the right reader, from the steps that stay."""

import errno
import json
import os
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.tiny_state import ABSTRACT, assert_same, listing, make_state, three_steps

from jaxlm.checkpoint import manager
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.errors import SaveError, UserError


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return three_steps(tmp_path_factory.mktemp("three"))


@pytest.fixture
def folder(three, tmp_path):
    return shutil.copytree(three, tmp_path / "moved" / "checkpoints")


# ---- what went in comes back


def test_round_trip_of_everything_and_only_params(folder):
    before = listing(folder)
    with Checkpoints(folder, read_only=True) as checkpoints:
        state, meta, step = checkpoints.restore(ABSTRACT)
        assert (meta, step) == ({"seed": 30, "tuple": [1, None]}, 30)
        assert_same(state, make_state(30))
        params, meta, step = checkpoints.restore_params(ABSTRACT.params, step=20)
        assert (meta["seed"], step) == (20, 20)
        assert_same(params, make_state(20).params)
        assert checkpoints.steps() == [10, 20, 30]
        assert checkpoints.best_step() == 20
        checkpoints.average(ABSTRACT.params, 2)
        with pytest.raises(ValueError, match="read only"):
            checkpoints.save(40, make_state(), {})
    assert listing(folder) == before


def test_params_need_nothing_of_the_rest(folder):
    shutil.rmtree(folder / "30" / "rest")
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_params(ABSTRACT.params)[0], make_state(30).params)


def test_relative_folder_and_plain_dict_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"params": {"w": np.arange(4.0)}, "step": 3}
    with Checkpoints("run") as checkpoints:
        assert checkpoints.steps() == [] and checkpoints.best_step() is None
        assert not os.path.exists("run")
        assert checkpoints.save(1, state, {})
        assert not checkpoints.save(1, state, {})
    os.rename("run", "other")
    with Checkpoints("other") as checkpoints:
        restored, _, _ = checkpoints.restore(state)
        assert restored["step"] == 3 and type(restored["params"]["w"]) is np.ndarray
        assert_same(restored, state)
        assert not checkpoints.save(1, state, {})


def test_state_may_be_donated_after_save(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    state = {"params": {"w": jnp.arange(300_000.0) + 1}}
    expected = np.array(state["params"]["w"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(3):
            state["params"]["w"] = overwrite(state["params"]["w"])
        checkpoints.wait()
        restored, _, _ = checkpoints.restore({"params": {"w": jax.ShapeDtypeStruct((300_000,), jnp.float32)}})
    np.testing.assert_array_equal(restored["params"]["w"], expected)


def test_sharding_is_that_of_the_reader(tmp_path):
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), "data")
    spread = jax.sharding.NamedSharding(mesh, jax.P("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    count = 8 * len(devices)
    w, key = jax.device_put(jnp.arange(count, dtype=jnp.float32), spread), jax.device_put(jax.random.key(1), whole)
    state = {"params": {"w": w}, "key": key}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        alone, _, _ = checkpoints.restore(
            jax.eval_shape(lambda: {"params": {"w": jnp.zeros(count)}, "key": jax.random.key(0)})
        )
        again, _, _ = checkpoints.restore(state)
    assert len(alone["params"]["w"].sharding.device_set) == 1
    assert again["params"]["w"].sharding == spread and again["key"].sharding.is_equivalent_to(whole, 0)
    assert_same(alone, state)
    assert_same(again, state)


# ---- which steps stay


def test_last_and_best_are_kept_across_restarts(tmp_path):
    metrics = {1: 2.0, 2: 5.0, 3: None, 4: float("nan"), 5: 5.0, 6: 1.0, 7: 0.0}
    kept = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5], 6: [2, 5, 6], 7: [2, 6, 7]}
    for step, metric in metrics.items():  # a new object each time: the best is remembered on disk
        with Checkpoints(tmp_path, keep=2, keep_best="bleu") as checkpoints:
            checkpoints.save(step, {"params": {"w": jnp.ones(3)}}, {}, metric)
            checkpoints.wait()
            assert checkpoints.steps() == kept[step]
            assert checkpoints.best_step() == (1 if step == 1 else 2)
    with Checkpoints(tmp_path, keep_best="another") as checkpoints:
        assert checkpoints.best_step() is None


def test_policy_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        steps = list(range(rng.integers(1, 7)))
        metrics = {s: None if rng.random() < 0.3 else float(rng.integers(4)) for s in steps}
        keep = int(rng.integers(1, 4))
        infos = [type("Info", (), {"step": s}) for s in steps]
        interim = {s for s in steps if rng.random() < 0.3}
        got = manager._PreservationPolicy(keep, metrics, interim).should_preserve(infos, context=None)
        regular = [s for s in steps if s not in interim]
        top = max((metrics[s] for s in regular if metrics[s] is not None), default=None)
        best = next((s for s in regular if metrics[s] == top), None) if top is not None else None
        assert got == [s in regular[-keep:] or s == best or s == steps[-1] for s in steps]


def test_a_save_that_fails_in_the_background_is_reported_before_the_next_one(tmp_path):
    """Its thread does not wait for other hosts, which wait for it elsewhere."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.check_save()

        def fail() -> None:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                with pytest.raises(OSError, match="No space left"):
                    checkpoints._barrier(key="all", timeout_ms=1)

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        with pytest.raises(SaveError, match="step 1 was not saved .*No space left on device"):
            checkpoints.check_save()


def test_going_back_in_time_is_refused(folder):
    with Checkpoints(folder) as checkpoints:
        _, _, step = checkpoints.restore(ABSTRACT, step=20)
        assert step == 20
        with pytest.raises(UserError, match="holds step 30, and step 25"):
            checkpoints.save(25, make_state(25), {})
        with pytest.raises(UserError, match="holds the steps 10, 20, 30, not step 15"):
            checkpoints.restore(ABSTRACT, step=15)


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="keep = 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(UserError, match="no checkpoint.*check the path"):
        Checkpoints(tmp_path / "none", read_only=True).restore(ABSTRACT)
    with pytest.raises(ValueError, match="without its name"):
        Checkpoints(tmp_path).save(1, make_state(), {}, metric=1.0)
    with pytest.raises(TypeError):
        Checkpoints(tmp_path).save(1, make_state(), {"x": object()})
    assert list(tmp_path.iterdir()) == []


# ---- another configuration, another version


def changed(**params):
    return ABSTRACT.replace(params={**ABSTRACT.params, **params})


def test_dtype_shape_and_leaves_are_compared_before_reading(folder):
    struct_ = jax.ShapeDtypeStruct
    cases = [
        (
            changed(embed=struct_((4,), jnp.bfloat16)),
            r"params/embed is expected as bfloat16\[4\] and stored as float32\[4\]",
        ),
        (
            changed(embed=struct_((5,), jnp.float32)),
            r"params/embed is expected as float32\[5\] and stored as float32\[4\]",
        ),
        (changed(new_state=struct_((4,), jnp.float32)), "params/new_state is expected and not stored"),
        (changed(embed=None), "params/embed is stored and not expected"),
        (
            ABSTRACT.replace(step=struct_((), jnp.float32)),
            r"rest/step is expected as float32\[\] and stored as int32\[\]",
        ),
        (
            ABSTRACT.replace(key=struct_((2,), jnp.uint32)),
            r"rest/key is expected as uint32\[2\] and stored as key<fry>\[\]",
        ),
    ]
    with Checkpoints(folder, read_only=True) as checkpoints:
        for abstract, message in cases:
            with pytest.raises(UserError, match=f"30 does not fit: {message}: it was saved with another configuration"):
                checkpoints.restore(abstract)
        many = {f"p{i}": struct_((), jnp.float32) for i in range(20)}
        with pytest.raises(UserError, match="and 18 more"):
            checkpoints.restore_params(many)


def test_newer_format_is_refused_with_the_cure(folder):
    meta = folder / "30" / "meta" / "metadata"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": 2}))
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(UserError, match="checkpoint format 2, this jaxlm reads up to 1: update jaxlm"):
            checkpoints.restore(ABSTRACT)


# ---- the mean of the last


def test_average_is_the_mean(folder):
    with Checkpoints(folder, read_only=True) as checkpoints:
        for last, up_to, steps in [(1, None, [30]), (2, None, [20, 30]), (3, None, [10, 20, 30]), (2, 25, [10, 20])]:
            mean, used = checkpoints.average(ABSTRACT.params, last, up_to)
            assert used == steps
            states = [make_state(step).params for step in steps]
            for got, *each in zip(jax.tree.leaves(mean), *map(jax.tree.leaves, states), strict=True):
                expected = np.mean([np.asarray(x, np.float64) for x in each], axis=0)
                assert got.dtype == each[0].dtype
                np.testing.assert_allclose(
                    np.asarray(got, np.float64), expected, rtol=2e-3 if got.dtype != "float32" else 1e-6
                )
        for last in (0, 4):
            with pytest.raises(UserError, match=f"last {last} checkpoints .* has .* whole ones"):
                checkpoints.average(ABSTRACT.params, last)


def test_nothing_is_printed(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, make_state(), {})
            checkpoints.restore(ABSTRACT)
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            checkpoints.restore_params(ABSTRACT.params)
    assert capfd.readouterr() == ("", "")

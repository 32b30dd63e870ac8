"""What `jaxlm doctor` says about accelerators, for the machines that a test does not have."""

import pytest

from jaxlm.cli import accelerators

ASKED = ["libtpu==0.0.42.*; extra == 'tpu'", 'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"']
ASKED += ['jax-cuda13-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda13"', "numpy>=2.0"]


@pytest.fixture
def installed(monkeypatch):
    """The packages of a machine, by name; jax 0.10.2 asks for the above."""
    packages = {"jax": "0.10.2"}
    monkeypatch.setattr(accelerators, "version", packages.get)
    monkeypatch.setattr(accelerators.importlib.metadata, "requires", lambda name: ASKED)
    return packages


@pytest.mark.parametrize(
    "driver, packages, state, cure",
    [
        (None, {}, "absent", "nvidia-smi"),
        ("470.57.02", {}, "absent", "driver 525 or newer"),
        ("535.104.05", {}, "absent", "jax[cuda12]"),
        ("580.65.06", {}, "absent", "jax[cuda13]"),
        ("535.104.05", {"jax-cuda13-plugin": "0.10.2"}, "missing", "jax[cuda12]"),
        ("580.65.06", {"jax-cuda12-plugin": "0.9.1"}, "missing", "jax[cuda12]==0.10.2"),
        ("535.104.05", {"jax-cuda12-plugin": "0.10.2"}, "ok", ""),
        ("580.65.06", {"jax-cuda13-plugin": "0.10.2"}, "ok", ""),
    ],
)
def test_driver_and_plugin(installed, driver, packages, state, cure):
    installed |= packages
    found = accelerators.nvidia(driver, unseen=False)
    assert found.state == state and cure in found.cure and bool(found.cure) == (state != "ok")
    assert driver is None or driver in found.found


@pytest.mark.parametrize("libtpu, state, cure", [
    (None, "absent", "jax[tpu]"), ("0.0.42.1", "ok", ""), ("0.0.42", "ok", ""),
    ("0.0.4", "missing", "jax[tpu]==0.10.2"), ("0.0.421", "missing", "jax[tpu]==0.10.2"),
    ("0.0.41.3", "missing", "jax[tpu]==0.10.2"),
])  # fmt: skip
def test_libtpu_is_of_this_jax(installed, libtpu, state, cure):
    installed |= {"libtpu": libtpu} if libtpu else {}
    found = accelerators.tpu(unseen=False)
    assert found.state == state and cure in found.cure


def test_an_accelerator_that_jax_does_not_use_is_told(installed):
    installed |= {"libtpu": "0.0.42.1", "jax-cuda12-plugin": "0.10.2"}
    for found in (accelerators.tpu(unseen=True), accelerators.nvidia("580.65.06", unseen=True)):
        assert found.state == "missing" and "does not use it" in found.found and "jax.devices()" in found.cure


def test_the_installed_jax_names_its_libtpu():
    assert accelerators._wanted("libtpu", "tpu") and accelerators._wanted("jax-cuda12-plugin", "cuda12")

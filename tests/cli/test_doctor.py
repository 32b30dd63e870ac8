"""Accelerator checks of `jaxlm doctor` for machines that the tests do not have."""

import pytest

from jaxlm.cli import system_checks

ASKED = ["libtpu==0.0.42.*; extra == 'tpu'", 'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"']
ASKED += ['jax-cuda13-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda13"', "numpy>=2.0"]


@pytest.fixture
def installed(monkeypatch):
    """The packages of a machine, by name; jax 0.10.2 asks for the above."""
    packages = {"jax": "0.10.2"}
    monkeypatch.setattr(system_checks, "installed_version", packages.get)
    monkeypatch.setattr(system_checks.importlib.metadata, "requires", lambda name: ASKED)
    return packages


@pytest.mark.parametrize(
    "driver, packages, state, cure",
    [
        (None, {}, "optional", "nvidia-smi"),
        ("470.57.02", {}, "optional", "driver 525 or newer"),
        ("535.104.05", {}, "optional", "jax[cuda12]"),
        ("580.65.06", {}, "optional", "jax[cuda13]"),
        ("535.104.05", {"jax-cuda13-plugin": "0.10.2"}, "missing", "jax[cuda12]"),
        ("580.65.06", {"jax-cuda12-plugin": "0.9.1"}, "missing", "jax[cuda12]==0.10.2"),
        ("535.104.05", {"jax-cuda12-plugin": "0.10.2"}, "ok", ""),
        ("580.65.06", {"jax-cuda13-plugin": "0.10.2"}, "ok", ""),
    ],
)
def test_driver_and_plugin(installed, driver, packages, state, cure):
    installed |= packages
    found = system_checks.check_nvidia(driver, unused=False)
    assert found.status == state and cure in found.fix and bool(found.fix) == (state != "ok")
    assert driver is None or driver in found.detail


@pytest.mark.parametrize("libtpu, state, cure", [
    (None, "optional", "jax[tpu]"), ("0.0.42.1", "ok", ""), ("0.0.42", "ok", ""),
    ("0.0.4", "missing", "jax[tpu]==0.10.2"), ("0.0.421", "missing", "jax[tpu]==0.10.2"),
    ("0.0.41.3", "missing", "jax[tpu]==0.10.2"),
])  # fmt: skip
def test_libtpu_has_the_version_that_jax_needs(installed, libtpu, state, cure):
    installed |= {"libtpu": libtpu} if libtpu else {}
    found = system_checks.check_tpu(unused=False)
    assert found.status == state and cure in found.fix


def test_an_accelerator_that_jax_does_not_use_is_reported(installed):
    installed |= {"libtpu": "0.0.42.1", "jax-cuda12-plugin": "0.10.2"}
    for found in (system_checks.check_tpu(unused=True), system_checks.check_nvidia("580.65.06", unused=True)):
        assert found.status == "missing" and "does not use it" in found.detail and "jax.devices()" in found.fix


def test_the_installed_jax_names_its_libtpu():
    assert system_checks._required_version("libtpu", "tpu") and system_checks._required_version(
        "jax-cuda12-plugin", "cuda12"
    )

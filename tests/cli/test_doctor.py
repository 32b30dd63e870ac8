"""Accelerator checks of `jaxlm doctor` for machines that the tests do not have."""

import os
import time

import pytest

from jaxlm.cli import device_checks, system_checks
from jaxlm.nn.attention import kernels

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


@pytest.fixture
def processes(tmp_path):
    """A /proc in which process 12 has two chips of a TPU open, 13 a GPU, 14 neither, and 15 may not be read."""
    opened = {12: ["accel0", "vfio/1", "null"], 13: ["nvidia0", "nvidiactl"], 14: ["null", "vfio/vfio"]}
    for pid, files in opened.items():
        (tmp_path / f"proc/{pid}/fd").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/cmdline").write_bytes(b"python\0-m\0jaxlm\0")
        for number, file in enumerate(files):
            (tmp_path / f"proc/{pid}/fd/{number}").symlink_to(tmp_path / "dev" / file)
    (tmp_path / "proc/15").mkdir()
    (tmp_path / "proc/self").mkdir()
    return tmp_path


def test_processes_that_hold_a_chip_are_named(processes):
    dev = processes / "dev"
    holders = system_checks.device_holders(processes / "proc", dev)
    assert {pid: files for pid, (_, files) in holders.items()} == {
        12: [f"{dev}/accel0", f"{dev}/vfio/1"], 13: [f"{dev}/nvidia0"]
    }  # fmt: skip
    lock = processes / "lockfile"
    lock.touch()
    on_tpu, on_gpu = system_checks.check_device_holders(None, holders, lock)
    assert on_tpu.status == "missing" and "process 12 (python -m jaxlm)" in on_tpu.detail and on_tpu.fix == "kill 12"
    assert on_gpu.status == "optional"  # a GPU can be shared
    (left,) = system_checks.check_device_holders("cpu", {}, lock)
    assert str(lock) in left.detail and "rm " in left.fix
    assert not list(system_checks.check_device_holders("tpu", {}, lock))


def test_this_process_is_no_holder(processes):
    (processes / "proc/12").rename(processes / f"proc/{os.getpid()}")
    assert list(system_checks.device_holders(processes / "proc", processes / "dev")) == [13]


def test_one_host_of_a_pod_does_not_wait_without_end(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4")
    assert system_checks.pod_hosts() == 4
    with pytest.raises(TimeoutError, match=r"no answer in 0\.01 s"):
        system_checks.within(0.01, lambda: time.sleep(0.2))
    with pytest.raises(ZeroDivisionError):
        system_checks.within(5, lambda: 1 // 0)
    assert system_checks.within(5, lambda: [1]) == [1]
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    assert system_checks.pod_hosts() == 1


def test_the_library_that_failed_is_named(monkeypatch):
    def broken():
        raise RuntimeError("Unable to load cuDNN")

    for name in ("run_product", "run_lstm"):
        monkeypatch.setattr(device_checks, name, lambda: None)
    monkeypatch.setattr(device_checks, "run_attention", broken)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda/lib64")
    product, attention, lstm = device_checks.check_computations("gpu")
    assert product.status == lstm.status == "ok" and "cuBLAS" in product.detail
    assert attention.status == "missing" and attention.detail.startswith("cuDNN failed: RuntimeError: Unable to load")
    assert "LD_LIBRARY_PATH" in attention.fix


def test_the_computations_run_here():
    assert [check.status for check in device_checks.check_computations("cpu")] == ["ok"] * 3


def test_the_faster_attention_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    kernels._stored_times.cache_clear()
    assert kernels.remembered_kernel("NVIDIA H200") is None
    kernels.remember_times("NVIDIA H200", {"cudnn": 1.2, "plain": 4.5})
    kernels.remember_times("NVIDIA A100", {"cudnn": 2.0, "plain": 1.5})
    assert kernels.remembered_kernel("NVIDIA H200") == "cudnn"
    assert kernels.remembered_kernel("NVIDIA A100") == "plain"
    (tmp_path / kernels.TIMES_FILE).write_bytes(b"damaged")
    kernels._stored_times.cache_clear()
    assert kernels.remembered_kernel("NVIDIA H200") is None  # and is timed again
    kernels._stored_times.cache_clear()


@pytest.mark.parametrize("text, status", [("always [madvise] never", "optional"), ("[always] madvise never", "ok")])
def test_huge_pages(tmp_path, text, status):
    file = tmp_path / "enabled"
    assert not list(system_checks.check_huge_pages(file))
    file.write_text(text)
    (check,) = system_checks.check_huge_pages(file)
    assert check.status == status and (f"tee {file}" in check.fix) == (status == "optional")

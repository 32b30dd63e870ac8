"""What a process does to its allocator: memory that a step frees is there for the next one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import runtime

STEPS = """
import resource, sys
from jaxlm import runtime
if sys.argv[1] == "keep":
    runtime.configure_malloc()
import jax
import jax.numpy as jnp

step = jax.jit(lambda a, b: (a @ b) @ b.T)
x = jnp.ones((4096, 16)), jnp.ones((16, 5000))
counts = []
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(*x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(counts[8:])[4])
"""


def faults(how: str) -> int:
    """Page faults (the median) of a warm step that needs 80 MB for a moment: 20,000 pages of 4 KiB."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    run = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, env=clean, check=True)
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_freed_memory_is_kept():
    """More than 64 MiB in one piece, which XLA allocates in a thread of its own."""
    # The median of three processes: the system lays out the memory of each differently, and in about one process of
    # forty every step faulted in all of its pages.
    kept = sorted(faults("keep") for _ in range(3))[1]
    assert kept < 2000 < 10_000 < faults("leave")


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: bytes([b[0] ^ 1]) + b[1:], None])
def test_a_damaged_file_of_a_cache_is_not_read(tmp_path, damage):
    file = tmp_path / "entry"
    assert runtime.read_checked(file) is None
    runtime.write_checked(file, b"content")
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    assert runtime.read_checked(file) == (None if damage else b"content")
    runtime.write_checked(file, b"again")
    assert runtime.read_checked(file) == b"again"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    runtime.write_checked(tmp_path / "absent" / "entry", b"ignored")


def test_a_cache_without_a_place(tmp_path, monkeypatch):
    for name in ("JAXLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert runtime.cache_folder() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "file"))
    assert runtime.cache_folder() is None


CACHED = """
import jax
from jaxlm import runtime
runtime.configure_process()
print(float(jax.jit(lambda x: x * 3 + 1)(2.0)))
from jaxlm.nn.weights import cpu_kernels
print(cpu_kernels.panel_width())  # loads the kernels
"""


@pytest.mark.slow
def test_a_damaged_cache_is_compiled_again(tmp_path):
    """Programs of XLA and the kernels in C: cut off or changed, they are replaced, without a word."""
    environment = os.environ | {"JAXLM_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    outputs = []
    for damage in (None, lambda b: b[: len(b) // 2], lambda b: b[:100] + bytes([b[100] ^ 255]) + b[101:]):
        for file in tmp_path.iterdir() if damage else ():
            file.write_bytes(damage(file.read_bytes()))
        command = [sys.executable, "-c", CACHED]
        outputs.append(subprocess.run(command, capture_output=True, text=True, env=environment, check=True))
        files = list(tmp_path.iterdir())
        assert len(files) > 1 and all(runtime.read_checked(file) is not None for file in files)
    assert len({output.stdout for output in outputs}) == 1 and not any(output.stderr for output in outputs)


@pytest.mark.slow
def test_closed_streams(tmp_path):
    """What a program writes to a closed stderr is not written into a file that it opens."""
    command = f"exec {sys.executable} -m jaxlm show {tmp_path} 2>&-"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stdout == ""


@pytest.mark.parametrize("platforms, device, plugin, expected", [
    ("cpu", "nvidia0", "jax_cuda12_plugin", False),
    ("tpu,cpu", None, None, True),
    ("", None, "jax_cuda12_plugin", False),
    ("", "nvidia0", None, False),
    ("", "nvidiactl", "jax_cuda12_plugin", False),
    ("", "nvidia0", "jax_cuda13_plugin", True),
    ("", "accel0", "libtpu", True),
    ("", "vfio/0", "libtpu", True),
    ("", "vfio/vfio", "libtpu", False),
])  # fmt: skip
def test_malloc_is_left_alone_with_an_accelerator(tmp_path, monkeypatch, platforms, device, plugin, expected):
    """A device and the module that drives it, or what JAX_PLATFORMS says."""
    (tmp_path / "vfio").mkdir()
    if device:
        (tmp_path / device).touch()
    configured = []
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("JAXLM_CACHE", "")
    monkeypatch.setattr(runtime, "DEVICE_FOLDER", tmp_path)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name if name == plugin else None)
    monkeypatch.setattr(runtime, "configure_malloc", lambda: configured.append(True))
    runtime.configure_process()
    assert configured == [True] * (not expected)

"""The process of a run: compilation cache, memory allocator, time since its start, versions of code and libraries."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxlm import __version__

GIBIBYTE = 2**30
DIGEST_BYTES = hashlib.sha256().digest_size

DEVICE_FOLDER = Path("/dev")

ACCELERATOR_PLUGINS = {
    "nvidia[0-9]*": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
    "accel[0-9]*": ("libtpu",),
    "vfio/[0-9]*": ("libtpu",),
}
"""Device files -> the modules by which JAX uses such devices."""

GPU_MEMORY_FRACTION = 0.92
"""The share of a GPU's memory that JAX may take, unless one of MEMORY_FRACTION_NAMES is set; JAX's own is 0.75."""

MEMORY_FRACTION_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""JAX refuses to start with both of these environment variables."""

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
"""Distributions whose versions can change what a run computes."""


def configure_process() -> None:
    """Configure the allocators and JAX's compilation cache. Call once, before the first array is made."""
    import jax

    if not expects_accelerator():
        configure_malloc()
    if not any(name in os.environ for name in MEMORY_FRACTION_NAMES):
        os.environ[MEMORY_FRACTION_NAMES[0]] = str(GPU_MEMORY_FRACTION)
    folder = cache_folder()
    if folder is not None:
        from jax._src import compilation_cache

        compilation_cache.get_file_cache = _checked_cache
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def expects_accelerator() -> bool:
    """True if JAX will use a GPU or a TPU, judged without starting it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return not platforms.startswith("cpu")
    return any(
        any(DEVICE_FOLDER.glob(files)) and any(importlib.util.find_spec(name) for name in plugins)
        for files, plugins in ACCELERATOR_PLUGINS.items()
    )


def cache_folder() -> Path | None:
    """The folder of compiled programs: $JAXLM_CACHE, else ~/.cache/jaxlm/xla.

    None if $JAXLM_CACHE is "", if there is no home, or if the folder cannot be made: then nothing is kept.
    """
    chosen = os.environ.get("JAXLM_CACHE")
    if chosen == "":
        return None
    try:
        folder = Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / "xla")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home
        return None
    return folder


def read_checked(path: Path) -> bytes | None:
    """The content that `write_checked` wrote; None if the file is missing or damaged."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    content, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_checked(path: Path, content: bytes) -> None:
    """Write a file of a cache, with its digest at the end, whole or not at all. An OSError is ignored."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent) as temporary:  # one a process
        partial = Path(temporary) / path.name
        partial.write_bytes(content + hashlib.sha256(content).digest())
        partial.replace(path)


def _checked_cache(path: str) -> tuple[Any, str]:
    """JAX's cache of compiled programs, but a damaged entry is compiled again instead of being loaded."""
    from jax._src.lru_cache import LRUCache

    class CheckedCache(LRUCache):
        def get(self, key: str) -> bytes | None:
            return read_checked(Path(path) / f"{key}-checked")

        def put(self, key: str, value: bytes) -> None:
            write_checked(Path(path) / f"{key}-checked", value)

    return CheckedCache(path, max_size=-1), path


def configure_malloc() -> None:
    """Make glibc, unless MALLOC_ variables are set, keep big freed blocks instead of returning them to the system.

    On a CPU, XLA frees its temporaries after each step; faulting their pages in again costs up to a third of a step.
    XLA allocates them in its own threads, whose arenas hold at most 64 MiB in one piece and otherwise ask the system
    each time; hence a single arena. This costs resident memory, and all threads share one lock: with an accelerator,
    whose memory XLA manages itself, compilation, checkpoints and data loading would wait for it.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8
    mallopt(arena_max, 1)
    mallopt(mmap_threshold, GIBIBYTE)
    mallopt(trim_threshold, 2 * GIBIBYTE - 1)


_callback: ContextVar[Callable[[], None]] = ContextVar("between_batches", default=lambda: None)


@contextlib.contextmanager
def call_between_batches(callback: Callable[[], None]) -> Iterator[None]:
    """Call a function between the batches of every evaluation in this block; what it raises ends the evaluation."""
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)


def between_batches() -> None:
    """To be called by every loop over the batches of an evaluation."""
    _callback.get()()


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, by KeyboardInterrupt; within `stop_signals` it is a request to save."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main_thread else None
    try:
        yield
    finally:
        if is_main_thread:
            signal.signal(signal.SIGTERM, old or signal.SIG_DFL)


def seconds_since_start() -> float:
    """Seconds since the start of this process (on Linux; elsewhere since the import of this module)."""
    try:
        after_boot = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.perf_counter() - _IMPORT_TIME


def library_versions() -> dict[str, str]:
    """Name -> version of jaxlm, Python and LIBRARIES ("absent" if not installed)."""
    versions = {"jaxlm": __version__, "python": platform.python_version()}
    installed = {name: next(iter(metadata.distributions(name=name)), None) for name in LIBRARIES}
    return versions | {name: package.version if package else "absent" for name, package in installed.items()}


def machine_name() -> str:
    """The devices of the run, such as `8 x NVIDIA H100` or `2 cores of AMD EPYC 9B14`."""
    import jax

    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores of {name}"


def git_state() -> dict[str, Any] | None:
    """The commit of the running code and whether its files differ from that commit; None outside a repository."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        command = ["git", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


_IMPORT_TIME = time.perf_counter()

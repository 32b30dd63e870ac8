"""The process of a run: compilation cache, memory allocator, time since its start, versions of code and libraries."""

import ctypes
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxlm import __version__

GIBIBYTE = 2**30

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
"""Distributions whose versions can change what a run computes."""


def configure_process() -> None:
    """Configure the allocator and JAX's compilation cache. Call once, before the first array is made."""
    import jax

    configure_malloc()
    folder = cache_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> Path | None:
    """The folder of compiled programs: $JAXLM_CACHE, else ~/.cache/jaxlm/xla; None if $JAXLM_CACHE is ""."""
    chosen = os.environ.get("JAXLM_CACHE")
    if chosen == "":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else home / "jaxlm" / "xla"


def configure_malloc() -> None:
    """Make glibc, unless MALLOC_ variables are set, keep big freed blocks instead of returning them to the system.

    On a CPU, XLA frees its temporaries after each step; faulting their pages in again costs up to a third of a step.
    XLA allocates them in its own threads, whose arenas hold at most 64 MiB in one piece and otherwise ask the system
    each time; hence a single arena. This costs resident memory.
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

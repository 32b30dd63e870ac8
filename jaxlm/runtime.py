"""The process around a run: the persistent compilation cache, the allocator on a CPU, and the clock since its start."""

import ctypes
import os
import time
from pathlib import Path

GIBIBYTE = 2**30


def configure_process() -> None:
    """Call once, before the first array is made."""
    import jax

    configure_malloc()
    folder = cache_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> Path | None:
    """Where compiled programs are kept: $JAXLM_CACHE, else ~/.cache/jaxlm/xla; None where $JAXLM_CACHE is ""."""
    chosen = os.environ.get("JAXLM_CACHE")
    if chosen == "":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else home / "jaxlm" / "xla"


def configure_malloc() -> None:
    """Tell glibc to keep big freed blocks instead of giving them back to the system after every step.

    XLA frees its temporaries after each step on a CPU; faulting their pages in again costs up to a third of a step.
    It allocates them in threads of its own, whose arenas have no room for more than 64 MiB in one piece and ask the
    system each time; hence a single arena. Costs resident memory. Does nothing where there is no glibc or where MALLOC_
    variables already decide.
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
    """Seconds since this process was started by the system (on Linux; else since this module was imported)."""
    try:
        after_boot = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.perf_counter() - _IMPORT_TIME


_IMPORT_TIME = time.perf_counter()

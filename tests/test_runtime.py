"""What a process does to its allocator: memory that a step frees is there for the next one."""

import os
import subprocess
import sys

import pytest

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

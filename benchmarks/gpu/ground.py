"""Part 0: clocks, versions, `jaxlm doctor`, and the ceilings that the other parts are compared with."""

import shutil
import subprocess
import sys

from benchmarks.gpu.figures import Session, repeats
from jaxlm.cli.device_checks import milliseconds


def machine(session: Session) -> None:
    """The GPU with its clocks, the versions, and the verdict of `jaxlm doctor`."""
    from jaxlm import runtime

    if shutil.which("nvidia-smi"):
        query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,memory.total"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        report = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
        session.figure("nvidia-smi", report.strip(), query)
    session.figure("versions", runtime.library_versions())
    command = [sys.executable, "-m", "jaxlm", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    # A machine without the data sets or the optional packages is fine; those rows are not `missing`.
    missing = [line.strip() for line in done.stdout.splitlines() if "missing  " in line]
    session.figure("doctor", missing or "nothing is missing", good="nothing is missing")


def ceilings(session: Session) -> None:
    """Products of 8192 x 8192 matrices in bfloat16 and TF32, and a pass over 2 GiB of memory."""
    import jax
    import jax.numpy as jnp

    n = session.size(8192)
    product = jax.jit(jnp.matmul)
    for name, dtype, good in (("bfloat16", jnp.bfloat16, "770-800"), ("TF32", jnp.float32, "350-400")):
        x = jax.random.normal(jax.random.key(0), (n, n), dtype)
        rate = 2 * n**3 / milliseconds(lambda x=x: product(x, x), **repeats(session)) / 1e9
        session.figure(f"product {name}", rate, "TFLOP/s", good)
    x = jnp.ones(session.size(2**29), jnp.float32)
    negate = jax.jit(jnp.negative)
    rate = 2 * x.nbytes / milliseconds(lambda: negate(x), **repeats(session)) / 1e9
    session.figure("memory", rate, "TB/s read and written", "4.3 (H200), 3.0 (H100)")

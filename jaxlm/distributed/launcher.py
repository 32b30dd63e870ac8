"""The launcher that started several processes, and the words on stderr while one of them waits for the others."""

import contextlib
import importlib.util
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from jax._src.distributed import global_state

TPU_POD = "a TPU pod"

SECONDS_BEFORE_FIRST_WORD, SECONDS_BETWEEN_WORDS = 3.0, 15.0

INTERACTIVE_STEP = "4294967290"
"""The number that Slurm gives to the step of an interactive shell."""


def process_label() -> str:
    """This process, before the others are known: `process 2 of 4 on node17`."""
    return f"process {global_state.process_id} of {global_state.num_processes} on {platform.node()}"


@contextlib.contextmanager
def waiting_words(launcher: str, limit: int) -> Iterator[None]:
    """Say every few seconds that the others are awaited, and hide what C++ writes to stderr meanwhile."""
    sys.stderr.flush()
    terminal, nothing, has_met = os.dup(2), os.open(os.devnull, os.O_WRONLY), threading.Event()
    began = time.monotonic()

    def say() -> None:
        pause = SECONDS_BEFORE_FIRST_WORD
        while not has_met.wait(pause):
            pause = SECONDS_BETWEEN_WORDS
            waited = f"{time.monotonic() - began:.0f} of at most {limit} s"
            os.write(terminal, f"jaxlm: {process_label()} waits for the others ({launcher}): {waited}\n".encode())

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        has_met.set()
        thread.join()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nothing)


def detect_launcher() -> str:
    """The launcher that may have started several processes, or "": Slurm, Open MPI, or a TPU pod if there is a TPU."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not _is_slurm_shell():
        return "Slurm"
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    has_tpu = any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0"))
    uses_tpu = has_tpu and not os.environ.get("JAX_PLATFORMS", "").startswith(("cpu", "cuda"))
    return TPU_POD if uses_tpu and importlib.util.find_spec("libtpu") else ""


def _is_slurm_shell() -> bool:
    """True in an interactive shell of Slurm, which is one process, however many tasks its step has."""
    if os.environ.get("SLURM_STEP_ID") == INTERACTIVE_STEP:
        return True
    is_named_so = os.environ.get("SLURM_JOB_NAME") in ("interactive", "bash", "sh", "zsh")
    # A step that is started from such a shell inherits its variables, but not its terminal.
    return (is_named_so or "SLURM_PTY_PORT" in os.environ) and (
        "SLURM_TASK_PID" not in os.environ or (sys.stdin is not None and sys.stdin.isatty())
    )

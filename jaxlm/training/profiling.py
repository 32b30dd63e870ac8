"""Traces of training steps for XProf and Perfetto: of steps that an option names, or of the next ones after SIGUSR1."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

SIGNAL_STEPS = 5
"""Steps that are traced after SIGUSR1."""


def start_trace(folder: Path) -> None:
    """Trace the devices and the runtime, without Python's calls, which would slow the steps."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(str(folder), profiler_options=options)


class StepProfiler:
    """Traces steps into a folder; `before_step` and `after_step` surround each step, and cost it two comparisons.

    A trace that cannot be made or written is reported and ends no run. Each process traces its own devices.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, notify: Callable[[str], None]) -> None:
        """`steps`: the first and the last step to trace, counted from 1; `notify(text)` shows a line to users."""
        self.folder, self.notify = folder, notify
        self.first, self.last = steps or (0, 0)
        self.is_tracing = self.is_requested = False

    def request(self, *_: Any) -> None:
        """Trace the next SIGNAL_STEPS steps: the handler of a signal."""
        self.is_requested = True

    def before_step(self, step: int) -> None:
        """Start the trace if it begins with this step."""
        if self.is_requested and not self.is_tracing:
            self.first, self.last = step, step + SIGNAL_STEPS - 1
            self.is_requested = False
        if step == self.first:
            with self._reported():
                start_trace(self.folder)
                self.is_tracing = True

    def after_step(self, step: int, metrics: Any) -> None:
        """Wait for the step and write the trace if it ends with this step."""
        if self.is_tracing and step >= self.last:
            jax.block_until_ready(metrics)
            self.stop()

    def stop(self) -> None:
        """Write a trace that has begun, also if its last step has not come."""
        if self.is_tracing:
            self.is_tracing = False
            with self._reported():
                jax.profiler.stop_trace()
                self.notify(f"a trace of steps from {self.first} on is in {self.folder}")

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            self.notify(f"no trace of steps {self.first} to {self.last} in {self.folder}: {error}")


@contextlib.contextmanager
def profile_steps(
    folder: Path, steps: tuple[int, int] | None, notify: Callable[[str], None], done: int = 0
) -> Iterator[StepProfiler]:
    """A profiler that SIGUSR1 asks for a trace too, in the main thread; see StepProfiler. `done`: the steps so far."""
    profiler = StepProfiler(folder, steps, notify)
    if steps and steps[0] <= done:
        notify(f"--profile-steps {steps[0]}:{steps[1]}: step {done} is done already, so nothing is traced")
    is_main_thread = threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGUSR1, profiler.request) if is_main_thread else None
    try:
        yield profiler
    finally:
        profiler.stop()
        if is_main_thread:
            signal.signal(signal.SIGUSR1, old or signal.SIG_DFL)

"""Measures of training steps: sums and rates for the log, and traces for XProf and Perfetto.

Steps are traced that an option names, or the next ones after SIGUSR1.
"""

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxlm.training.step import StepMetrics

MAX_STEPS_IN_FLIGHT = 2
"""Steps that may be dispatched ahead: enough to keep the device busy, few enough to stop soon."""

LOSS_SUMS = ("total", "nll", "count")


class ThroughputMeter:
    """Collects metrics that are still being computed, and the seconds spent waiting for data."""

    def __init__(self, sums: dict[str, Any] | None = None, unit: str = "tokens") -> None:
        """`sums`: `pending_sums` of a run that is resumed; its next line is that of an uninterrupted run. `unit`: the
        name of what the loss counts."""
        self.unit = unit
        self._sums: dict[str, Any] = dict(sums or dict.fromkeys(LOSS_SUMS, 0.0))
        self._figures: dict[str, list[float]] = self._sums.pop("figures", {})
        self._pending: deque[StepMetrics] = deque()
        self._last: StepMetrics | None = None
        self.reset_clock()

    def add(self, metrics: StepMetrics, wait_seconds: float) -> None:
        """Add a step. Waits for the step MAX_STEPS_IN_FLIGHT before it, never for this one."""
        self._pending.append(metrics)
        self._waited += wait_seconds
        if len(self._pending) > MAX_STEPS_IN_FLIGHT:
            self._pending[-1 - MAX_STEPS_IN_FLIGHT].total.block_until_ready()

    def reset_clock(self) -> None:
        """Exclude the time and the steps so far (an evaluation, a compilation) from the rates."""
        self._collect_pending()
        self._since, self._waited, self._steps, self._tokens = time.perf_counter(), 0.0, 0, 0.0

    def pending_sums(self) -> dict[str, Any]:
        """The sums of the steps since the last line, for a checkpoint. Waits for the steps."""
        self._collect_pending()
        return self._sums | ({"figures": self._figures} if self._figures else {})

    def compute_metrics(self) -> dict[str, float]:
        """The metrics since the last call: means per token, the last learning rate, tokens/s, share of waiting."""
        self._collect_pending()
        seconds = max(time.perf_counter() - self._since, 1e-9)
        sums, figures, last = self._sums, self._figures, self._last
        assert last is not None, "a line of the log is due after a step"
        self._sums, self._figures = dict.fromkeys(LOSS_SUMS, 0.0), {}
        metrics = {
            "train/loss": sums["total"] / max(sums["count"], 1.0),
            "train/nll": sums["nll"] / max(sums["count"], 1.0),
            "train/gradient_norm": float(last.gradient_norm),
            "train/learning_rate": float(last.learning_rate),
            f"train/{self.unit}": sums["count"],
            f"time/{self.unit}_per_second": self._tokens / seconds,
            "time/steps_per_second": self._steps / seconds,
            "time/waiting": min(self._waited / seconds, 1.0),
        }
        for name, (total, count) in figures.items():
            metrics[name if name.startswith("time/") else f"train/{name}"] = total / max(count, 1.0)
        self.reset_clock()
        return metrics

    def _collect_pending(self) -> None:
        """Wait for the dispatched steps and add them up, oldest first."""
        for step in jax.device_get(list(self._pending)):
            for name in LOSS_SUMS:
                self._sums[name] += float(getattr(step, name))
            for name, figure in step.figures.items():
                total, count = self._figures.get(name, (0.0, 0.0))
                self._figures[name] = [total + float(figure[0]), count + float(figure[1])]
            self._steps, self._tokens, self._last = self._steps + 1, self._tokens + float(step.count), step
        self._pending.clear()


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

"""Sums of the steps since the last line of the log. The device is asked when a line is due, not at every step."""

import time
from collections import deque

import jax

from jaxlm.train.step import Metrics

AHEAD = 2
"""Steps that may be under way at once: enough to keep the device busy, few enough to stop soon."""


class Meter:
    """Collects `Metrics` that are still being computed, the seconds spent waiting for data, and the clock."""

    def __init__(self) -> None:
        self._pending: deque[Metrics] = deque()
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, metrics: Metrics, waited: float) -> None:
        """One more step. Waits for the step that lies `AHEAD` behind, never for this one."""
        self._pending.append(metrics)
        self._waited += waited
        if len(self._pending) > AHEAD:
            self._pending[-1 - AHEAD].total.block_until_ready()

    def restart(self) -> None:
        """Leave the time since the last line (an evaluation, a compilation) out of the rates."""
        self._since, self._waited = time.perf_counter(), 0.0

    def read(self) -> dict[str, float]:
        """The figures of the steps since the last call: per token means, the last rate, tokens/s, waiting share."""
        steps = jax.device_get(list(self._pending))
        seconds = max(time.perf_counter() - self._since, 1e-9)
        count = sum(float(step.count) for step in steps)
        figures = {
            "train/loss": sum(float(step.total) for step in steps) / max(count, 1.0),
            "train/nll": sum(float(step.nll) for step in steps) / max(count, 1.0),
            "train/gradient_norm": float(steps[-1].gradient_norm),
            "train/learning_rate": float(steps[-1].learning_rate),
            "train/tokens": count,
            "time/tokens_per_second": count / seconds,
            "time/steps_per_second": len(steps) / seconds,
            "time/waiting": min(self._waited / seconds, 1.0),
        }
        self._pending.clear()
        self.restart()
        return figures

"""Sums and rates of the steps since the last line of the log, read from the device only if a line is due."""

import time
from collections import deque
from typing import Any

import jax

from jaxlm.training.step import StepMetrics

MAX_STEPS_IN_FLIGHT = 2
"""Steps that may be dispatched ahead: enough to keep the device busy, few enough to stop soon."""

LOSS_SUMS = ("total", "nll", "count")


class ThroughputMeter:
    """Collects metrics that are still being computed, and the seconds spent waiting for data."""

    def __init__(self, sums: dict[str, Any] | None = None) -> None:
        """`sums`: `pending_sums` of a run that is resumed; its next line is that of an uninterrupted run."""
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
            "train/tokens": sums["count"],
            "time/tokens_per_second": self._tokens / seconds,
            "time/steps_per_second": self._steps / seconds,
            "time/waiting": min(self._waited / seconds, 1.0),
        }
        metrics |= {f"train/{name}": total / max(count, 1.0) for name, (total, count) in figures.items()}
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

"""Reasons to stop: a signal, the clock (with several hosts at the same step), or evaluations that do not improve."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jax.experimental import multihost_utils

from jaxlm.distributed import multihost


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second signal ends the process as usual.

    With several hosts Ctrl-C becomes SIGTERM, which JAX handles and makes known to all of them (see `stop_reason`).
    """
    stopped, old = threading.Event(), dict[int, Any]()

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(number, old[number])
        if multihost.num_hosts() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        for number in map(int, (signal.SIGINT, signal.SIGTERM) if multihost.num_hosts() == 1 else (signal.SIGINT,)):
            old[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number in old:
            signal.signal(number, old[number])


class EvaluationInterrupted(Exception):
    """A signal has come during an evaluation, which the resumed run repeats."""


def stop_reason(stopped: threading.Event, step: int, timed_out: bool) -> str | None:
    """Why to stop after this step, "interrupted" or "time" (if this host's clock has `timed_out`); the same on all."""
    if multihost.num_hosts() == 1:
        return "interrupted" if stopped.is_set() else "time" if timed_out else None
    if timed_out and multihost.is_first() and not stopped.is_set():
        stopped.set()
        os.kill(os.getpid(), signal.SIGTERM)
    # A barrier that JAX resolves after a SIGTERM on any host: all hosts stop after the same step.
    if not multihost_utils.reached_preemption_sync_point(step):
        return None
    return multihost.broadcast_from_first("time" if timed_out else "interrupted")


@dataclass(frozen=True)
class EarlyStopping:
    """The state of early stopping, saved with a checkpoint: the best (highest) metric, its step, the number of
    evaluations since then, all values (None: not finite), and whether an evaluation broke a limit, which ends the run.
    """

    best: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    history: tuple[float | None, ...] | list[float | None] = ()
    limit_broken: bool = False

    def update(self, metric: float | None, step: int) -> "EarlyStopping":
        """The state after one more evaluation."""
        finite = metric is not None and math.isfinite(metric)
        history = (*self.history, metric if finite else None)
        if finite and (self.best is None or metric > self.best):
            return EarlyStopping(metric, step, 0, history)
        return EarlyStopping(self.best, self.best_step, self.evals_since_best + 1, history)

    def no_longer_improving(self, patience: int) -> bool:
        """True if the newest value is worse than the best of those before the last `patience` ones."""
        old = [value for value in self.history[:-patience] if value is not None]
        if not old or not self.history:
            return False
        newest = self.history[-1]
        return newest is None or newest < max(old)

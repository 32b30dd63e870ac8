"""How a run is asked to stop: by a signal or the clock, and with several hosts by all of them at the same step.

How evaluations went: which was the best, and whether they still get better.
"""

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
    """Set on the first Ctrl-C or SIGTERM, which then does nothing else; a second one ends the process as usual.

    With several hosts SIGTERM belongs to JAX, which tells it to all of them (see `asked_to_stop`), and Ctrl-C becomes
    one.
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


def stop_reason(stopped: threading.Event, step: int, timed_out: bool) -> str | None:
    """Why to stop after this step, "interrupted" or "time", or None: the same on every host.

    `late`: by this host's clock the time is over.
    """
    if multihost.num_hosts() == 1:
        return "interrupted" if stopped.is_set() else "time" if timed_out else None
    if timed_out and multihost.is_first() and not stopped.is_set():
        stopped.set()
        os.kill(os.getpid(), signal.SIGTERM)
    if not multihost_utils.reached_preemption_sync_point(step):
        return None
    return multihost.broadcast_from_first("time" if timed_out else "interrupted")


@dataclass(frozen=True)
class EarlyStopping:
    """What patience must remember; it travels in the checkpoint's metadata. Of a figure here more is always better.

    best, best_step: the best figure and where it was reached; worse: evaluations since then; history: all figures.
    """

    best: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    history: tuple[float | None, ...] | list[float | None] = ()

    def update(self, metric: float | None, step: int) -> "EarlyStopping":
        """The same after one more evaluation."""
        finite = metric is not None and math.isfinite(metric)
        history = (*self.history, metric if finite else None)
        if finite and (self.best is None or metric > self.best):
            return EarlyStopping(metric, step, 0, history)
        return EarlyStopping(self.best, self.best_step, self.evals_since_best + 1, history)

    def no_longer_improving(self, patience: int) -> bool:
        """The newest figure is worse than the best one of those that are older than the last `patience`."""
        old = [figure for figure in self.history[:-patience] if figure is not None]
        if not old or not self.history:
            return False
        newest = self.history[-1]
        return newest is None or newest < max(old)

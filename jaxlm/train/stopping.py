"""How a run is asked to stop: by a signal or the clock, and with several hosts by all of them at the same step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax.experimental import multihost_utils

from jaxlm import hosts


@contextmanager
def signals() -> Iterator[threading.Event]:
    """Set on the first Ctrl-C or SIGTERM, which then does nothing else; a second one ends the process as usual.

    With several hosts SIGTERM belongs to JAX, which tells it to all of them (see `asked_to_stop`), and Ctrl-C becomes
    one.
    """
    stopped, old = threading.Event(), dict[int, Any]()

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(number, old[number])
        if hosts.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        for number in map(int, (signal.SIGINT, signal.SIGTERM) if hosts.count() == 1 else (signal.SIGINT,)):
            old[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number in old:
            signal.signal(number, old[number])


def asked_to_stop(stopped: threading.Event, step: int, late: bool) -> str | None:
    """Why to stop after this step, "interrupted" or "time", or None: the same on every host.

    `late`: by this host's clock the time is over.
    """
    if hosts.count() == 1:
        return "interrupted" if stopped.is_set() else "time" if late else None
    if late and hosts.first() and not stopped.is_set():
        stopped.set()
        os.kill(os.getpid(), signal.SIGTERM)
    if not multihost_utils.reached_preemption_sync_point(step):
        return None
    return hosts.from_first("time" if late else "interrupted")

"""Liveness of several processes: a host that is killed, stopped or cut off is named within a minute.

The coordination service in host 0 hears a heartbeat of each host. It comes from a C++ thread, which continues while
Python computes and ends with the process or its network. A host asks every second which hosts are alive. Without host 0
JAX would end the process by an exception of C++ or SIGABRT; handlers of both name host 0 instead.
"""

import atexit
import contextlib
import ctypes
import functools
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed
from jax._src.lib import _jax

HEARTBEAT_TIMEOUT = 30
"""Seconds without a heartbeat after which a host counts as lost."""

ENDED = "jaxlm/ended/"
"""Keys of the store: why each host has ended; "" after success."""

SECONDS_BETWEEN_LOOKS = 1.0


@contextlib.contextmanager
def errors_of_clients(limit: int) -> Iterator[None]:
    """While JAX connects: its clients report errors to this module instead of ending the process, and the service ends
    the wait before the limit of the clients (seconds), so that they hear from it which hosts are missing.

    JAX cannot convert such an error for Python yet and raises std::bad_cast: from `connect`, which is an exception of
    Python, or later from a C++ thread, which goes to the handler.
    """
    jax.config.update("jax_enable_recoverability", True)  # the loss of one host must not end the others at once
    bindings: Any = _jax
    make_client, make_service = bindings.get_distributed_runtime_client, bindings.get_distributed_runtime_service
    report = functools.partial(make_client, missed_heartbeat_callback=lambda *_: None)
    wait = functools.partial(make_service, cluster_register_timeout=int(0.95 * limit))
    bindings.get_distributed_runtime_client, bindings.get_distributed_runtime_service = report, wait
    try:
        yield
    finally:
        bindings.get_distributed_runtime_client, bindings.get_distributed_runtime_service = make_client, make_service


def end_unmet() -> str:
    """End this host's part of a meeting that failed. Returns which hosts did not come; "" if that is not known."""
    state, report = distributed.global_state, ""
    was_alone = state.client is not None and state.service is None
    for part in (state.client, state.service):
        try:
            if part is not None:
                part.shutdown()
        except Exception as error:
            report += str(error)
    state.client = state.service = None
    if names := re.search(r"timed out task names:\n([0-9\n]+)", report):
        return ", ".join(f"host {host}" for host in sorted(map(int, names[1].split())))
    return "host 0" if was_alone else ""


class Liveness:
    """The view of one host. `on_loss(message)` is called in another thread and ends the process."""

    def __init__(self, on_loss: Callable[[str], None]) -> None:
        state: Any = distributed.global_state
        self.client, self.host, count, self.on_loss = state.client, state.process_id, state.num_processes, on_loss
        self.client.key_value_set(f"jaxlm/node/{self.host}", platform.node())
        nodes = [self.client.blocking_key_value_get(f"jaxlm/node/{host}", 60_000) for host in range(count)]
        self.names = [f"host {host} of {count} ({node})" for host, node in enumerate(nodes)]
        self.is_leaving = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True, name="liveness")
        self.thread.start()
        aborted = functools.partial(on_loss, "a library has aborted this process; its message is above")
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: self._handle_fault(aborted))  # kept: C calls it
        ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGABRT), self._on_abort)
        self._on_terminate = ctypes.CFUNCTYPE(None)(lambda: self._handle_fault(lambda: self._report_exception()))
        with contextlib.suppress(OSError, AttributeError):  # not GNU's library
            set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
            set_terminate.restype = type(self._on_terminate)
            self._report_exception = set_terminate(self._on_terminate)
        atexit.register(self._leave)  # after JAX's function, so it runs before that one

    @property
    def name(self) -> str:
        """This host in a message: `host 2 of 4 (node17)`."""
        return self.names[self.host]

    def tell(self, reason: str) -> None:
        """Tell the other hosts why this one ends, and give them the time to hear it: host 0 carries the messages."""
        threading.Thread(target=self._set_ended, args=(reason,), daemon=True).start()
        time.sleep(3 * SECONDS_BETWEEN_LOOKS)

    def _set_ended(self, reason: str) -> None:
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"{ENDED}{self.host}", reason, allow_overwrite=True)

    def _watch(self) -> None:
        hosts, failures = list(range(len(self.names))), 0
        first_seen: dict[int, int] = {}
        while True:
            try:
                live = self.client.get_live_nodes(hosts)  # returns when all live hosts have called it
                ended = {int(key.removeprefix(ENDED)): why for key, why in self.client.key_value_dir_get(ENDED)}
                failures = 0
            except Exception:
                failures += 1
                if self.is_leaving.wait(SECONDS_BETWEEN_LOOKS):
                    return
                if failures == 3:
                    self._lose([0], {})
                continue
            first_seen = {**live, **first_seen}
            if not self.is_leaving.is_set():
                self._lose([host for host in hosts if host not in live or live[host] != first_seen[host]], ended)
            elif self.host or len(live) == 1:  # host 0 answers until the others have left
                return
            self.is_leaving.wait(SECONDS_BETWEEN_LOOKS)
            time.sleep(0.05 if self.is_leaving.is_set() else 0)

    def _lose(self, missing: list[int], ended: dict[int, str]) -> None:
        """End the process if a host has failed or is lost."""
        lost = [f"{self.names[host]} has ended: {why}" for host, why in ended.items() if why and host != self.host]
        gone = [self.names[host] for host in missing if host not in ended]
        lost += [f"{name} is not reached any more: its process or its machine has stopped" for name in gone]
        if lost:
            self.on_loss("; ".join(lost))

    def _handle_fault(self, report: Callable[[], None]) -> None:
        """An uncaught exception of C++, or SIGABRT, in its thread: JAX lost host 0, or a library failed: `report`."""
        answered = threading.Event()

        def ask() -> None:
            with contextlib.suppress(Exception):
                self.client.key_value_dir_get(ENDED)
                answered.set()

        threading.Thread(target=ask, daemon=True).start()
        if answered.wait(3):
            report()
        self._lose([0], {})

    def _leave(self) -> None:
        """At exit: wait until every host is here; host 0, whose service the others need, leaves last."""
        if hasattr(sys, "last_value"):  # an exception has ended the program, so the others may wait elsewhere
            self.on_loss(f"{type(sys.last_value).__name__}: {sys.last_value}")
        with contextlib.suppress(Exception):
            self.client.wait_at_barrier("jaxlm/end", 60_000)
        self._set_ended("")
        self.is_leaving.set()
        self.thread.join(60)

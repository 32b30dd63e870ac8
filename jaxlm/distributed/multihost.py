"""Several processes that train as one: how they connect, agree, share work, and stop together.

Each process runs the same program on its own devices. Messages go through the coordinator's key-value store, not
through the devices, so that a host that is missing or fails can be named.
"""

import contextlib
import dataclasses
import faulthandler
import hashlib
import inspect
import itertools
import json
import math
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from jaxlm.distributed.launcher import TPU_POD, detect_launcher, process_label, waiting_words
from jaxlm.distributed.liveness import HEARTBEAT_TIMEOUT, Liveness, end_unmet, errors_of_clients
from jaxlm.errors import UserError, one_line

Result = TypeVar("Result")

RESTART_EXIT_CODE = 75
"""Exit code of a process that lost another one: all must be restarted, and resume from the last checkpoint."""

INTERRUPTED_EXIT_CODE = 130

CONNECTION_ERRORS = ("UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL")
"""The first words of XLA's errors in a collective whose other end is gone."""

STEP_TIMEOUT = 1800.0
"""Seconds without a step after which one of several processes ends, unless an option sets another time."""

EXCHANGE_TIMEOUT = 3600
"""Seconds to wait for a message of another host, which may be encoding the data."""

MAX_VALUE_CHARS = 2**20  # characters of one value in the store, whose messages are limited to 4 MiB
_call_counter = itertools.count()
_abort_lock = threading.Lock()
_liveness: list[Liveness] = []


class AgreedError(UserError):
    """An error that every host knows of and raises."""


@dataclasses.dataclass(frozen=True)
class CoordinatorConfig:
    """The coordinator given by options: HOST:PORT of process 0, the number of processes, the number of this one."""

    coordinator_address: str
    num_processes: int
    process_id: int


def connect(coordinator_config: CoordinatorConfig | None = None) -> None:
    """Join the other processes, if any: those of the options, or those started by Slurm, Open MPI or a TPU pod. Call it
    before the first array is made. Raises UserError if the connection fails."""
    launcher, missing = "--coordinator-address" if coordinator_config else detect_launcher(), ""
    if jax.distributed.is_initialized() or not launcher:
        return
    arguments: dict[str, Any] = dataclasses.asdict(coordinator_config) if coordinator_config else {}
    limit = inspect.signature(jax.distributed.initialize).parameters["initialization_timeout"].default
    try:
        with waiting_words(launcher, limit), errors_of_clients(limit):
            try:
                jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
            except RuntimeError:
                missing = end_unmet()
                raise
    except (RuntimeError, ValueError, OSError) as error:  # OSError: no answer from the metadata server
        if launcher == TPU_POD and isinstance(error, ValueError):
            return  # a machine with a TPU that belongs to no pod
        reason = f", since {missing} did not come" if missing else ""
        reason += "" if "bad_cast" in str(error) else f": {str(error).partition(chr(10))[0]}"
        raise UserError(
            f"{process_label()} did not meet the others ({launcher}) within {limit} s{reason}: check "
            "that every process was started, that their number is right, and that each can reach the coordinator's port"
        ) from error
    if global_state.num_processes > 1:
        _liveness.append(Liveness(lambda reason: abort(reason, RESTART_EXIT_CODE)))


def num_hosts() -> int:
    """The number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """True for the process that writes the log and shows progress."""
    return jax.process_index() == 0


def host_name() -> str:
    """This process in a message: `host 2 of 4 (node17)`."""
    return f"host {jax.process_index()} of {num_hosts()} ({platform.node()})"


def all_gather_json(value: Any) -> list[Any]:
    """The values (JSON) of all hosts, in their order; UserError names a host that is silent. All hosts must call it."""
    if num_hosts() == 1:
        return [value]
    client: Any = global_state.client
    call = next(_call_counter)  # all hosts make the same calls in the same order, so the number names the exchange
    text = json.dumps(value)
    pieces = [text[start : start + MAX_VALUE_CHARS] for start in range(0, len(text), MAX_VALUE_CHARS)]
    for index, piece in enumerate([str(len(pieces)), *pieces]):
        client.key_value_set(f"jaxlm/{call}/{jax.process_index()}/{index}", piece)

    def receive(host: int, index: int) -> str:
        try:
            return client.blocking_key_value_get(f"jaxlm/{call}/{host}/{index}", EXCHANGE_TIMEOUT * 1000)
        except RuntimeError as error:
            waited = f"{EXCHANGE_TIMEOUT} s"
            raise UserError(f"{host_name()} has had no message of host {host} for {waited}: see its log") from error

    texts = ("".join(receive(host, 1 + index) for index in range(int(receive(host, 0)))) for host in range(num_hosts()))
    return [json.loads(text) for text in texts]


def all_or_none(function: Callable[[], Result]) -> Result:
    """The result of the function, once every host has one; if it fails on one, all raise AgreedError with its name."""
    if num_hosts() == 1:
        return function()
    result, fault = None, ""
    try:
        result = function()
    except Exception as error:
        fault = one_line(error)
        if not isinstance(error, UserError | OSError):
            traceback.print_exc()
    faults = all_gather_json(f"{host_name()}: {fault}" if fault else "")
    if any(faults):
        raise AgreedError("; ".join(fault for fault in faults if fault))
    return result  # type: ignore[return-value]  # None only after a fault


def first_host_first(function: Callable[[], Result]) -> Result:
    """The result of the function, which runs on the first host, and then on the others, which find its files."""
    if num_hosts() == 1:
        return function()
    result = all_or_none(function if is_first() else lambda: None)
    others = all_or_none((lambda: None) if is_first() else function)
    return result if is_first() else others  # type: ignore[return-value]


def broadcast_from_first(value: Result) -> Result:
    """The value of the first host, on every host."""
    return all_gather_json(value if is_first() else None)[0]


def map_over_hosts(items: Sequence[Any], function: Callable[[Sequence[Any]], Sequence[Result]]) -> list[Result]:
    """`function(items)`, of which each host computes a part; results are JSON and depend on their own item alone."""
    results: list[Any] = [None] * len(items)
    own = all_or_none(lambda: list(function(items[jax.process_index() :: num_hosts()])))
    for host, host_results in enumerate(all_gather_json(own)):
        results[host :: num_hosts()] = host_results
    return results


def to_local(tree: Any) -> Any:
    """The arrays whole on this host's first device; arrays that no other host shares stay as they are."""

    def localize(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if not x.is_fully_replicated:
            whole = jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())  # type: ignore[attr-defined]
            x = jax.jit(lambda x: x, out_shardings=whole)(x)
        return x.addressable_data(0)

    return jax.tree.map(localize, tree)


def check_same(facts: dict[str, Any], cure: str) -> None:
    """Raise AgreedError with the host and the difference unless all hosts have the same facts (JSON)."""
    all_hosts = all_gather_json((host_name(), facts))
    first_name, expected = all_hosts[0]
    differences = [
        f"{host} has {key} {host_facts.get(key)}, {first_name} has {value}"
        for host, host_facts in all_hosts
        for key, value in expected.items()
        if host_facts.get(key) != value
    ]
    if differences:
        raise AgreedError(f"the hosts differ: {'; '.join(differences)}: {cure}")


def check_hosts(config: str, versions: dict[str, str]) -> str:
    """A line that confirms that all hosts have the same versions and experiment, and that their devices can add; "" for
    a single process. Raises AgreedError with the host and the difference."""
    if num_hosts() == 1:
        return ""
    facts = {"experiment": hashlib.sha256(config.encode()).hexdigest()[:12], **versions}
    facts["devices"] = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    check_same(facts, "install and start the same on all of them")
    began = time.perf_counter()
    total = multihost_utils.process_allgather(np.ones(1, np.int32)).sum()
    if total != num_hosts():
        raise UserError(f"{host_name()}: a sum of one from each of {num_hosts()} hosts gave {total}: check the network")
    seconds = time.perf_counter() - began
    return f"{num_hosts()} hosts of {facts['devices']}, experiment {facts['experiment']}; a sum takes {seconds:.2f} s"


def _is_connection_error(error: BaseException) -> bool:
    """True if another host is gone: an error of a collective, or of what needs one, such as saving a checkpoint."""
    cause = error.__cause__ or error.__context__
    return str(error).startswith(CONNECTION_ERRORS) or (cause is not None and _is_connection_error(cause))


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Exit at once if this host alone fails, or loses another one: the others would block in a collective."""
    try:
        yield
    except AgreedError:
        raise
    except Exception as error:
        if num_hosts() == 1:
            raise
        reason = one_line(error)
        if _is_connection_error(error):
            time.sleep(HEARTBEAT_TIMEOUT + 15)  # until the heartbeats show which host is lost, and end this process
            abort(f"the other hosts are not reached any more: {reason}", RESTART_EXIT_CODE)
        abort(reason, 1)
    except KeyboardInterrupt:
        if num_hosts() == 1:
            raise
        abort("interrupted", INTERRUPTED_EXIT_CODE)


def step_timeout(seconds: float | None) -> float:
    """The seconds without a step after which a process ends, 0: never. None is STEP_TIMEOUT with several processes,
    since a collective waits without end for a process that hangs; else 0."""
    return (STEP_TIMEOUT if num_hosts() > 1 else 0.0) if seconds is None else seconds


@contextlib.contextmanager
def watchdog(seconds: float | None) -> Iterator[Callable[[], None]]:
    """A function to call after every step: without a call for this many seconds (see `step_timeout`) the process ends,
    since a host hangs. The clock starts with the first call: compilation may take long."""
    seconds = step_timeout(seconds)
    deadline, is_over = math.inf, threading.Event()

    def reset() -> None:
        nonlocal deadline
        deadline = time.monotonic() + seconds

    def watch() -> None:
        while not is_over.wait(min(seconds, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                faulthandler.dump_traceback()
                return abort(f"no step for {seconds:g} s; the stack of each thread is above", RESTART_EXIT_CODE)

    if seconds:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield reset
    finally:
        is_over.set()


def abort(reason: str, code: int) -> None:
    """End this process immediately, without waiting for the other hosts."""
    with _abort_lock:  # the first thread to come ends the process
        cure = ": start every process again; the run resumes from its last checkpoint"
        cure = cure if code == RESTART_EXIT_CODE else ""
        print(f"jaxlm: {_liveness[0].name if _liveness else host_name()}: {reason}{cure}", file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # these are the last words, also if C++ loses host 0 meanwhile
        for liveness in _liveness:
            liveness.tell(reason)
        os._exit(code)

"""Several processes that train as one: how they find each other, agree, share work out, and stop together.

Each process runs the same program over its own devices. What is said here goes over the coordinator's key-value store,
not over the devices, so that a host which is missing or fails can be named.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlm.errors import UserError

Result = TypeVar("Result")

RESTART_EXIT_CODE = 75
"""Exit code of a process that lost another one: all are to be started again, and go on from the last checkpoint."""

CONNECTION_ERRORS = ("UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL")
"""How errors begin that XLA raises, of one kind or another, where a collective found nobody at the other end."""

EXCHANGE_TIMEOUT = 3600
"""Seconds that a host waits for what another has to say: one host may be encoding the data."""

MAX_VALUE_CHARS = 2**20
"""Characters of one value in the store, whose messages have a limit of 4 MiB."""

_call_counter = itertools.count()


class AgreedError(UserError):
    """A mistake that every host has heard of, and raises."""


@dataclasses.dataclass(frozen=True)
class CoordinatorConfig:
    """Where the processes meet, said by flags: HOST:PORT of process 0, how many there are, which one this is."""

    coordinator: str
    num_processes: int
    process_id: int


def connect(coordinator_config: CoordinatorConfig | None = None) -> None:
    """Join the other processes: those that the flags name, or that Slurm, Open MPI or a TPU pod started beside this.

    Does nothing where nothing speaks of others. Comes before the first array. Raises UserError where they do not meet.
    """
    if jax.distributed.is_initialized() or (coordinator_config is None and not detect_launcher()):
        return
    named: dict[str, Any] = {}
    if coordinator_config is not None:
        named = {
            "coordinator_address": coordinator_config.coordinator,
            "num_processes": coordinator_config.num_processes, "process_id": coordinator_config.process_id,
        }  # fmt: skip
    starter = "--coordinator-address" if coordinator_config else detect_launcher()
    try:
        jax.distributed.initialize(**named)
    except (RuntimeError, ValueError) as error:
        if starter == TPU_POD and isinstance(error, ValueError):
            return  # a machine with a TPU that belongs to no pod
        which = (
            f"process {coordinator_config.process_id} of {coordinator_config.num_processes}"
            if coordinator_config
            else "this process"
        )
        raise UserError(
            f"{which} on {platform.node()} did not meet the others ({starter}): {str(error).splitlines()[0]}: see that "
            "every process runs and can reach the coordinator's port"
        ) from error


TPU_POD = "a TPU pod"


def detect_launcher() -> str:
    """What may have started several processes, or "": Slurm's `srun`, Open MPI, or a pod, wherever there is a TPU."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "Slurm"
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    chips = any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0"))
    wanted = not os.environ.get("JAX_PLATFORMS", "").startswith(("cpu", "cuda"))
    return TPU_POD if chips and wanted and importlib.util.find_spec("libtpu") else ""


def num_hosts() -> int:
    """How many processes there are."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes the log and speaks to the user."""
    return jax.process_index() == 0


def host_name() -> str:
    """This process, for a message: `host 2 of 4 (node17)`."""
    return f"host {jax.process_index()} of {num_hosts()} ({platform.node()})"


def all_gather_json(value: Any) -> list[Any]:
    """What every host gives, in the order of the hosts: anything that JSON can hold. All hosts have to call it.

    Raises UserError that names a host of which nothing is heard.
    """
    if num_hosts() == 1:
        return [value]
    from jax._src.distributed import global_state

    client: Any = global_state.client
    call = next(_call_counter)
    text = json.dumps(value)
    pieces = [text[at : at + MAX_VALUE_CHARS] for at in range(0, len(text), MAX_VALUE_CHARS)]
    for index, piece in enumerate([str(len(pieces)), *pieces]):
        client.key_value_set(f"jaxlm/{call}/{jax.process_index()}/{index}", piece)

    def heard(host: int, index: int) -> str:
        try:
            return client.blocking_key_value_get(f"jaxlm/{call}/{host}/{index}", EXCHANGE_TIMEOUT * 1000)
        except RuntimeError as error:
            raise UserError(
                f"{host_name()} has not heard of host {host} for {EXCHANGE_TIMEOUT} s: see its log"
            ) from error

    said = ["".join(heard(host, 1 + index) for index in range(int(heard(host, 0)))) for host in range(num_hosts())]
    return [json.loads(text) for text in said]


def all_or_none(function: Callable[[], Result]) -> Result:
    """The function's result, once every host has one. Where it fails on some host it fails on all, and names the host.

    Raises Agreed.
    """
    if num_hosts() == 1:
        return function()
    result, fault = None, ""
    try:
        result = function()
    except UserError as error:
        fault = str(error)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    faults = all_gather_json(f"{host_name()}: {fault}" if fault else "")
    if any(faults):
        raise AgreedError("; ".join(fault for fault in faults if fault))
    return result  # type: ignore[return-value]  # only None where there was a fault


def first_host_first(function: Callable[[], Result]) -> Result:
    """The function's result, on the first host and then on the others: what it writes to the shared disk is there."""
    if num_hosts() == 1:
        return function()
    result = all_or_none(function if is_first() else lambda: None)
    others = all_or_none((lambda: None) if is_first() else function)
    return result if is_first() else others  # type: ignore[return-value]


def broadcast_from_first(value: Result) -> Result:
    """What the first host gives, on every host."""
    return all_gather_json(value if is_first() else None)[0]


def map_over_hosts(items: Sequence[Any], function: Callable[[Sequence[Any]], Sequence[Result]]) -> list[Result]:
    """`function(items)`, each host doing its part: the result of an item (for JSON) must not depend on the others."""
    of = num_hosts()
    found: list[Any] = [None] * len(items)
    mine = all_or_none(lambda: list(function(items[jax.process_index() :: of])))
    for host, part in enumerate(all_gather_json(mine)):
        found[host::of] = part
    return found


def to_local(tree: Any) -> Any:
    """The arrays as this host's own, whole, on its first device; what is its own already stays as it is."""

    def each(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        whole = jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())  # type: ignore[attr-defined]
        return (x if x.is_fully_replicated else _resharding_copy(whole)(x)).addressable_data(0)

    return jax.tree.map(each, tree)


def _resharding_copy(sharding: Any) -> Any:
    return jax.jit(lambda x: x, out_shardings=sharding)


def check_hosts(config: str, versions: dict[str, str]) -> str:
    """Before training: every host has the same versions and the same experiment, and their devices add up.

    A line that says so, or "" for a single process. Raises Agreed, which names the host and the difference.
    """
    if num_hosts() == 1:
        return ""
    mine = {"experiment": hashlib.sha256(config.encode()).hexdigest()[:12], **versions}
    mine["devices"] = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    all_hosts = all_gather_json((host_name(), mine))
    _, expected = all_hosts[0]
    wrong = [
        f"{host} has {key} {theirs.get(key)}, {all_hosts[0][0]} has {value}"
        for host, theirs in all_hosts
        for key, value in expected.items()
        if theirs.get(key) != value
    ]
    if wrong:
        raise AgreedError(f"the hosts differ: {'; '.join(wrong)}: install and start the same on all of them")
    began = time.perf_counter()
    added = multihost_utils.process_allgather(np.ones(1, np.int32)).sum()
    if added != num_hosts():
        raise UserError(f"{host_name()}: the devices of {num_hosts()} hosts added up {added} ones: see to the network")
    seconds = time.perf_counter() - began
    return f"{num_hosts()} hosts of {mine['devices']}, experiment {mine['experiment']}; they add up in {seconds:.2f} s"


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """What fails here alone, or fails because another host went away, ends this process at once: the others, or this
    one, would wait for ever. What all hosts agree on (see `together`) is raised as usual."""
    try:
        yield
    except AgreedError:
        raise
    except Exception as error:
        if num_hosts() == 1:
            raise
        lost = str(error).startswith(CONNECTION_ERRORS)
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error).splitlines()[0]}"
        abort(
            f"the other hosts are not reached any more: {reason}" if lost else reason, RESTART_EXIT_CODE if lost else 1
        )


class Watchdog:
    """Ends the process where `alive` is not called for so many seconds (0: never): then another host hangs, or this."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def reset(self) -> None:
        """A step is done: count anew."""
        self.stop()
        if self.seconds:
            self._timer = threading.Timer(self.seconds, self._on_timeout)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """No more steps are expected."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_timeout(self) -> None:
        import faulthandler

        faulthandler.dump_traceback()
        abort(f"no step for {self.seconds:g} s; where each thread is stands above", RESTART_EXIT_CODE)


def abort(reason: str, code: int) -> None:
    """End this process at once, without waiting for the others, which may never answer."""
    print(f"jaxlm: {host_name()}: {reason}", file=sys.stderr, flush=True)
    if code == RESTART_EXIT_CODE:
        print("jaxlm: start every process again: the run goes on from its last checkpoint", file=sys.stderr, flush=True)
    os._exit(code)

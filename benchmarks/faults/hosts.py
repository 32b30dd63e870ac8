"""Hosts that train together and lose one another: who is named, when all are out, with which code, and the restart.

`python -m benchmarks.faults.hosts` starts two processes of `jaxlm train` for each mishap and prints a line a try. The
survivors must name the host at fault and be out within LIMIT_SECONDS with the right code, never by SIGABRT, and the
same command must then finish the run bit for bit.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.contents import first_difference, read_contents
from benchmarks.faults.families import write_texts
from benchmarks.faults.fork_server import HANGS, ROOT, environment
from benchmarks.faults.injector import armed, compile_injector, read_log
from jaxlm.distributed.multihost import RESTART_EXIT_CODE

LIMIT_SECONDS, NEVER_SECONDS, KILLED_AFTER = 60.0, 330.0, 400.0
RUN = ["--steps", 300, "--log-every", 50, "--checkpoint-every", 100, "--evaluate-every", 150]
STRAY = re.compile(r"terminate called|bad_cast|Traceback|(?<!service_agent)(?<!sync_manager)\.cc:\d+\]")
"""Words on stderr that do not come from jaxlm. Lines of JAX's coordination agent and preemption manager may precede the
last words: they log it when host 0 does not answer, and only a level that hides all errors would omit them."""
STRIKE_AT = "100"
"""The checkpoint after which a host is struck."""
DISK_FULL_AT = 30
"""The file operation of a host from which on its disk is full."""


@dataclass(frozen=True)
class Mishap:
    """The fate of one of two hosts, and the codes with which they may end.

    Attributes:
      struck: the signal that one host gets after its first checkpoint.
      late: seconds by which it starts later; None: it never starts.
      options, folder: more options of its command line; another folder of its data.
      codes: of the other host, and of the one at fault (None: of no matter).
    """

    codes: tuple[tuple[int, ...], tuple[int, ...] | None]
    struck: int = 0
    late: float | None = 0.0
    options: tuple[object, ...] = ()
    other_data: bool = False
    disk_full: bool = False


MISHAPS = {
    "killed": Mishap(((RESTART_EXIT_CODE,), None), struck=signal.SIGKILL),
    "stopped": Mishap(((RESTART_EXIT_CODE,), None), struck=signal.SIGSTOP),
    "late": Mishap(((0,), (0,)), late=20.0),
    "never": Mishap(((1,), None), late=None),
    "other data": Mishap(((1,), (1,)), other_data=True),
    "other config": Mishap(((1,), (1,)), options=("--seed", 1)),
    "disk full": Mishap(((1, RESTART_EXIT_CODE), (1, RESTART_EXIT_CODE)), disk_full=True),
}


@dataclass(frozen=True)
class Outcome:
    """One try: which host was at fault, codes of both, seconds to the last end, last words, fault."""

    mishap: str
    host: int
    codes: list[int | str]
    seconds: float
    words: str
    fault: str

    def __str__(self) -> str:
        head = f"{self.mishap:13} host {self.host}: codes {self.codes} after {self.seconds:5.1f} s"
        return f"{head}: {self.fault or 'named, finished bit for bit'}: {self.words[:160]}"


class Pair:
    """A folder in which pairs of hosts train."""

    def __init__(self, folder: Path, cache: Path | None) -> None:
        self.folder, self.library = folder, compile_injector(folder)
        for name, count in (("data", 200), ("other", 190)):
            (folder / name).mkdir()
            write_texts(folder / name, count)
        native = str(folder / "native")
        self.env = environment(cache or folder / "compiled", JAXLM_DATA=str(folder / "data"), JAXLM_CACHE=native)
        codes, err, _ = self.run(folder / "whole")
        if codes != [0, 0]:
            raise SystemExit(f"two hosts fail without a mishap: {codes}: {err[0][-1500:]}")
        self.expected = read_contents(folder / "whole")

    def try_mishap(self, name: str, number: int) -> Outcome:
        """One mishap, of host 0 or 1 by turns, and the restart."""
        mishap, host, workdir = MISHAPS[name], number % 2, self.folder / f"{name}{number}".replace(" ", "_")
        if mishap.late is None:
            host = 1  # the first host is where the others meet
        codes, err, seconds = self.run(workdir, mishap, host)
        other, own = codes[1 - host], codes[host]
        faults = []
        if other not in mishap.codes[0] or mishap.codes[1] and own not in mishap.codes[1]:
            faults.append(f"expected the codes {mishap.codes}")
        if mishap.late in (None, 0.0) and seconds > (NEVER_SECONDS if mishap.late is None else LIMIT_SECONDS):
            faults.append("too late")
        if name != "late" and f"host {host}" not in err[1 - host].replace("process", "host"):
            faults.append(f"host {host} is not named")
        if mishap.disk_full and not re.search("disk is full|No space left|check the disk", err[host]):
            faults.append(f"host {host} does not say that its disk is full: {err[host].strip()[-200:]}")
        if strays := [line for line in err[1 - host].splitlines() if STRAY.search(line)]:
            faults.append(f"words of C++: {strays[0][:100]}")
        if name not in ("never", "other data", "other config"):
            finished, finished_err, _ = self.run(workdir)
            if finished != [0, 0]:
                faults.append(f"stuck, codes {finished}: {finished_err[0].strip()[-200:]}")
            elif difference := first_difference(read_contents(workdir), self.expected):
                faults.append(difference)
        words = " | ".join(err[1 - host].strip().splitlines()[-2:])
        return Outcome(name, host, codes, seconds, words, "; ".join(faults))

    def run(
        self, workdir: Path, mishap: Mishap | None = None, host: int = 1
    ) -> tuple[list[int | str], list[str], float]:  # fmt: skip
        """Codes and stderr of both hosts, and the seconds from the strike (or the start) to the last end."""
        port, processes = _free_port(), {}
        files = [workdir.with_name(f"{workdir.name}.{index}.err") for index in range(2)]

        def start(index: int) -> None:
            processes[index] = self._start(workdir, index, port, mishap if index == host else None, files[index])

        for index in range(2):
            if index != host or mishap is None or mishap.late == 0.0:
                start(index)
        if mishap and mishap.late:
            time.sleep(mishap.late)
            start(host)
        began = time.monotonic()
        if mishap and mishap.struck:
            _wait_for(lambda: (workdir / "checkpoints" / STRIKE_AT).exists() or _ended(processes))
            began = time.monotonic()
            os.kill(processes[host].pid, mishap.struck)
        survivors = [index for index in processes if not (mishap and mishap.struck and index == host)]
        _wait_for(lambda: all(processes[index].poll() is not None for index in survivors))
        seconds = time.monotonic() - began
        if mishap and mishap.disk_full:
            operations = read_log(workdir.with_name(f"{workdir.name}.log"))
            seconds = time.time() - next(
                (operation.seconds for operation in operations if operation.struck), time.time()
            )
        codes: list[int | str] = []
        for index in range(2):
            codes.append(_code(processes.get(index)))
        return codes, [file.read_text(errors="replace") if file.exists() else "" for file in files], seconds

    def _start(self, workdir: Path, index: int, port: int, mishap: Mishap | None, err: Path) -> subprocess.Popen:
        words = ["train", "benchmarks.faults.families:language_model", "--workdir", workdir, *RUN]
        words += ["--coordinator-address", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", index]
        env = self.env
        if mishap and mishap.other_data:
            env = env | {"JAXLM_DATA": str(self.folder / "other")}
        if mishap and mishap.disk_full and self.library:
            log = workdir.with_name(f"{workdir.name}.log")
            env = env | armed(workdir, log, "enospc", DISK_FULL_AT) | {"LD_PRELOAD": str(self.library)}
        words += mishap.options if mishap else ()
        command = [sys.executable, "-m", "jaxlm", *map(str, words)]
        return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=err.open("w"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _ended(processes: dict[int, subprocess.Popen]) -> bool:
    return any(process.poll() is not None for process in processes.values())


def _wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + KILLED_AFTER
    while not done() and time.monotonic() < end:
        time.sleep(0.01)


def _code(process: subprocess.Popen | None) -> int | str:
    """The exit code of a process, which is killed if it still runs."""
    if process is None:
        return "none"
    if process.poll() is None:
        process.kill()
        process.wait()
        return HANGS
    return process.returncode


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if a mishap showed a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mishaps", nargs="+", choices=list(MISHAPS), default=list(MISHAPS), metavar="NAME")
    parser.add_argument("--times", type=int, default=5, help="tries of each mishap")
    parser.add_argument("--cache", type=Path, help="folder that keeps compilations from one call to the next")
    options = parser.parse_args(argv)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder), options.cache)
        for name in options.mishaps:
            for number in range(options.times):
                outcomes.append(pair.try_mishap(name, number))
                print(outcomes[-1], flush=True)
    print(f"{len(outcomes)} mishaps, {sum(bool(outcome.fault) for outcome in outcomes)} faults")
    return int(any(outcome.fault for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

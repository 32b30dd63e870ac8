"""Contestants in processes of their own, measured in turns, so that other load on the machine affects all of them.

A contestant is a function `start(arguments) -> (facts, run)`; `run(steps)` runs that many steps and returns the seconds
of each. The parent writes a number of steps to the process's stdin, which answers with a line of "@@" and JSON.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "@@"
Run = Callable[[int], list[float]]


@dataclass
class Contestant:
    """One process and its reports."""

    name: str
    process: subprocess.Popen
    errors: Any
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, command: list[str], environment: dict[str, str], limit: float) -> "Contestant":
        """Start the process and wait up to `limit` seconds until it is warm; `facts["error"]` if it fails."""
        errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, text=True, env=os.environ | environment, **pipes)
        contestant = cls(name, process, errors)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        contestant.facts = contestant._answer()
        timer.cancel()
        if process.poll() == -signal.SIGKILL:
            contestant.facts = {"error": f"killed, not warm after {limit:.0f} s"}
        return contestant

    def round(self, steps: int) -> None:
        """Run `steps` steps."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            self.facts["error"] = answer["error"]
        else:
            self.rounds.append(answer)

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return {"error": lines[-1] if lines else f"ended with code {self.process.wait()}"}


def take_turns(
    commands: dict[str, list[str]], steps: int, rounds: int, time_limit: float, describe: Callable[[Contestant], str]
) -> list[Contestant]:
    """`rounds` rounds of `steps` steps of each contestant, in turns, once all are warm. Exits if one cannot start.

    `describe(contestant)` is printed when a contestant is warm.
    """
    contestants: list[Contestant] = []
    try:
        for name, command in commands.items():
            contestant = Contestant.start(name, command, {"OMP_NUM_THREADS": str(cores())}, time_limit)
            if "error" in contestant.facts:
                raise SystemExit(f"{name}: {contestant.facts['error']}")
            print(f"{name}: {describe(contestant)}", flush=True)
            contestants.append(contestant)
        for _ in range(rounds):
            for contestant in contestants:
                contestant.round(steps)
    finally:
        for contestant in contestants:
            contestant.close()
    return contestants


def serve(start: Callable[[], tuple[dict[str, Any], Run]]) -> None:
    """Run in the contestant's process: warm up, report, then run a round for every line of stdin."""
    begin = time.perf_counter()
    facts, run = start()
    _report(facts | {"seconds_to_warm": time.perf_counter() - begin})
    for line in sys.stdin:
        steps, cpu = int(line), time.process_time()
        seconds = run(steps)
        cpu = time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        _report({"steps": steps, "seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak})


def machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, and the load."""
    model = "unknown processor"
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"processor": model, "cores": cores(), "load": load()}


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> list[float]:
    """The load averages over 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def _report(message: dict[str, Any]) -> None:
    print(MARK + json.dumps(message), flush=True)

"""Contestants in processes of their own, measured in turns, so that a shared machine is unfair to all of them alike.

A contestant is a function `start(arguments) -> (facts, run)`: `run(steps)` does that many steps and returns the
seconds of each. The parent talks to its process in lines: "@@" + JSON one way, a number of steps the other.
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
    """One process, and what it has reported."""

    name: str
    process: subprocess.Popen
    errors: Any
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, command: list[str], environment: dict[str, str], limit: float) -> "Contestant":
        """Start it and wait up to `limit` seconds until it is warm; `facts["error"]` tells why it is not."""
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
        """One round of `steps` steps."""
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
    commands: dict[str, list[str]], steps: int, rounds: int, limit: float, told: Callable[[Contestant], str]
) -> list[Contestant]:
    """`rounds` rounds of `steps` steps of each contestant, in turns, all of them warm. Ends where one cannot start.

    `told(contestant)` is printed when one is warm.
    """
    entered: list[Contestant] = []
    try:
        for name, command in commands.items():
            one = Contestant.start(name, command, {"OMP_NUM_THREADS": str(cores())}, limit)
            if "error" in one.facts:
                raise SystemExit(f"{name}: {one.facts['error']}")
            print(f"{name}: {told(one)}", flush=True)
            entered.append(one)
        for _ in range(rounds):
            for one in entered:
                one.round(steps)
    finally:
        for one in entered:
            one.close()
    return entered


def serve(start: Callable[[], tuple[dict[str, Any], Run]]) -> None:
    """The contestant's side: warm up, report, then a round for every line read."""
    begun = time.perf_counter()
    facts, run = start()
    _say(facts | {"seconds_to_warm": time.perf_counter() - begun})
    for line in sys.stdin:
        steps, cpu = int(line), time.process_time()
        seconds = run(steps)
        cpu = time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        _say({"steps": steps, "seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak})


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and load."""
    model = "unknown processor"
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"processor": model, "cores": cores(), "load": load()}


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def _say(message: dict[str, Any]) -> None:
    print(MARK + json.dumps(message), flush=True)

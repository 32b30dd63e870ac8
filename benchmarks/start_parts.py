"""The parts of a start: CPU seconds of imports, data, tracing, lowering and compiling, up to the first step and in all.

    python -m benchmarks.start_parts [train experiments.quickstart --steps 1]   (default: this run, with a new workdir)

Runs a command of jaxlm with an empty compilation cache and, in another process, with the filled one. Seconds of
imports, data, tracing and lowering are those of the main thread without the parts inside of them; compiling (or reading
the cache) counts all threads of the process, so that it may contain what the main thread does at the same time.
"""

import builtins
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

DEFAULT = "train experiments.quickstart --steps 1"

PARTS = {
    "data": ("jaxlm.training.setup:open_run", "jaxlm.training.setup:load_data", "jaxlm.training.setup:make_batches"),
    "tracing": ("jax._src.pjit:_infer_params",),
    "lowering": ("jax._src.interpreters.mlir:lower_jaxpr_to_module",),
    "compiling": ("jax._src.compiler:compile_or_get_cached",),
}
"""Part -> the functions that are it."""

NAMES = ("imports", *PARTS)


class Clock:
    """CPU seconds of each part, without the parts inside of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.programs = 0
        self._open: list[str] = []
        self._since = time.thread_time()

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, whose main-thread seconds count for `part`."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if part == "compiling":
                return self._compile(function, *args, **kwargs)
            self._turn(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn(None)

        return call

    def _compile(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        began, own = time.process_time(), time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            self.programs += 1
            self.seconds["compiling"] += time.process_time() - began
            self._since += time.thread_time() - own  # not of the part around it

    def _turn(self, part: str | None) -> None:
        now = time.thread_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
        self._open.append(part) if part else self._open.pop()

    def report(self) -> dict[str, float]:
        """The seconds so far, those of the whole process, and the number of programs."""
        return {**self.seconds, "all": time.process_time(), "programs": self.programs}


def run(words: list[str]) -> None:
    """Run a command of jaxlm in this process; the last line of stderr is JSON."""
    clock, reports = Clock(), {}
    builtins.__import__ = clock.timed("imports", builtins.__import__)
    from jaxlm.cli.main import main
    from jaxlm.training.loop import TrainLoop

    for part, functions in PARTS.items():
        for module, _, name in (function.partition(":") for function in functions):
            owner = importlib.import_module(module)
            setattr(owner, name, clock.timed(part, getattr(owner, name)))
    after_step = TrainLoop._log_eval_save

    def first_step(*args: Any) -> Any:
        reports.setdefault("to the first step", clock.report())
        return after_step(*args)

    TrainLoop._log_eval_save = first_step  # type: ignore[method-assign]
    code = main(words)
    reports["in all"] = clock.report()
    print(json.dumps(reports), file=sys.stderr, flush=True)
    raise SystemExit(code)


def main() -> None:
    """Run the command twice and print a table."""
    if sys.argv[1:2] == ["--worker"]:
        run(sys.argv[2:])
    words = sys.argv[1:] or DEFAULT.split()
    print("| cache, until | " + " | ".join((*NAMES, "other", "all", "programs")) + " |\n" + "|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAXLM_CACHE": f"{folder}/cache", "JAX_PLATFORMS": "cpu"}
        for state in ("empty", "filled"):
            workdir = [] if "--workdir" in words or words[0] != "train" else ["--workdir", f"{folder}/{state}"]
            command = [sys.executable, "-m", "benchmarks.start_parts", "--worker", *words, *workdir]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-1000:])
            for until, report in json.loads(done.stderr.splitlines()[-1]).items():
                seconds = [report.get(name, 0.0) for name in NAMES]
                cells = [f"{value:.1f}" for value in (*seconds, report["all"] - sum(seconds), report["all"])]
                print(f"| {state}, {until} | {' | '.join(cells)} | {report['programs']} |", flush=True)


if __name__ == "__main__":
    main()

"""Common parts of the step benchmarks: training steps of one model in several programs, measured in turns."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.contest import Contestant, Run, cores, load, machine, serve, take_turns

Step = Callable[[Any], Any]
"""One step on one batch; returns when the step is done."""


def options(about: str | None, names: tuple[str, ...]) -> argparse.ArgumentParser:
    """The options of every step benchmark."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps per round (default: 5)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds (default: 6)")
    text = "contestants, separated by commas; ratios are to the first (default: all)"
    parser.add_argument("--only", default=",".join(names), help=text)
    parser.add_argument("--cores", type=int, default=0, help="number of cores to use (0: all)")
    parser.add_argument("--worker", choices=names, help=argparse.SUPPRESS)
    return parser


def compare(
    name: str, options: argparse.Namespace, start: Callable[[], tuple[dict[str, Any], Run]], *worker_options: str
) -> None:
    """Measure and print; the last line is JSON. Each contestant's process gets `worker_options` and runs `start`."""
    if options.worker:
        serve(start)
        return
    if options.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))
    before = machine()
    print(f"{before['processor']}, {before['cores']} cores, load {before['load']}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *worker_options, "--worker"]
    commands = {contestant: [*command, contestant] for contestant in options.only.split(",")}
    measured = take_turns(commands, options.steps, options.rounds, time_limit=600, describe=_describe)
    results = [_result(contestant) for contestant in measured]
    ratios = {result["name"]: _ratio(results[0], result) for result in results[1:]}
    for other, ratio in ratios.items():
        print(f"{other} / {results[0]['name']}: " + ", ".join(f"{key} {value:.2f}" for key, value in ratio.items()))
    print(f"load before {before['load']}, after {load()}")
    for result in results:
        result.pop("wall"), result.pop("cpu")
    print(json.dumps({"benchmark": name, "machine": before, "results": results, "ratios": ratios}))


def warm(step: Step, parameters: int, batches: Iterable[Any]) -> tuple[dict[str, Any], Run]:
    """The facts of a contestant after three warm-up steps, and a function that times further steps one by one."""
    batches, start = list(batches), time.perf_counter()
    for batch in batches[:3]:
        step(batch)
    facts = {"parameters": parameters, "compile_seconds": time.perf_counter() - start}

    def run(steps: int) -> list[float]:
        seconds = []
        for number in range(steps):
            start = time.perf_counter()
            step(batches[number % len(batches)])
            seconds.append(time.perf_counter() - start)
        return seconds

    return facts, run


def quick_torch() -> Any:
    """PyTorch with one thread per core and jaxlm's allocator settings, which help it too."""
    from jaxlm import runtime

    runtime.configure_malloc()
    import torch

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    return torch


def _describe(contestant: Contestant) -> str:
    facts = contestant.facts
    return f"{facts['parameters']:,} parameters, warm in {facts['compile_seconds']:.1f} s"


def _result(contestant: Contestant) -> dict[str, Any]:
    rounds = contestant.rounds
    wall = [statistics.median(r["seconds"]) for r in rounds]
    cpu = [r["cpu_seconds"] / r["steps"] for r in rounds]
    least = min(min(r["seconds"]) for r in rounds)
    seconds = {"median_ms": statistics.median(wall), "min_ms": least, "cpu_ms": statistics.median(cpu)}
    milliseconds = {key: 1e3 * value for key, value in seconds.items()}
    print(f"{contestant.name:8s}" + ", ".join(f"{key} {value:.1f}" for key, value in milliseconds.items()))
    return {"name": contestant.name, **milliseconds, **contestant.facts, "wall": wall, "cpu": cpu}


def _ratio(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The other's time over ours: medians over rounds, extremes of one round, best steps, CPU time."""
    per_round = [theirs / mine for mine, theirs in zip(ours["wall"], other["wall"], strict=True)]
    medians = {key: other[f"{key}_ms"] / ours[f"{key}_ms"] for key in ("median", "min", "cpu")}
    return {**medians, "least": min(per_round), "most": max(per_round)}

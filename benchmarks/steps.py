"""Training steps of one model in several programs, in turns: what the benchmarks of steps have in common."""

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
"""One step on one batch, which returns when it is done."""


def options(about: str | None, names: tuple[str, ...]) -> argparse.ArgumentParser:
    """What every benchmark of steps can be told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--only", default=",".join(names), help="contestants, separated by commas; ratios are to the first"
    )
    parser.add_argument("--cores", type=int, default=0, help="use only so many cores (0: all)")
    parser.add_argument("--worker", choices=names, help=argparse.SUPPRESS)
    return parser


def compare(name: str, asked: argparse.Namespace, start: Callable[[], tuple[dict[str, Any], Run]], *more: str) -> None:
    """Measure and print; the last line is JSON. `more`: options for the contestants. `start` is run by each of them."""
    if asked.worker:
        serve(start)
        return
    if asked.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: asked.cores]))
    before = machine()
    print(f"{before['processor']}, {before['cores']} cores, load {before['load']}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *more, "--worker"]
    commands = {one: [*command, one] for one in asked.only.split(",")}
    results = [_result(one) for one in take_turns(commands, asked.steps, asked.rounds, 600, _told)]
    ratios = {one["name"]: _ratio(results[0], one) for one in results[1:]}
    for other, ratio in ratios.items():
        print(f"{other} / {results[0]['name']}: " + ", ".join(f"{key} {value:.2f}" for key, value in ratio.items()))
    print(f"load before {before['load']}, after {load()}")
    for one in results:
        one.pop("wall"), one.pop("cpu")
    print(json.dumps({"benchmark": name, "machine": before, "results": results, "ratios": ratios}))


def warm(step: Step, parameters: int, batches: Iterable[Any]) -> tuple[dict[str, Any], Run]:
    """The facts of a contestant, warm after three steps, and how to run it: every step is waited for."""
    batches, begun = list(batches), time.perf_counter()
    for batch in batches[:3]:
        step(batch)
    facts = {"parameters": parameters, "compile_seconds": time.perf_counter() - begun}

    def run(steps: int) -> list[float]:
        seconds = []
        for at in range(steps):
            begun = time.perf_counter()
            step(batches[at % len(batches)])
            seconds.append(time.perf_counter() - begun)
        return seconds

    return facts, run


def quick_torch() -> Any:
    """PyTorch, with the allocator's settings that help it too and a thread a core."""
    from jaxlm import runtime

    runtime.configure_malloc()
    import torch

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    return torch


def _told(one: Contestant) -> str:
    return f"{one.facts['parameters']:,} parameters, warm in {one.facts['compile_seconds']:.1f} s"


def _result(one: Contestant) -> dict[str, Any]:
    wall = [statistics.median(r["seconds"]) for r in one.rounds]
    cpu = [r["cpu_seconds"] / r["steps"] for r in one.rounds]
    least = min(min(r["seconds"]) for r in one.rounds)
    found = {"median_ms": statistics.median(wall), "min_ms": least, "cpu_ms": statistics.median(cpu)}
    print(f"{one.name:8s}" + ", ".join(f"{key} {1e3 * value:.1f}" for key, value in found.items()))
    milliseconds = {key: 1e3 * value for key, value in found.items()}
    return {"name": one.name, **milliseconds, **one.facts, "wall": wall, "cpu": cpu}


def _ratio(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How many times as long the other takes: medians over rounds, the extremes of one round, best steps, CPU time."""
    each = [theirs / mine for mine, theirs in zip(ours["wall"], other["wall"], strict=True)]
    medians = {key: other[f"{key}_ms"] / ours[f"{key}_ms"] for key in ("median", "min", "cpu")}
    return {**medians, "least": min(each), "most": max(each)}

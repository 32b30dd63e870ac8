"""Step time of the training step of an experiment against PyTorch: same model, batches and machine.

    python -m benchmarks.train_step                    every contestant, all cores
    python -m benchmarks.train_step --cores 1          CPU seconds without idle threads that spin
    python -m benchmarks.train_step --only ours,written --rounds 6

Every contestant is a process of its own, warm in every batch shape before the first round, and all take turns
(A B C A B C ...). Compilation is reported separately. On a machine with other load, trust the CPU seconds per step; on
several cores they include threads that spin while they wait, as PyTorch's do.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import contestants
from benchmarks.contest import Contestant, cores, load, machine, serve

OURS = "ours"


def main() -> int:
    """Measure and print. Returns 1 if our own step failed."""
    options = _options()
    if options.worker:
        serve(lambda: contestants.start(options.worker, options.experiment, options.arrays))
        return 0
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        report = _measure(options)
    print(json.dumps(report))
    return int(OURS in report["failed"])


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print to stdout, and return the report."""
    if options.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))
    before = machine()
    print(f"{before['processor']}, {before['cores']} cores, load {before['load']}; {_versions()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "batches.npz"
        shape = _batches(options, arrays)
        entered = _contest(options, arrays)
    results = [_result(one, shape["target_tokens_a_step"]) for one in entered if one.rounds]
    print(_table(results), flush=True)
    ratios = _ratios({one.name: one for one in entered if one.rounds})
    for name, ratio in ratios.items():
        print(f"ours / {name}: " + ", ".join(f"{key} {value}" for key, value in ratio.items()))
    after = load()
    print(f"load before {before['load']}, after {after}")
    failed = {one.name: one.facts["error"] for one in entered if "error" in one.facts}
    return {
        "benchmark": "train_step", "machine": before, "load_after": after, "versions": _versions(), **shape,
        "results": results, "ratios": ratios, "failed": failed,
    }  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="experiments.multi30k:tiny")
    parser.add_argument("--steps", type=int, default=12, help="steps per round: the first batches of training")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096, help="target positions per batch")
    parser.add_argument("--length", type=int, default=0, help="use rows of this length instead of the data")
    parser.add_argument("--only", default="", help=f"some of {', '.join(contestants.ALL)}, separated by commas")
    parser.add_argument("--cores", type=int, default=0, help="number of cores to use (0: all)")
    parser.add_argument(
        "--patience", type=float, default=600, help="seconds after which a contestant that is not warm is skipped"
    )
    parser.add_argument("--json", action="store_true", help="print only one JSON object to stdout")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--arrays", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _versions() -> str:
    names = ("jax", "flax", "torch")
    installed = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
    return ", ".join(f"{name} {metadata.version(name)}" for name in names if name in installed)


def _batches(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Write the batches that all contestants use; returns a summary of them."""
    from benchmarks import batches
    from jaxlm.experiment import load_experiment

    made, origin = batches.make(load_experiment(options.experiment), options.steps, options.tokens, options.length)
    batches.save(made, file)
    count = {name: sum(int(one[name].sum()) for one in made) for name in ("source_valid_BS", "target_valid_BT")}
    size = {name: sum(one[name].size for one in made) for name in count}
    shapes = sorted({(*one["source_BS"].shape, one["target_BT"].shape[1]) for one in made})
    padding = {name: 1 - count[name] / size[name] for name in count}
    print(
        f"batches: {origin}; {count['target_valid_BT'] / len(made):,.0f} real target tokens a step, padding "
        f"{padding['source_valid_BS']:.1%} of the source, {padding['target_valid_BT']:.1%} of the target; "
        f"{len(shapes)} shapes (rows, source, target): {' '.join(map(str, shapes))}",
        flush=True,
    )
    return {"origin": origin, "target_tokens_a_step": count["target_valid_BT"] / len(made), "shapes": shapes,
            "padding": padding}  # fmt: skip


def _contest(options: argparse.Namespace, arrays: Path) -> list[Contestant]:
    """Run all rounds; contestants that failed are included, with the error."""
    names = options.only.split(",") if options.only else list(contestants.ALL)
    if unknown := set(names) - set(contestants.ALL):
        raise SystemExit(f"no contestant {', '.join(unknown)}: expected some of {', '.join(contestants.ALL)}")
    common = ["--experiment", options.experiment, "--arrays", str(arrays)]
    threads = {"OMP_NUM_THREADS": str(cores())}
    entered: list[Contestant] = []
    try:
        for name in names:
            command = [sys.executable, "-m", "benchmarks.train_step", "--worker", name, *common]
            contestant = Contestant.start(name, command, threads, options.patience)
            entered.append(contestant)
            error = contestant.facts.get("error")
            state = f"skipped: {error}" if error else f"{contestants.ALL[name]}; {_warm(contestant)}"
            print(f"{name}: {state}", flush=True)
        _check_sizes(entered)
        for _ in range(options.rounds):
            for contestant in entered:
                if "error" not in contestant.facts:
                    contestant.round(options.steps)
    finally:
        for contestant in entered:
            contestant.close()
    return entered


def _warm(contestant: Contestant) -> str:
    facts = contestant.facts
    return f"{facts['parameters']:,} parameters, compiled and warm in {facts['compile_seconds']:.1f} s"


def _check_sizes(entered: list[Contestant]) -> None:
    sizes = {one.name: one.facts["parameters"] for one in entered if "error" not in one.facts}
    if len(set(sizes.values())) > 1:
        raise SystemExit(f"the models differ in size, so their times cannot be compared: {sizes}")


def _result(one: Contestant, tokens: float) -> dict[str, Any]:
    wall = [statistics.median(r["seconds"]) for r in one.rounds]
    mean = statistics.median(sum(r["seconds"]) / r["steps"] for r in one.rounds)
    return {
        "name": one.name,
        "median_ms": 1e3 * statistics.median(wall),
        "min_ms": 1e3 * min(min(r["seconds"]) for r in one.rounds),
        "mean_ms": 1e3 * mean,
        "cpu_ms": 1e3 * statistics.median(r["cpu_seconds"] / r["steps"] for r in one.rounds),
        "tokens_per_second": tokens / mean,
        "compile_seconds": one.facts["compile_seconds"],
        "peak_mib": max(r["peak_mib"] for r in one.rounds),
    }


def _table(results: list[dict[str, Any]]) -> str:
    head = f"{'':20s}{'median':>9s}{'min':>9s}{'CPU':>9s}  ms a step{'tokens/s':>10s}{'compile':>9s} s{'peak':>8s} MiB"
    rows = [
        f"{r['name']:20s}{r['median_ms']:9.1f}{r['min_ms']:9.1f}{r['cpu_ms']:9.1f}{r['tokens_per_second']:21,.0f}"
        f"{r['compile_seconds']:9.1f}{r['peak_mib']:10,.0f}"
        for r in results
    ]
    return "\n".join([head, *rows])


def _ratios(entered: dict[str, Contestant]) -> dict[str, dict[str, float]]:
    """Our time over that of the best of each kind: of medians over rounds, and the extremes of one round."""
    ratios: dict[str, dict[str, float]] = {}
    if OURS not in entered:
        return ratios
    for kind, names in contestants.KINDS.items():
        rivals = [entered[name] for name in names if name in entered]
        for unit, seconds in (("wall", _wall), ("CPU", _cpu)):
            if not rivals:
                continue
            best = min(rivals, key=lambda one: statistics.median(map(seconds, one.rounds)))
            mine = [seconds(r) for r in entered[OURS].rounds]
            theirs = [seconds(r) for r in best.rounds]
            per_round = [a / b for a, b in zip(mine, theirs, strict=True)]
            ratio = statistics.median(mine) / statistics.median(theirs)
            key = f"{kind} by {unit} ({best.name})"
            extremes = {"least": round(min(per_round), 3), "most": round(max(per_round), 3)}
            ratios[key] = {"ratio": round(ratio, 3), **extremes}
    return ratios


def _wall(measured: dict[str, Any]) -> float:
    return sum(measured["seconds"])


def _cpu(measured: dict[str, Any]) -> float:
    return measured["cpu_seconds"]


if __name__ == "__main__":
    sys.exit(main())

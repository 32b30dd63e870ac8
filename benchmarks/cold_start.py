"""Start-up of one or several checkouts in turn: a run of one step, with an empty and with a filled compilation cache.

    python -m benchmarks.cold_start [CHECKOUT ...] [--rounds 2]        (default: this checkout)

Each start is `jaxlm train experiments.quickstart --steps 1` in a process of its own, under this Python. Wall seconds,
CPU seconds (user and system, of all its threads) and the largest memory are printed at once, the least of each at the
end: on a busy machine the CPU seconds say more.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = "-m jaxlm train experiments.quickstart --steps 1"


def start(checkout: Path, cache: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and MiB of one start. Raises SystemExit with the end of its messages if it fails."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        environment = os.environ | {"JAXLM_CACHE": str(cache), "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, *COMMAND.split(), "--workdir", f"{folder}/run"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{checkout}: exit code {process.returncode}: {errors.read()[-1000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Start the checkouts in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    figures: dict[tuple[Path, str], list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for number, checkout in enumerate(options.checkouts):
                cache = Path(folder, str(number))
                shutil.rmtree(cache, ignore_errors=True)
                for state in ("empty", "filled"):
                    figures.setdefault((checkout, state), []).append(start(checkout.resolve(), cache))
                    seconds, cpu, memory = figures[checkout, state][-1]
                    print(f"{checkout}, {state} cache: {seconds:.1f} s, CPU {cpu:.1f} s, {memory:.0f} MiB", flush=True)
    print("| checkout | cache | least wall s | least CPU s | least MiB |\n|---|---|---|---|---|")
    for (checkout, state), measured in figures.items():
        seconds, cpu, memory = map(min, zip(*measured, strict=True))
        print(f"| {checkout} | {state} | {seconds:.1f} | {cpu:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()

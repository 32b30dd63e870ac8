"""SIGTERM at random times of a run, most of which is evaluation: it saves, ends with code 130, and is finished later.

`python -m benchmarks.faults.interrupts` prints a line a signal: when it came, the seconds from it to the end, the exit
code, and whether the same command then finished the run bit for bit.
"""

import argparse
import random
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.contents import first_difference, read_contents
from benchmarks.faults.families import write_texts
from benchmarks.faults.fork_server import Server, Strike, environment
from jaxlm.cli.parser import EXIT_INTERRUPTED

LIMIT_SECONDS = 30.0
SLOW_EVALUATION = ["--steps", 8, "--evaluate-every", 2, "--checkpoint-every", 4, "--task.valid-examples", 4]
"""A run that spends most of its time in evaluations."""


@dataclass(frozen=True)
class Interrupt:
    """One signal, `delay` seconds after a line of metrics.jsonl: seconds to the end, exit code, fault of the run that
    was finished afterwards.
    """

    lines: int
    delay: float
    seconds: float
    code: int | str
    fault: str

    def __str__(self) -> str:
        head = f"SIGTERM {self.delay:.2f} s after line {self.lines}: code {self.code} after {self.seconds:4.1f} s"
        return f"{head}; {self.fault or 'bit for bit'}"


def _finished(workdir: Path) -> dict[str, Any]:
    """The contents without the checkpoints on the way: an interrupted run has one more."""
    last = max(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())
    contents = read_contents(workdir)
    kept = {name for name in contents if not name.startswith("checkpoint ") or name == f"checkpoint {last}"}
    return {name: contents[name] for name in sorted(kept - {"names"})}


def interrupt(times: int, folder: Path, seed: int = 0, cache: Path | None = None) -> list[Interrupt]:
    """Send the signal to `times` runs, each after a line of the log that is drawn."""
    write_texts(folder)
    variables = {"JAXLM_DATA": str(folder), "JAXLM_CACHE": str(folder / "native")}
    draw, results = random.Random(seed), []
    with Server(folder / "server", environment(cache or folder / "compiled", **variables)) as server:

        def command(name: str) -> list[object]:
            experiment = "benchmarks.faults.families:recurrent"
            return ["train", experiment, "--workdir", folder / name, *SLOW_EVALUATION]

        server.run(command("warm"))  # compiles
        whole = server.run(command("whole"))
        if whole.code:
            raise SystemExit(f"the run fails without a signal: {whole.err[-2000:]}")
        expected, log = _finished(folder / "whole"), (folder / "whole" / "metrics.jsonl").read_bytes().splitlines()
        for number in range(times):
            lines, delay = draw.randint(1, len(log)), draw.uniform(0.0, 0.5)
            strike = Strike(signal.SIGTERM, delay, str(folder / f"run{number}" / "metrics.jsonl"), lines)
            outcome = server.run(command(f"run{number}"), strike=strike)
            fault = "" if outcome.code in (0, EXIT_INTERRUPTED) else outcome.last_words or "no word"
            if not fault:
                finished = server.run(command(f"run{number}"))
                words = f"stuck, code {finished.code}: {finished.last_words}"
                fault = words if finished.code else first_difference(_finished(folder / f"run{number}"), expected)
            seconds = outcome.after_strike
            if seconds > LIMIT_SECONDS:
                fault = f"{fault} (more than {LIMIT_SECONDS:.0f} s)"
            results.append(Interrupt(lines, delay, seconds, outcome.code, fault))
            print(results[-1], flush=True)
    return results


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if a signal showed a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder that keeps compilations from one call to the next")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        results = interrupt(options.times, Path(folder), options.seed, options.cache)
    slowest = max(result.seconds for result in results)
    print(f"{len(results)} signals, {sum(bool(r.fault) for r in results)} faults, slowest end {slowest:.1f} s")
    return int(any(result.fault for result in results))


if __name__ == "__main__":
    sys.exit(main())

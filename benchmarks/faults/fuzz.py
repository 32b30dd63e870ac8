"""Damaged files for every reader: each is read or refused with one sentence, within its time and its memory.

`python -m benchmarks.faults.fuzz --seconds 60` damages whole files, the same ones with the same --seed, and prints for
each reader the cases a second and the faults: raw exceptions, hangs (a case over 5 s), peaks (over 1 GiB) and crashes.
The smallest file of each fault is kept in --save.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.fork_server import ROOT, environment
from benchmarks.faults.fuzz_worker import ALL_READERS, CASE_SECONDS

START_SECONDS = 120.0
"""To import everything and to make the whole files."""


@dataclass
class Row:
    """The outcome of one reader."""

    reader: str
    cases: int = 0
    seconds: float = 0.0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = [fault["kind"].split()[0] for fault in self.faults]
        counts = {kind: kinds.count(kind) for kind in ("hang", "peak", "crash", "message")}
        raw = len(kinds) - sum(counts.values())
        rate = self.cases / self.seconds if self.seconds else 0.0
        figures = ", ".join(f"{count} {kind}" for kind, count in {"raw": raw, **counts}.items())
        return f"{self.reader:24} {self.cases:8} cases, {rate:7.0f} a second: {figures}"


def fuzz(reader: str, seed: int, seconds: float, folder: Path) -> Row:
    """Run one reader, in a new process after each hang in foreign code and each crash."""
    row, first, left = Row(reader), 0, seconds
    folder.mkdir(parents=True, exist_ok=True)
    while left > 0 and len(row.faults) < 50:
        words = [reader, str(seed), str(first), str(left), str(folder)]
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.fuzz_worker", *words], env=environment(), cwd=ROOT,
            stdout=subprocess.PIPE, stderr=(folder / "stderr").open("w"), text=True,
        )  # fmt: skip
        began, stuck = _watch(process, folder)
        spent, last = time.monotonic() - began, _progress(folder)
        out = process.stdout.read() if process.stdout else ""
        row.seconds += min(spent, left)
        if process.returncode == 0:
            row.cases += json.loads(out.splitlines()[-1])["cases"]
            break
        if last is None:
            last_line = (folder / "stderr").read_text(errors="replace").strip().splitlines()[-1:]
            row.faults.append({"kind": "crash", "case": -1, "message": f"does not begin: {last_line}", "bytes": 0})
            break
        row.cases += last + 1 - first
        kind = "hang" if stuck else "crash"
        row.faults.append({"kind": f"{kind} in foreign code", "case": last, "message": f"code {process.returncode}"})
        (folder / "current.bin").replace(folder / f"{last}.bin")
        first, left = last + 1, left - max(spent, 1.0)
    if (folder / "faults.jsonl").exists():
        row.faults += map(json.loads, (folder / "faults.jsonl").read_text().splitlines())
    return row


def _progress(folder: Path) -> int | None:
    """The number of the case that is being read."""
    file = folder / "progress"
    content = file.read_bytes() if file.exists() else b""
    return int.from_bytes(content, "little") if len(content) == 8 else None


def _watch(process: subprocess.Popen, folder: Path) -> tuple[float, bool]:
    """Wait for a process. Returns when its first case began, and True if it was killed for not going on."""
    (folder / "progress").unlink(missing_ok=True)
    began, changed, last = time.monotonic(), time.monotonic(), None
    while process.poll() is None:
        now = _progress(folder)
        if now != last:
            began = time.monotonic() if last is None else began
            changed, last = time.monotonic(), now
        if time.monotonic() - changed > (START_SECONDS if last is None else 3 * CASE_SECONDS):
            process.kill()
            process.wait()
            return began, True
        time.sleep(0.05)
    return began, False


def run(options: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows of all readers asked for."""

    def one(reader: str) -> Row:
        place = folder / re.sub(r"\W+", "_", reader)
        row = fuzz(reader, options.seed, options.seconds, place)
        print(row, flush=True)
        for fault in row.faults:
            saved = _keep(place / f"{fault['case']}.bin", options.save, reader)
            print(f"    case {fault['case']}: {fault['kind']}: {fault['message']}{saved}", flush=True)
        return row

    with ThreadPoolExecutor(options.processes) as pool:
        return list(pool.map(one, options.readers))


def _keep(file: Path, folder: Path | None, reader: str) -> str:
    if folder is None or not file.exists():
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{re.sub(r'[^A-Za-z0-9.]+', '_', reader)}.{file.name}"
    shutil.copyfile(file, kept)
    return f" ({kept})"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--readers", nargs="+", choices=list(ALL_READERS), default=list(ALL_READERS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="folder for the smallest file of each fault")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        table = run(parse(), Path(made))
    total = sum(row.cases for row in table)
    print(f"{len(table)} readers, {total:,} cases, {sum(len(row.faults) for row in table)} faults")
    sys.exit(any(row.faults for row in table))

"""Kills and failing disks at every file operation: each run must be finished by the same command, bit for bit.

`python -m benchmarks.faults.kills` strikes the training of seven families, and `jaxlm prepare`, at every file operation
of the first second and at drawn ones of the rest; then it kills at random times. An error of the disk must end the
process within ENDS_WITHIN seconds, with one sentence. Prints a row for each family, and each fault with its cure: the
family, the mode and the number strike again.
"""

import argparse
import json
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.faults.contents import find_litter, first_difference, read_contents, read_shards
from benchmarks.faults.families import FAMILIES, write_texts
from benchmarks.faults.fork_server import HANGS, Outcome, Server, environment
from benchmarks.faults.fork_server import Strike as Signal
from benchmarks.faults.injector import KILLS, MODES, Operation, armed, compile_injector, read_log

PREPARE, RANDOM = "prepare", "random"
ENDS_WITHIN = 10.0
FIRST_SECOND = 1.0


@dataclass(frozen=True)
class Strike:
    """One fault: a mode of the injector at an operation, or SIGKILL after some seconds (mode "random")."""

    mode: str
    at: float

    def __str__(self) -> str:
        return f"{self.mode} at {self.at:.2f} s" if self.mode == RANDOM else f"{self.mode} at {self.at:.0f}"


@dataclass
class Row:
    """The outcomes of one family."""

    family: str
    operations: int
    in_first_second: int
    equal: int = 0
    litter: set[str] = field(default_factory=set)
    slowest_end: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.family:15} {self.operations:5} operations, {self.in_first_second:4} in the first second; "
            f"{self.equal:4} struck and finished bit for bit, {len(self.faults):3} not; "
            f"left behind: {', '.join(sorted(self.litter)) or 'nothing'}; "
            f"slowest end after an error {self.slowest_end:.1f} s"
        )


class Target:
    """One family and its unbroken run, in a folder of its own."""

    def __init__(self, family: str, folder: Path, texts: Path, server: Server) -> None:
        self.family, self.folder, self.texts = family, folder / family, texts
        self.folder.mkdir(parents=True)
        self._run(server, self.folder / "warm")  # compiles
        outcome, operations = self._run(server, self.folder / "whole")
        if outcome.code:
            raise SystemExit(f"{family} fails unbroken: {outcome.err[-2000:]}")
        self.seconds, self.operations = outcome.seconds, operations
        self.lines, self.litter = set(_plain_lines(outcome.err)), set()
        self.expected = self._contents(self.folder / "whole")

    @property
    def first_second(self) -> list[int]:
        """The numbers of the operations within a second of the first one."""
        end = self.operations[0].seconds + FIRST_SECOND
        return [operation.number for operation in self.operations if operation.seconds <= end]

    def command(self, workdir: Path) -> list[object]:
        """The command line that makes or finishes the run."""
        if self.family == PREPARE:
            options = ["--vocab-size", 320, "--shard-mb", 1, "--num-workers", 1]
            return ["prepare", self.texts, "--unit", "line", "--out", workdir, *options]
        return ["train", f"benchmarks.faults.families:{self.family}", "--workdir", workdir]

    def strike(self, server: Server, strike: Strike, name: str) -> tuple[str, float | None]:
        """The fault that a strike showed ("" if none), and the seconds from a failing operation to the end."""
        workdir = self.folder / name
        try:
            outcome, operations = self._run(server, workdir, strike)
            struck = [operation for operation in operations if operation.struck]
            if strike.mode in KILLS and outcome.code != -signal.SIGKILL:
                return ("" if not struck and outcome.code == 0 else f"code {outcome.code}: {outcome.last_words}"), None
            ended = None
            if strike.mode not in (*KILLS, RANDOM):
                if outcome.code == HANGS:
                    return f"no end after {outcome.seconds:.0f} s: {outcome.last_words}", None
                ended = outcome.ended - struck[0].seconds if struck else None
                if fault := self._manners(outcome):
                    return fault, ended
            finished, _ = self._run(server, workdir)
            if finished.code != 0:
                return f"stuck, code {finished.code}: {finished.last_words}", ended
            self.litter |= {_pattern(path) for path in find_litter(workdir)}
            return first_difference(self._contents(workdir), self.expected), ended
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
            (self.folder / f"{name}.log").unlink(missing_ok=True)

    def _manners(self, outcome: Outcome) -> str:
        """The fault in the words or the code of a run whose disk failed."""
        usual = "resuming", "step /"  # progress, whose units depend on the speed
        new = [line for line in _plain_lines(outcome.err) if line not in self.lines and not line.startswith(usual)]
        if outcome.code not in (0, 1):
            return f"code {outcome.code}, expected 1: {outcome.last_words}"
        if outcome.code == 1 and len(new) != 1 or outcome.code == 0 and len(new) > 1:
            return f"{len(new)} lines instead of one: " + " | ".join(new[:4])
        return ""

    def _run(self, server: Server, workdir: Path, strike: Strike | None = None) -> tuple[Outcome, list[Operation]]:
        log = workdir.with_name(f"{workdir.name}.log")
        log.unlink(missing_ok=True)
        at_time = Signal(signal.SIGKILL, strike.at) if strike and strike.mode == RANDOM else None
        at = armed(workdir, log, strike.mode, int(strike.at)) if strike and not at_time else armed(workdir, log)
        outcome = server.run(self.command(workdir), at, strike=at_time)
        return outcome, read_log(log)

    def _contents(self, workdir: Path) -> dict[str, Any]:
        try:
            return read_shards(workdir) if self.family == PREPARE else read_contents(workdir)
        except (OSError, ValueError) as error:
            return {"unreadable": str(error)}


def _pattern(path: str) -> str:
    """A path without its digits and random letters."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "*", path)


def _plain_lines(err: str) -> Iterator[str]:
    """The lines of stderr without digits, which are times and sizes."""
    for line in err.replace("\r", "\n").splitlines():
        if plain := "".join(letter for letter in line if not letter.isdigit()).strip():
            yield plain


def strikes_of(target: Target, options: argparse.Namespace) -> list[Strike]:
    """All strikes of a family: kills at all operations of the first second, the other modes at drawn ones, random."""
    draw, early = random.Random(f"{target.family}/{options.seed}"), target.first_second
    late = [operation.number for operation in target.operations[len(early) :]]
    if options.first is not None:
        early = sorted(draw.sample(early, min(options.first, len(early))))
    strikes = []
    for mode in options.modes:
        share = early if mode == "kill" else sorted(draw.sample(early, min(options.others, len(early))))
        count = options.drawn if mode == "kill" else options.others
        strikes += [Strike(mode, at) for at in (*share, *sorted(draw.sample(late, min(count, len(late)))))]
    return strikes + [Strike(RANDOM, draw.uniform(0.0, target.seconds)) for _ in range(options.random)]


def run_family(family: str, folder: Path, texts: Path, servers: SimpleQueue, options: argparse.Namespace) -> Row:
    """Strike one family in as many processes as there are servers."""
    server = servers.get()
    target = Target(family, folder, texts, server)
    servers.put(server)
    row = Row(family, len(target.operations), len(target.first_second))

    def one(job: tuple[int, Strike]) -> None:
        number, strike = job
        server = servers.get()
        try:
            fault, ended = target.strike(server, strike, f"struck{number}")
        finally:
            servers.put(server)
        row.slowest_end = max(row.slowest_end, ended or 0.0)
        if not fault and ended and ended > ENDS_WITHIN:
            fault = f"ended {ended:.0f} s after the error"
        if fault:
            operation = "" if strike.mode == RANDOM else _describe(target, int(strike.at))
            row.faults.append(f"{family}: {strike}{operation}: {fault}")
            print(row.faults[-1], flush=True)
        else:
            row.equal += 1

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(one, enumerate(strikes_of(target, options))))
    row.litter = target.litter
    return row


def _describe(target: Target, number: int) -> str:
    operation = target.operations[number - 1]
    return f" ({operation.name} {Path(operation.path).relative_to(target.folder / 'whole')})"


def run(options: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows of all families asked for. Exits where no C compiler is found."""
    library = compile_injector(folder)
    if library is None:
        raise SystemExit("no C compiler (cc): the fault injector cannot be built")
    texts = write_texts(folder)
    env = environment(options.cache or folder / "compiled", JAXLM_DATA=str(folder), JAXLM_CACHE=str(folder / "native"))
    servers: SimpleQueue = SimpleQueue()
    rows = []
    with ExitStack() as stack:
        for number in range(options.processes):
            servers.put(stack.enter_context(Server(folder / f"server{number}", env, library)))
        for family in options.families:
            rows.append(run_family(family, folder, texts, servers, options))
            print(rows[-1], flush=True)
    return rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [*FAMILIES, PREPARE]
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--first", type=int, help="operations of the first second to kill at (default: all)")
    parser.add_argument("--drawn", type=int, default=40, help="operations of the rest to kill at")
    parser.add_argument("--others", type=int, default=10, help="operations, early and late, for each other mode")
    parser.add_argument("--random", type=int, default=40, help="kills at random times")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder that keeps compilations from one call to the next")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        table = run(parse(), Path(made))
    print(json.dumps({row.family: {"equal": row.equal, "faults": len(row.faults)} for row in table}))
    sys.exit(any(row.faults for row in table))

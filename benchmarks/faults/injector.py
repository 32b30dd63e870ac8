"""The fault injector (`injector.c`): compiled, armed, and its log read."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MODES = ("kill", "after", "half", "enospc", "eio", "eacces")
KILLS = MODES[:3]
"""The modes that end the process; the others let an operation fail."""


@dataclass(frozen=True)
class Operation:
    """One line of the log: number from 1, seconds of the wall clock, mode if it was struck, name, path."""

    number: int
    seconds: float
    struck: bool
    name: str
    path: str


def compile_injector(folder: Path) -> Path | None:
    """The shared library, made in `folder`; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = folder / "injector.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def armed(folder: Path, log: Path, mode: str = "", at: int = 0) -> dict[str, str]:
    """The variables that strike operation `at` below `folder`; without a mode operations are only logged."""
    return {"FAULT_FOLDER": str(folder), "FAULT_LOG": str(log), "FAULT_MODE": mode, "FAULT_AT": str(at)}


def read_log(log: Path) -> list[Operation]:
    """The operations of one process, in order."""
    if not log.exists():
        return []
    rows = [line.split("\t", 4) for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [Operation(int(number), float(at), mark != "-", name, path) for number, at, mark, name, path in rows]

"""Kernels of a trace that `jax.profiler` wrote: time by name, their number, and the gaps between them."""

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import Session

SOURCES = (("/device:GPU", "Stream"), ("/device:TPU", "XLA Ops"), ("/host:CPU", "tf_XLA"))
"""Beginning of a plane and of the lines in it that hold what a device ran; the first that is in the trace is read."""


@dataclass(frozen=True)
class Kernels:
    """Kernels of a trace: nanoseconds and runs by name, nanoseconds from the first to the last, and of them idle."""

    nanoseconds: dict[str, float]
    runs: dict[str, int]
    total: float
    idle: float

    @property
    def launches(self) -> int:
        return sum(self.runs.values())

    def longest(self, count: int) -> list[dict[str, Any]]:
        """The kernels with the largest sums, with their share of all kernels."""
        names = sorted(self.nanoseconds, key=self.nanoseconds.__getitem__, reverse=True)[:count]
        whole = sum(self.nanoseconds.values()) or 1.0
        return [
            {
                "kernel": name[:120],
                "share": round(self.nanoseconds[name] / whole, 4),
                "ms": round(self.nanoseconds[name] / 1e6, 3),
                "runs": self.runs[name],
            }
            for name in names
        ]


def read_kernels(folder: Path) -> Kernels:
    """The kernels of the newest trace below a folder. Raises FileNotFoundError if there is none."""
    from jax.profiler import ProfileData

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no *.xplane.pb below {folder}")
    data = ProfileData.from_file(str(files[-1]))
    nanoseconds: dict[str, float] = collections.Counter()
    runs: dict[str, int] = collections.Counter()
    spans = []
    for name, start, duration in _events(data):
        nanoseconds[name] += duration
        runs[name] += 1
        spans.append((start, start + duration))
    total, busy = _covered(spans)
    return Kernels(dict(nanoseconds), dict(runs), total, total - busy)


def _events(data: Any) -> Iterator[tuple[str, float, float]]:
    """(name, start, duration) of every kernel."""
    planes = list(data.planes)
    for plane_name, line_name in SOURCES:
        lines = [
            line
            for plane in planes
            if plane.name.startswith(plane_name)
            for line in plane.lines
            if line.name.startswith(line_name)
        ]
        if lines:
            for line in lines:
                yield from ((event.name, event.start_ns, event.duration_ns) for event in line.events)
            return


def _covered(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """The time from the first start to the last end, and the part of it in which at least one span is open."""
    busy, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return (end - min(spans)[0] if spans else 0.0), busy


def record_kernels(session: Session, label: str, folder: Path, steps: int = 1) -> None:
    """Write the ten longest kernels, the kernels a step, and the share of the time in which none ran."""
    kernels = read_kernels(folder)
    for rank, kernel in enumerate(kernels.longest(10), 1):
        session.figure(f"{label}, kernel {rank}", kernel)
    session.figure(f"{label}, launches", kernels.launches / steps, "a step or position")
    session.figure(f"{label}, idle", kernels.idle / kernels.total if kernels.total else 0.0, "of the time", "< 0.05")

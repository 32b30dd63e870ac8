"""Figures of the ten minutes on a GPU: each is written at once, as one JSON line, and printed with its expectation."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIGURES_FILE = "gpu.jsonl"

DRY_DIVISOR = 16
"""Sizes are divided by it in a dry run, which tests the script on a CPU."""


@dataclass(frozen=True)
class Session:
    """The setting of one task.

    Attributes:
      out: the folder of the figures.
      task: `PART.NAME`, as in `benchmarks.gpu.tasks`.
      dry: small shapes and the implementations that run on every platform.
    """

    out: Path
    task: str
    dry: bool = False

    def size(self, number: int, least: int = 1) -> int:
        """The number, or in a dry run a sixteenth of it."""
        return max(least, number // DRY_DIVISOR) if self.dry else number

    def figure(self, name: str, value: Any, unit: str = "", good: str = "", correct: bool | None = None) -> None:
        """Write and print a figure. `good`: what would be good; `correct`: whether a value that has to hold does."""
        line = {"task": self.task, "figure": name, "value": value, "unit": unit, "good": good, "correct": correct}
        with (self.out / FIGURES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"dry": self.dry, "time": round(time.time(), 1)}, default=str) + "\n")
        text = f"{value:,.4g}" if isinstance(value, float) else str(value)
        mark = " WRONG" if correct is False else ""
        print(f"  {name}: {text} {unit}".rstrip() + (f"   (good: {good})" if good else "") + mark, flush=True)

    def figures(self) -> list[dict[str, Any]]:
        """The figures so far, of all tasks."""
        file = self.out / FIGURES_FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def repeats(session: Session) -> dict[str, int]:
    """The repetitions of `milliseconds`: one in a dry run."""
    return {"repeats": 1, "rounds": 1} if session.dry else {}

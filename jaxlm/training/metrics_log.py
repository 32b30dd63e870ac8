"""What a run says of itself: `metrics.jsonl`, TensorBoard events, and its progress on stderr.

Each line of `metrics.jsonl` is a JSON object, `step` first: {"step": 1200, "train/loss": 3.2, "time/waiting": 0.01}.
Keys before the slash: `train/` and `valid/`, `test/` are figures of the model, the same in every run of the same
experiment; `time/` ones belong to the machine and the hour. Numbers that JSON lacks are the strings "nan", "inf" and
"-inf": `float` reads all of them.

A run that goes on from step k cuts what it had written after k, so that it leaves the lines (`time/` aside) that an
uninterrupted run leaves. For that, log the figures of a step before its checkpoint is saved.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.filesystem import write_atomic
from jaxlm.training.progress import Display, SilentDisplay, format_number, make_display

METRICS_FILE = "metrics.jsonl"

TENSORBOARD_FOLDER = "tensorboard"

LOWER_IS_BETTER = ("loss", "nll", "perplexity")


def metric_sign(metric: str) -> int:
    """-1 for a figure of which less is better (a loss, a perplexity), else 1."""
    return -1 if metric.endswith(LOWER_IS_BETTER) else 1


class MetricsLog:
    """The log of the run in `workdir`.

    `total`: the step at which the run ends. `resume_step`: the step it goes on from; None for a new run, which empties
    the log. `best`: the metric whose best value is shown (see `sign`). `every_seconds`: how often a plain line
    comes where stderr is no terminal. `main=False`: for the processes that are not the first, writes and shows nothing.
    """

    def __init__(
        self,
        workdir: Path | str,
        *,
        total_steps: int | None = None,
        resume_step: int | None = None,
        best_metric: str | None = None,
        every_seconds: float = 10.0,
        tensorboard: bool = True,
        is_main: bool = True,
        display: Display | None = None,
    ):
        self.workdir, self.best_metric, self.is_main = Path(workdir), best_metric, is_main
        self._best: tuple[float, int] | None = None
        self._tensorboard = tensorboard and is_main
        self._resume_step = resume_step
        self._writer: Any = None
        self._file: Any = None
        if is_main:
            self.workdir.mkdir(parents=True, exist_ok=True)
            truncate_metrics(self.workdir / METRICS_FILE, resume_step)
            for line in read_metrics(self.workdir):
                self._update_best(line["step"], line)
            self._file = open(self.workdir / METRICS_FILE, "a", encoding="utf-8")
            self._display = display or make_display(total_steps, resume_step or 0, every_seconds)
        else:
            self._display = SilentDisplay()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Log the figures of a step: plain numbers (or short texts, which TensorBoard does not get)."""
        if not self.is_main:
            return
        line = json.dumps(
            {"step": int(step)} | {name: _json_number(value) for name, value in values.items()}, allow_nan=False
        )
        self._file.write(line + "\n")
        self._file.flush()
        self._update_best(step, values)
        self._write_events(step, values)
        shown = (
            f"{self.best_metric} {format_number(self._best[0])} at {self._best[1]}" if self._best is not None else ""
        )
        self._display.update(step, values, shown)

    def set_step(self, step: int) -> None:
        """Tell the bar that the run has come to `step`. Cheap: for each step, logged or not."""
        self._display.set_step(step)

    def print_line(self, text: str) -> None:
        """A line for whoever watches; it is in no file."""
        self._display.print_line(text)

    def close(self) -> None:
        """End the bar and close the files."""
        self._display.close()
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _update_best(self, step: int, values: Mapping[str, Any]) -> None:
        value = math.nan if self.best_metric is None else float(values.get(self.best_metric, math.nan))
        if not math.isnan(value) and (
            self._best is None or metric_sign(self.best_metric or "") * (value - self._best[0]) > 0
        ):
            self._best = value, step

    def _write_events(self, step: int, values: Mapping[str, float | str]) -> None:
        if not self._tensorboard:
            return
        if self._writer is None:
            purge = None if self._resume_step is None else self._resume_step + 1
            suffix = f".{time.time_ns()}"  # the name has whole seconds: a quick restart would write over the file
            self._writer = _summary_writer()(
                str(self.workdir / TENSORBOARD_FOLDER), purge_step=purge, flush_secs=30, filename_suffix=suffix
            )
        for name, value in values.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, float(value), step)


def _summary_writer() -> Any:
    """tensorboardX's writer, without torch: where that is installed tensorboardX imports it, for seconds and no use."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # its import is then an ImportError, which is expected
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # it would warn of each NaN
    return SummaryWriter


def truncate_metrics(path: Path, step: int | None) -> None:
    """Take out of a metrics file what was written after `step` (None: everything) and lines that are not whole.

    The file is replaced in one move: a process that dies here leaves the old one or the new one.
    """
    if not path.exists():
        return
    old = path.read_bytes().splitlines(keepends=True)
    new = [line for line in old if step is not None and (read := _step_of(line)) is not None and read <= step]
    if new == old:
        return
    write_atomic(path, b"".join(new))


def read_metrics(workdir: Path | str) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` as dicts; an unfinished last line is left out. No file: no lines."""
    path = Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) is not None]


def _step_of(line: bytes) -> int | None:
    """The step of a line; None for a line that is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def _json_number(value: float | str) -> float | str:
    """A number as JSON can hold it."""
    if isinstance(value, str | bool | int):
        return value
    value = float(value)
    return value if math.isfinite(value) else str(value)

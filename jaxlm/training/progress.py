"""Progress of a run on stderr: a live bar on a terminal, otherwise a plain line at intervals.

Both show metrics of the log: loss, tokens/s (without padding), MFU and the share of the time spent waiting for data.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

MetricValues = Mapping[str, float | str]
NOT_SCORES = ("split", "seconds", "compile_seconds", "sentences_per_second")


class Display:
    """The base of displays. It shows nothing: for the processes that are not the first."""

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """Show newly logged metrics of a step; `best` is the best metric so far as text."""

    def set_step(self, step: int) -> None:
        """Show that the run has reached `step`; called at every step, so it must be cheap."""

    def print_line(self, text: str) -> None:
        """Show a line, above the bar if there is one."""

    def close(self) -> None:
        """End the display; its last state stays on the screen."""


def make_display(
    total: int | None, start: int, every_seconds: float = 10.0, stream: TextIO | None = None, deadline: float = math.inf
) -> Display:
    """A bar if `stream` (default: stderr) is a terminal, else plain lines, at most one per `every_seconds`.

    `deadline`: the end of the run by `time.monotonic`, if it is not at the last step.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        return BarDisplay(total, start, stream, deadline=deadline)
    return LineDisplay(total, start, every_seconds, stream, deadline=deadline)


class LineDisplay(Display):
    """Plain lines: `step 1200/20000  loss 3.214  41.2k tokens/s  waiting 1%  eta 12:31  best valid/bleu 31.2 at 1k`"""

    def __init__(
        self, total: int | None, start: int, every_seconds: float, stream: TextIO,
        clock: Callable[[], float] = time.monotonic, deadline: float = math.inf,
    ):  # fmt: skip
        self.total, self.start, self.every_seconds, self.stream, self.clock = total, start, every_seconds, stream, clock
        self.began, self.deadline = clock(), deadline
        self.last = -float("inf")

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """Print a line if the last one is old enough, if the run ends, or if there are metrics of an evaluation."""
        now, evaluated = self.clock(), _format_evaluation(values)
        if now - self.last < self.every_seconds and step != self.total and not evaluated:
            return
        self.last = now
        total = "" if self.total is None else f"/{self.total}"
        parts = [f"step {step}{total}", *format_metrics(values), *evaluated]
        if self.total is not None and step > self.start:
            left = (now - self.began) * (self.total - step) / (step - self.start)
            parts.append(f"eta {format_duration(min(left, self.deadline - now))}")
        self.print_line("  ".join(parts + ([f"best {best}"] if best else [])))

    def print_line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class BarDisplay(Display):
    """A progress bar by rich, which a thread redraws twice a second; until the first step is done, it counts the
    seconds of compiling.

    `name` is shown before the bar; `deadline`: see `make_display`.
    """

    def __init__(
        self, total: int | None, start: int, stream: TextIO, name: str = "", deadline: float = math.inf
    ):  # fmt: skip
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        columns = [
            *([TextColumn("{task.description}")] if name else []),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=10, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[time]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}  {task.fields[best]}", table_column=Column(no_wrap=False)),
        ]
        self._bar: Any = RichProgress(*columns, console=Console(file=stream), refresh_per_second=2)
        self._total, self._start, self._step, self._deadline = total, start, start, deadline
        self._began = self._first_step_time = time.monotonic()
        self._task = self._bar.add_task(name, total=total, completed=start, figures="", best="", time=self)
        self._bar.start()

    def __str__(self) -> str:
        """The text of the column of time, made at each redrawing."""
        now, done = time.monotonic(), self._step - self._start
        if not done:
            return f"compiling {now - self._began:.0f} s"
        if self._total is None:
            return format_duration(now - self._began)
        left = (now - self._first_step_time) / max(done - 1, 1) * (self._total - self._step)
        return f"eta {format_duration(min(left, self._deadline - now))}"

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """Show metrics of training next to the bar, and those of an evaluation as a line above it."""
        if evaluated := _format_evaluation(values):
            self.print_line("  ".join([f"step {step}", *evaluated]))
        fields: dict[str, Any] = {"best": f"best {best}" if best else ""}
        if shown := "  ".join(format_metrics(values)):
            fields["figures"] = shown
        self.set_step(step)
        self._bar.update(self._task, **fields)

    def set_step(self, step: int) -> None:
        if self._step == self._start:
            self._first_step_time = time.monotonic()
        self._step = step
        self._bar.update(self._task, completed=step)

    def advance(self, count: int) -> None:
        """Show `count` further steps or lines."""
        self.set_step(self._step + count)

    def print_line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def format_metrics(values: MetricValues) -> list[str]:
    """The metrics of training in `values` as short texts."""
    forms: dict[str, Callable[[Any], str]] = {
        "train/loss": lambda value: f"loss {format_number(value)}",
        "time/tokens_per_second": lambda value: f"{format_thousands(float(value))} tokens/s",
        "time/rows_per_second": lambda value: f"{format_thousands(float(value))} rows/s",
        "time/mfu": lambda value: f"MFU {float(value):.0%}",
        "time/waiting": lambda value: f"waiting {100 * float(value):.0f}%",
    }
    return [form(values[name]) for name, form in forms.items() if name in values]


def _format_evaluation(values: MetricValues) -> list[str]:
    shown = (name for name in values if not name.startswith(("train/", "time/")) and not _is_nll(name, values))
    return [f"{name} {format_number(values[name])}" for name in shown]


def _is_nll(name: str, values: Mapping[str, Any]) -> bool:
    """True for a loss that is nothing but the nll, which is shown too."""
    return name.endswith("loss") and values.get(f"{name[:-4]}nll") == values[name]


def format_scores(scores: Mapping[str, Any]) -> dict[str, str]:
    """The scores of a split by name, as texts: those of further sets as `set/metric`, with signatures, without lists
    and without times."""
    texts: dict[str, str] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping) and "value" in value:
            texts[name] = format_number(value["value"])
            texts |= {f"{name} signature": value["signature"]} if "signature" in value else {}
        elif isinstance(value, Mapping):
            texts |= {f"{name}/{inner}": text for inner, text in format_scores(value).items()}
        elif not isinstance(value, list) and name not in NOT_SCORES and not _is_nll(name, scores):
            texts[name] = f"{value:,}" if isinstance(value, int) else format_number(value)
    return texts


def format_number(value: float | str) -> str:
    """A number with four significant digits; a text unchanged."""
    return value if isinstance(value, str) else f"{value:.4g}"


def format_thousands(value: float) -> str:
    """41234 -> 41.2k."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}"


def format_duration(seconds: float) -> str:
    """5025 s -> 1:23:45; 75 s -> 1:15."""
    minutes, whole_seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_seconds:02d}" if hours else f"{minutes}:{whole_seconds:02d}"

"""Progress of a run on stderr: a live bar on a terminal, otherwise a plain line at intervals.

Both show metrics of the log: loss, tokens/s (without padding), MFU and the share of the time spent waiting for data.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

MetricValues = Mapping[str, float | str]


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


def make_display(total: int | None, start: int, every_seconds: float = 10.0, stream: TextIO | None = None) -> Display:
    """A bar if `stream` (default: stderr) is a terminal, else plain lines, at most one per `every_seconds`."""
    stream = stream or sys.stderr
    return BarDisplay(total, start, stream) if stream.isatty() else LineDisplay(total, start, every_seconds, stream)


class LineDisplay(Display):
    """Plain lines: `step 1200/20000  loss 3.214  41.2k tokens/s  waiting 1%  eta 12:31  best valid/bleu 31.2 at 1k`"""

    def __init__(
        self, total: int | None, start: int, every_seconds: float, stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.total, self.start, self.every_seconds, self.stream, self.clock = total, start, every_seconds, stream, clock
        self.began = clock()
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
            parts.append(f"eta {format_duration(left)}")
        self.print_line("  ".join(parts + ([f"best {best}"] if best else [])))

    def print_line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class BarDisplay(Display):
    """A progress bar by rich, which a thread redraws twice a second."""

    def __init__(self, total: int | None, start: int, stream: TextIO):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        columns = [
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=10, table_column=Column(no_wrap=True)),
            TextColumn("eta", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}  {task.fields[best]}", table_column=Column(no_wrap=False)),
        ]
        self._bar: Any = RichProgress(*columns, console=Console(file=stream), refresh_per_second=2)
        self._task = self._bar.add_task("", total=total, completed=start, figures="", best="")
        self._bar.start()

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """Show metrics of training next to the bar, and those of an evaluation as a line above it."""
        if evaluated := _format_evaluation(values):
            self.print_line("  ".join([f"step {step}", *evaluated]))
        fields: dict[str, Any] = {"best": f"best {best}" if best else ""}
        if shown := "  ".join(format_metrics(values)):
            fields["figures"] = shown
        self._bar.update(self._task, completed=step, **fields)

    def set_step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def advance(self, count: int) -> None:
        """Show `count` further steps or lines."""
        self._bar.advance(self._task, count)

    def print_line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def format_metrics(values: MetricValues) -> list[str]:
    """The metrics of training in `values` as short texts."""
    forms: dict[str, Callable[[Any], str]] = {
        "train/loss": lambda value: f"loss {format_number(value)}",
        "time/tokens_per_second": lambda value: f"{format_thousands(float(value))} tokens/s",
        "time/mfu": lambda value: f"MFU {float(value):.0%}",
        "time/waiting": lambda value: f"waiting {100 * float(value):.0f}%",
    }
    return [form(values[name]) for name, form in forms.items() if name in values]


def _format_evaluation(values: MetricValues) -> list[str]:
    return [f"{name} {format_number(values[name])}" for name in values if not name.startswith(("train/", "time/"))]


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

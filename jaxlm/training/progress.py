"""How a run shows itself on stderr: a live bar on a terminal, a plain line now and then elsewhere.

Both read the figures of the log: `train/loss`, and of the `time/` ones `tokens_per_second` (without padding),
`mfu` (on chips whose peak is known) and `waiting` (the share of the time in which the step waited for data). stdout
stays free for results.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

MetricValues = Mapping[str, float | str]


class Display(Protocol):
    """What a log asks of its display."""

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """Newly logged figures of a step; `best` is the best metric so far as text."""
        ...

    def set_step(self, step: int) -> None:
        """The run has come to `step`; called at each step, so it costs next to nothing."""
        ...

    def print_line(self, text: str) -> None:
        """A line for the reader, above the bar."""
        ...

    def close(self) -> None:
        """No more to show; the last state stays on the screen."""
        ...


def make_display(total: int | None, start: int, every_seconds: float, stream: TextIO | None = None) -> Display:
    """A bar if `stream` (stderr) is a terminal, else plain lines, one each `every_seconds` at most."""
    stream = stream or sys.stderr
    if stream.isatty():
        return BarDisplay(total, start, stream)
    return LineDisplay(total, start, every_seconds, stream)


class SilentDisplay:
    """The display of the processes that are not the first."""

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """Nothing."""

    def set_step(self, step: int) -> None:
        """Nothing."""

    def print_line(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LineDisplay:
    """`step 1200/20000  loss 3.214  41.2k tokens/s  waiting 1%  eta 12:31  best valid/bleu 31.20 at 1000`"""

    def __init__(
        self,
        total: int | None,
        start: int,
        every_seconds: float,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.start, self.every_seconds, self.stream, self.clock = total, start, every_seconds, stream, clock
        self.began = clock()
        self.last = -float("inf")

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """A line, if the last one is long enough ago, the run ends, or there is more than figures of training."""
        now = self.clock()
        other = {k: v for k, v in values.items() if not k.startswith(("train/", "time/"))}
        if now - self.last < self.every_seconds and step != self.total and not other:
            return
        self.last = now
        parts = [f"step {step}" + ("" if self.total is None else f"/{self.total}"), *format_metrics(values)]
        parts += [f"{name} {format_number(value)}" for name, value in other.items()]
        if self.total is not None and step > self.start:
            left = (now - self.began) * (self.total - step) / (step - self.start)
            parts.append(f"eta {format_duration(left)}")
        self._print("  ".join(parts + ([f"best {best}"] if best else [])))

    def set_step(self, step: int) -> None:
        """Nothing: lines come with figures."""

    def print_line(self, text: str) -> None:
        """The text as a line."""
        self._print(text)

    def close(self) -> None:
        """Nothing."""

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class BarDisplay:
    """A bar by rich, redrawn twice a second by a thread of its own."""

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
            TextColumn(
                "{task.fields[figures]}  {task.fields[best]}", table_column=Column(no_wrap=False)
            ),  # may go on below
        ]
        self._bar: Any = RichProgress(*columns, console=Console(file=stream), refresh_per_second=2)
        self._task = self._bar.add_task("", total=total, completed=start, figures="", best="")
        self._bar.start()

    def update(self, step: int, values: MetricValues, best: str) -> None:
        """New figures beside the bar; others than training's as a line above it."""
        other = [f"{k} {format_number(v)}" for k, v in values.items() if not k.startswith(("train/", "time/"))]
        if other:
            self.print_line(f"step {step}  " + "  ".join(other))
        fields: dict[str, Any] = {"best": f"best {best}" if best else ""}
        if shown := "  ".join(format_metrics(values)):
            fields["figures"] = shown
        self._bar.update(self._task, completed=step, **fields)

    def set_step(self, step: int) -> None:
        """The bar comes to `step` when it is next drawn."""
        self._bar.update(self._task, completed=step)

    def print_line(self, text: str) -> None:
        """The text as a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Draw the last state and stop."""
        self._bar.stop()


def format_metrics(values: MetricValues) -> list[str]:
    """The figures of training that are in `values`, as short texts."""
    texts = []
    if "train/loss" in values:
        texts.append(f"loss {format_number(values['train/loss'])}")
    if "time/tokens_per_second" in values:
        texts.append(f"{format_thousands(float(values['time/tokens_per_second']))} tokens/s")
    if "time/mfu" in values:
        texts.append(f"MFU {float(values['time/mfu']):.0%}")
    if "time/waiting" in values:
        texts.append(f"waiting {100 * float(values['time/waiting']):.0f}%")
    return texts


def format_number(value: float | str) -> str:
    """Four significant digits; text as it is."""
    return value if isinstance(value, str) else f"{value:.4g}"


def format_thousands(value: float) -> str:
    """41234 -> 41.2k."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}"


def format_duration(seconds: float) -> str:
    """5025 s -> 1:23:45; 75 s -> 1:15."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""Output of the commands: text and JSON on stdout; messages, rates and a progress bar on stderr."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from jaxlm.json_files import json_safe
from jaxlm.training.progress import BarDisplay, format_scores

COMPILE_EVENT_PREFIX = "/jax/core/compile/"


def print_stderr(text: str) -> None:
    """Print a message."""
    print(text, file=sys.stderr, flush=True)


def write_line(text: str) -> None:
    """Write a line to stdout in UTF-8, in every locale; lone surrogates, which UTF-8 lacks, become `?`."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="replace") + b"\n")


def json_line(value: Any) -> str:
    """The value as one line of JSON; the numbers that JSON lacks become the strings "nan", "inf" and "-inf"."""
    return json.dumps(json_safe(value), ensure_ascii=False, allow_nan=False)


def write_result(record: dict[str, Any], as_json: bool, text: Callable[[], str] | None = None) -> None:
    """Write the figures of a command to stdout: for people on a terminal, else, or if asked for, as one line of JSON.

    `text` makes the form for people (default: a line for each figure).
    """
    if as_json or not sys.stdout.isatty():
        write_line(json_line(record))
    else:
        write_line(text() if text else score_lines(record))


def score_lines(scores: dict[str, Any]) -> str:
    """A line for each score, the names in one column."""
    texts = format_scores(scores)
    width = max(map(len, texts), default=0)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in texts.items())


class Clock:
    """Seconds since its creation, and the share of tracing and compiling in them.

    JAX reports inner events before the event that contains them: an event replaces the spans inside it, so that no
    second counts twice.
    """

    _spans: list[tuple[float, float]] = []
    _listening = False

    def __init__(self) -> None:
        if not Clock._listening:
            import jax.monitoring

            jax.monitoring.register_event_duration_secs_listener(Clock._listen)
            Clock._listening = True
        self._start = time.perf_counter()
        self._scoring_since: float | None = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def compile_seconds(self) -> float:
        return sum(end - begin for begin, end in Clock._spans if begin >= self._start)

    def watch(self, progress: Callable[[int], None] | None) -> Callable[[int], None]:
        """The callback, which also notes when the last line was answered: BLEU, say, does not count in the rate."""

        def advance(count: int) -> None:
            self._scoring_since = time.perf_counter()
            if progress:
                progress(count)

        return advance

    def rates(self, num_lines: int) -> dict[str, float]:
        """Figures for a JSON object; the rate excludes compilation."""
        seconds, compile_seconds = self.seconds, self.compile_seconds
        scoring = 0.0 if self._scoring_since is None else time.perf_counter() - self._scoring_since
        rate = num_lines / max(seconds - compile_seconds - scoring, 1e-9)
        figures = {"seconds": seconds, "compile_seconds": compile_seconds, "sentences_per_second": rate}
        return {name: round(value, 3) for name, value in figures.items()}

    def summary(self, num_lines: int) -> str:
        """The same figures as text."""
        seconds, compiling, rate = self.rates(num_lines).values()
        total = f"{num_lines:,} lines in {seconds:.1f} s"
        return f"{total} ({compiling:.1f} s compiling): {rate:.1f} lines/s apart from compiling"

    @classmethod
    def _listen(cls, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILE_EVENT_PREFIX):
            end = time.perf_counter()
            begin = end - duration_secs
            while cls._spans and cls._spans[-1][0] >= begin:
                cls._spans.pop()
            cls._spans.append((begin, end))


@contextlib.contextmanager
def progress_bar(total: int, name: str = "") -> Iterator[Callable[[int], None] | None]:
    """A callback that advances a progress bar on stderr by a number of lines; None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with contextlib.closing(BarDisplay(total, 0, sys.stderr, name)) as bar:
        yield bar.advance

"""The log of a run: `metrics.jsonl`, TensorBoard events, and the progress display on stderr.

Each line of `metrics.jsonl` is a JSON object, `step` first: {"step": 1200, "train/loss": 3.2, "time/waiting": 0.01}.
Metrics under `train/`, `valid/` and `test/` belong to the model and are the same in every run of the same experiment;
those under `time/` belong to the machine. `time/seconds` have passed since the line before or the start of training:
their sum is the duration of the run. Numbers that JSON lacks are strings that `float` reads: "nan", "inf".

A run that resumes from step k cuts the lines after k: it leaves the lines (`time/` aside) of an uninterrupted run, if
the metrics of a step are logged before its checkpoint is saved.
"""

import ctypes
import json
import math
import platform
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from jaxlm.errors import UserError
from jaxlm.filesystem import write_all, write_atomic
from jaxlm.json_files import parse_json
from jaxlm.training.progress import Display, format_number, make_display
from jaxlm.workdir import Workdir

MakeLogger = Callable[[Any, Path], Callable[[int, Mapping[str, float | str]], None]]
"""(experiment, workdir) -> a function that gets the step and the metrics of each line of the log."""

LOWER_IS_BETTER = ("loss", "nll", "perplexity")


def metric_sign(metric: str) -> int:
    """-1 for a metric of which lower is better (a loss, a perplexity), else 1."""
    return -1 if metric.endswith(LOWER_IS_BETTER) else 1


class MetricsLog:
    """The log of the run in a workdir.

    Args:
      total_steps: the last step of the run.
      resume_step: the step from which the run resumes; None: a new run, which empties the log.
      best_metric: the metric whose best value is shown (see `metric_sign`).
      is_main: False for processes other than the first, which write and show nothing.
      deadline: see `make_display`.
      evaluate_again: whether the evaluation of `resume_step` was interrupted: its lines are cut too.
    """

    def __init__(
        self, workdir: Workdir, total_steps: int | None = None, resume_step: int | None = None,
        best_metric: str | None = None, *, is_main: bool = True, evaluate_again: bool = False,
        deadline: float = math.inf,
    ):  # fmt: skip
        self.workdir, self.best_metric, self.is_main = workdir, best_metric, is_main
        self._best: tuple[float, int] | None = None
        self._resume_step = resume_step
        self._events: EventFile | None = None
        self._file: Any = None
        self.on_metrics: Callable[[int, Mapping[str, float | str]], None] | None = None
        self._display = Display()
        self._written = time.monotonic()
        if is_main:
            workdir.folder.mkdir(parents=True, exist_ok=True)
            for line in truncate_metrics(workdir.metrics_file, resume_step, evaluate_again):
                self._update_best(line["step"], line)
            self._file = open(workdir.metrics_file, "ab", buffering=0)
            self._display = make_display(total_steps, resume_step or 0, deadline=deadline)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Log the metrics of a step: numbers, or short texts, which TensorBoard does not get."""
        if not self.is_main:
            return
        before, self._written = self._written, time.monotonic()
        record = {"step": int(step)} | {name: _json_number(value) for name, value in values.items()}
        record["time/seconds"] = round(self._written - before, 3)
        write_all(self._file, json.dumps(record, allow_nan=False).encode() + b"\n")
        self._update_best(step, values)
        first_step = None if self._resume_step is None else self._resume_step + 1
        self._events = self._events or EventFile(self.workdir.tensorboard_folder, first_step)
        self._events.write(step, {name: float(x) for name, x in values.items() if not isinstance(x, str)})
        if self.on_metrics:
            self.on_metrics(step, values)
        best = f"{self.best_metric} {format_number(self._best[0])} at {self._best[1]}" if self._best else ""
        self._display.update(step, values, best)

    def set_step(self, step: int) -> None:
        """Show that the run has reached `step`. Cheap enough for every step."""
        self._display.set_step(step)

    def print_line(self, text: str) -> None:
        """Show a line that is not written to the log."""
        self._display.print_line(text)

    def close(self) -> None:
        """End the bar and close the files."""
        for part in (self._display, self._file, self._events):
            if part is not None:
                part.close()

    def _update_best(self, step: int, values: Mapping[str, Any]) -> None:
        try:
            value = float(values.get(self.best_metric or "", math.nan))
        except (TypeError, ValueError, OverflowError):  # an edited log: only the display needs the best value
            return
        if math.isnan(value):
            return
        if self._best is None or metric_sign(self.best_metric or "") * (value - self._best[0]) > 0:
            self._best = value, step


def truncate_metrics(path: Path, step: int | None, evaluate_again: bool = False) -> list[dict[str, Any]]:
    """Remove the lines after `step` (None: all lines) and incomplete lines from a metrics file, in one move; return the
    lines that are left as dicts.

    `evaluate_again`: remove the evaluation of `step` too.
    """
    old = list(_iter_lines(path))
    last = -1 if step is None else step

    def is_kept(record: dict[str, Any]) -> bool:
        is_repeated = evaluate_again and record["step"] == last and any(name.startswith("valid/") for name in record)
        return record["step"] <= last and not is_repeated

    new = [(line, record) for line in old if (record := _parse_line(line)) is not None and is_kept(record)]
    if len(new) < len(old):
        write_atomic(path, b"".join(line for line, _ in new))
    return [record for _, record in new]


MAX_LINE_BYTES = 1 << 20


class StepRecord(TypedDict):
    """A line of the log, which also holds the metrics."""

    step: int


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` as dicts, without an incomplete last line; [] if the file does not exist."""
    return [record for line in _iter_lines(path) if (record := _parse_line(line)) is not None]


def _iter_lines(path: Path) -> Iterator[bytes]:
    """The lines of a log with their ends; none if it does not exist. Raises UserError for too long a line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES:
                raise UserError(
                    f"{path} has a line of more than {MAX_LINE_BYTES:,} bytes: it is damaged, remove the file"
                )
            yield line


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if the line is incomplete."""
    try:
        return parse_json(line, "metrics.jsonl", StepRecord) if line.endswith(b"\n") else None
    except UserError:
        return None


def _json_number(value: float | str) -> float | str:
    """A number that JSON can hold."""
    if isinstance(value, str | bool | int):
        return value
    return float(value) if math.isfinite(value) else str(float(value))


CRC_POLYNOMIAL = 0x82F63B78


class EventFile:
    """A new event file of TensorBoard in `folder`, which forgets what older files have from `first_step` on (None:
    nothing). A line is written when the call returns, or has raised OSError: no thread fails later.

    A record is its length, an Event (a message of Protocol Buffers) and their checksums (CRC-32C). The few fields of
    Event that numbers need are encoded here: a library for it would import PyTorch where that is installed.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The time in whole seconds, as TensorBoard sorts the files by it, and then a name of its own.
        name = f"events.out.tfevents.{time.time():010.0f}.{platform.node()}.{time.time_ns()}"
        self._file = open(folder / name, "xb", buffering=0)
        self._write_event(_bytes_field(3, b"brain.Event:2"))  # file_version
        if first_step is not None:
            self._write_event(_varint_field(2, first_step) + _bytes_field(7, _varint_field(1, 1)))  # session_log: START

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one number a name."""
        summary = b""
        for name, value in values.items():
            number = struct.pack("<Bf", 2 << 3 | 5, ctypes.c_float(value).value)  # c_float: too large is infinite
            summary += _bytes_field(1, _bytes_field(1, name.encode()) + number)  # a value: tag, simple_value
        self._write_event(_varint_field(2, step) + _bytes_field(5, summary))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_event(self, fields: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + fields  # wall_time
        length = struct.pack("<Q", len(event))
        write_all(self._file, length + _masked_crc(length) + event + _masked_crc(event))


def _varint(number: int) -> bytes:
    """A number, seven bits a byte, the lowest first."""
    *head, last = (number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7))
    return bytes([*(part | 0x80 for part in head), last])


def _varint_field(field: int, number: int) -> bytes:
    return bytes([field << 3]) + _varint(number)


def _bytes_field(field: int, content: bytes) -> bytes:
    """A field that is a text or another message."""
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (CRC_POLYNOMIAL if crc & 1 else 0)
    return crc


_CRC_TABLE = tuple(map(_crc_of_byte, range(256)))


def _masked_crc(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted as in the record files of TensorFlow."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)

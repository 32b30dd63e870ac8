"""Laws of the log: lines of legal JSON, a resumed log equals an uninterrupted one, stdout stays clean."""

import io
import json
import math
import os
import re
import time

import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.training import metrics_log
from jaxlm.training.metrics_log import MetricsLog, read_metrics, truncate_metrics
from jaxlm.training.progress import (
    BarDisplay,
    LineDisplay,
    format_duration,
    format_metrics,
    format_number,
    format_scores,
    format_thousands,
    make_display,
)
from jaxlm.workdir import Workdir


def train(workdir, start, stop, resume=None, noise=0.0):
    """A run that logs at each step, validates at every third, and then would save."""
    with MetricsLog(Workdir(workdir), 10, resume, "valid/bleu") as log:
        for step in range(start + 1, stop + 1):
            log.set_step(step)
            log.write(step, {"train/loss": 1 / step, "time/tokens_per_second": 1000 + noise, "time/waiting": 0.1})
            if step % 3 == 0:
                log.write(step, {"valid/bleu": 30.0 - abs(step - 6)})


def without_time(workdir):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def test_lines_are_legal_json_with_the_step_first(tmp_path, capfd):
    with MetricsLog(Workdir(tmp_path)) as log:
        log.write(1, {"train/loss": np.float32(0.5), "count": 3, "text": "x"})
        log.write(2, {"train/loss": float("nan"), "a": float("inf"), "b": -np.inf})
        on_disk = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert len(on_disk) == 2  # flushed at each line, not at the end
    line, _, seconds = on_disk[0].partition(', "time/seconds": ')
    assert line == '{"step": 1, "train/loss": 0.5, "count": 3, "text": "x"' and 0 <= float(seconds[:-1]) < 60

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(on_disk[1], parse_constant=refuse)["a"] == "inf"
    first, second = read_metrics(Workdir(tmp_path).metrics_file)
    assert first["step"] == 1 and math.isnan(float(second["train/loss"])) and float(second["b"]) == -math.inf
    out, err = capfd.readouterr()
    assert out == "" and "step 1" in err


@pytest.mark.parametrize("saved,died", [(3, 5), (4, 4), (6, 9), (9, 10), (0, 2)])
def test_resumed_log_equals_an_uninterrupted_one(tmp_path, saved, died):
    train(tmp_path / "whole", 0, 10)
    train(tmp_path / "cut", 0, died, noise=1)
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "train/lo')  # killed while it wrote
    train(tmp_path / "cut", saved, 10, resume=saved, noise=2)
    assert without_time(tmp_path / "cut") == without_time(tmp_path / "whole")
    assert len(without_time(tmp_path / "whole")) == 13


def test_cut_is_atomic(tmp_path, monkeypatch):
    train(tmp_path, 0, 5)
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        truncate_metrics(path, 3)
    assert path.read_bytes() == before
    monkeypatch.undo()
    truncate_metrics(path, 3)
    kept = before.splitlines(keepends=True)[:4]
    assert path.read_bytes().splitlines(keepends=True) == kept
    stamp = path.stat().st_mtime_ns
    truncate_metrics(path, 3)
    assert path.stat().st_mtime_ns == stamp  # nothing to cut: the file is left alone
    truncate_metrics(path, None)
    assert path.read_bytes() == b""


def test_new_run_empties_the_log_and_resume_keeps_step_0(tmp_path):
    with MetricsLog(Workdir(tmp_path)) as log:
        log.write(0, {"valid/loss": 9.0})
        log.write(1, {"train/loss": 3.0})
    with MetricsLog(Workdir(tmp_path), resume_step=0):
        pass
    assert [line["step"] for line in read_metrics(Workdir(tmp_path).metrics_file)] == [0]
    with MetricsLog(Workdir(tmp_path)):
        pass
    assert read_metrics(Workdir(tmp_path).metrics_file) == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_resumed_run_reads_its_log_once(tmp_path, monkeypatch):
    with MetricsLog(Workdir(tmp_path)) as log:
        for step in range(5):
            log.write(step, {"valid/loss": float(step)})
    read: list = []
    parse = metrics_log._parse_line
    monkeypatch.setattr(metrics_log, "_parse_line", lambda line: read.append(line) or parse(line))
    with MetricsLog(Workdir(tmp_path), resume_step=3, best_metric="valid/loss") as log:
        assert len(read) == 5 and log._best == (0.0, 0)


def test_other_processes_write_and_show_nothing(tmp_path, capfd):
    with MetricsLog(Workdir(tmp_path / "run"), is_main=False) as log:
        log.write(1, {"train/loss": 1.0})
        log.set_step(2)
        log.print_line("hello")
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def events(folder):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for file in sorted(folder.glob("events*"), key=os.path.getmtime):
        data = file.read_bytes()
        while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            checksums = data[8:12], data[12 + length : 16 + length]
            parts = data[:8], data[12 : 12 + length]
            assert checksums == tuple(masked_crc32c(part).to_bytes(4, "little") for part in parts)
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_events_and_purge_on_resume(tmp_path, caplog):
    with MetricsLog(Workdir(tmp_path)) as log:
        for step in (1, 2, 3):
            log.write(step, {"train/loss": 1 / step, "note": "text", "train/nan": float("nan")})
    with MetricsLog(Workdir(tmp_path), resume_step=2) as log:
        log.write(3, {"train/loss": 0.25})
    found = events(tmp_path / "tensorboard")
    losses = [(e.step, v.simple_value) for e in found for v in e.summary.value if v.tag.endswith("loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (3, 0.25)]
    assert not [v for e in found for v in e.summary.value if "note" in v.tag]
    assert caplog.text == ""
    starts = [e.step for e in found if e.HasField("session_log") and e.session_log.status == e.session_log.START]
    assert starts == [3]  # TensorBoard forgets what was written from step 3 on, before it


def test_numbers_of_tensorboard(tmp_path):
    """Steps of several bytes, names that are not ASCII, numbers beyond float32."""
    values = {"valid/ñ": -0.5, "x" * 300: 1e300, "zero": 0.0}
    with MetricsLog(Workdir(tmp_path)) as log:
        for step in (0, 127, 128, 2**31):
            log.write(step, values)
    found = [event for event in events(tmp_path / "tensorboard") if event.HasField("summary")]
    assert [event.step for event in found] == [0, 127, 128, 2**31]
    assert {v.tag: v.simple_value for v in found[2].summary.value} == {**values, "x" * 300: float("inf")}
    assert all(abs(event.wall_time - time.time()) < 600 for event in found)


def lines_of(every_seconds, times):
    stream, clock = io.StringIO(), iter(times)
    return LineDisplay(10, 0, every_seconds, stream, clock=lambda: next(clock)), stream


def test_plain_lines(tmp_path):
    lines, stream = lines_of(10.0, [0, 1, 4, 8, 12, 13, 14])
    values = {"train/loss": 3.21456, "time/tokens_per_second": 41234.0, "time/waiting": 0.013}
    lines.update(1, values, "")  # the first, at 1 s
    lines.update(2, values, "")  # at 4 s: too soon
    lines.update(3, {"valid/bleu": 30.125}, "valid/bleu 30.12 at 3")  # at 8 s: not of training
    lines.update(4, values, "valid/bleu 30.12 at 3")  # at 12 s: too soon again
    lines.update(10, values, "valid/bleu 30.12 at 3")  # the last step
    lines.print_line("done")
    assert stream.getvalue().splitlines() == [
        "step 1/10  loss 3.215  41.2k tokens/s  waiting 1%  eta 0:09",
        "step 3/10  valid/bleu 30.12  eta 0:19  best valid/bleu 30.12 at 3",
        "step 10/10  loss 3.215  41.2k tokens/s  waiting 1%  eta 0:00  best valid/bleu 30.12 at 3",
        "done",
    ]


def test_best_is_remembered_over_a_resume(tmp_path, capfd):
    train(tmp_path, 0, 6)
    assert "best valid/bleu 30 at 6" in capfd.readouterr().err
    train(tmp_path, 6, 10, resume=6)
    assert capfd.readouterr().err.splitlines()[-1].endswith("best valid/bleu 30 at 6")


@pytest.mark.parametrize("columns", [80, 140])
def test_bar_on_a_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    bar = make_display(100, 10, 5.0, stream)
    assert isinstance(bar, BarDisplay) and isinstance(make_display(1, 0, 5.0, io.StringIO()), LineDisplay)
    bar.set_step(15)
    bar.update(20, {"train/loss": 2.5, "time/tokens_per_second": 1500.0, "time/waiting": 0.25}, "")
    bar.update(30, {"valid/bleu": 12.5}, "valid/bleu 12.5 at 30")
    bar.print_line("saved [30]")
    bar.close()
    shown = " ".join(re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).split())
    for text in ("30/100", "loss 2.5", "1.5k tokens/s", "waiting 25%", "valid/bleu 12.5", "saved [30]"):
        assert text in shown, text


def test_time_on_the_bar(monkeypatch):
    """Until the first step is done it counts the seconds of compiling; then the end of the run or of its minutes."""
    now = [100.0]
    monkeypatch.setattr("jaxlm.training.progress.time.monotonic", lambda: now[0])
    bar = BarDisplay(21, 0, io.StringIO(), "test", deadline=200.0)
    assert str(bar) == "compiling 0 s"
    now[0] = 112.0
    assert str(bar) == "compiling 12 s"
    bar.set_step(1)  # compiling is no part of the rate
    now[0] = 122.0
    bar.advance(1)
    assert str(bar) == "eta 1:18", "the deadline is before the last step, which is 190 s away"
    bar.set_step(20)
    assert str(bar) == "eta 0:01"
    bar.close()


def test_scores_as_texts():
    """Scores of further sets, signatures, no lists and no times; a loss that is the nll is shown once."""
    scores = {
        "split": "test", "lines": 1000, "bleu": {"value": 31.256, "signature": "tok:13a", "name": "BLEU"},
        "extra": {"loss": 1.0, "nll": 1.0, "f1": 0.5}, "classes": [1], "seconds": 3.0, "loss": 2.0, "nll": 1.5,
    }  # fmt: skip
    assert format_scores(scores) == {
        "lines": "1,000", "bleu": "31.26", "bleu signature": "tok:13a", "extra/nll": "1", "extra/f1": "0.5",
        "loss": "2", "nll": "1.5",
    }  # fmt: skip


def test_short_texts():
    assert [format_thousands(x) for x in (0.4, 999, 41234, 2.5e6, 3e9)] == ["0", "999", "41.2k", "2.5M", "3.0G"]
    assert [format_duration(x) for x in (-1, 0, 75, 5025)] == ["0:00", "0:00", "1:15", "1:23:45"]
    assert [format_number(x) for x in (0.00012345, 3.0, float("nan"), "x")] == ["0.0001234", "3", "nan", "x"]
    assert format_metrics({}) == []


@pytest.mark.parametrize(
    "last", [b'{"step": 2, "x": ' + b"[" * 5000 + b"\n", b'{"step": 2, "x": NaN}\n', b'{"step": 1e999}\n', b"[]\n"]
)
def test_lines_that_are_damaged_are_left_out(tmp_path, last):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "train/loss": 3.2}\n' + last + b'{"step": 3}\n{"step": 4')
    assert read_metrics(path) == [{"step": 1, "train/loss": 3.2}, {"step": 3}]


def test_a_log_of_one_endless_line_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 32)  # a sparse file of 4 GB
    for read in (read_metrics, lambda path: truncate_metrics(path, 3)):
        with pytest.raises(UserError, match="a line of more than 1,048,576 bytes"):
            read(path)

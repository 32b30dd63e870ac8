"""Errors on the command line end in one clear line and an exit code; odd lines of input are not errors."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures import cli_runs

EXPERIMENT = cli_runs.EXPERIMENT
command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures
loaded_once = cli_runs.loaded_once
ROOT = Path(__file__).resolve().parents[2]
TINY = f"{EXPERIMENT}:tiny"
LONG = "John did not see the film that I liked"

USAGE = {
    "nothing": ([], "expected a command"),
    "verb": (["trian"], "did you mean train?"),
    "option of a verb": (["evaluate", "D", "--splti", "x"], "did you mean --split?"),
    "argument": (["list", "more"], "unexpected argument 'more'"),
    "no workdir named": (["predict"], "WORKDIR"),
    "two checkpoints": (["predict", "D", "--step", "3", "--average-last", "2"], "not allowed with"),
    "value": (["predict", "D", "--num-beams", "0"], "at least 1, found '0'"),
    "no experiment": (["train"], "expected an experiment"),
    "option first": (["train", "--steps", "3", TINY], "expected an experiment after `jaxlm train`, found --steps"),
    "module": (["show", "experiments.mutli30k"], "did you mean experiments.multi30k?"),
    "file": (["show", EXPERIMENT.replace("tiny_", "tinny_")], "did you mean"),
    "variant": (["show", f"{EXPERIMENT}:tinny"], "did you mean tiny?"),
    "option of train": (["train", TINY, "--workdri", "x"], "did you mean --workdir?"),
    "override": (["train", TINY, "--model.widht", "3"], "did you mean --model.width?"),
    "tail of an override": (["train", TINY, "--widht=3"], "did you mean --model.width?"),
    "hidden field of Linen": (["train", TINY, "--model.parent", "x"], "no option --model.parent"),
    "type of an override": (["train", TINY, "--steps", "ten"], "--steps"),
    "choice of an override": (["train", TINY, "--model.norm", "both"], "'post', 'pre'"),
    "value that a part refuses": (
        ["train", TINY, "--task.search.beam.num-return-sequences", "9"],
        "1 <= num_return_sequences <= num_beams",
    ),
    "override without value": (["train", TINY, "--steps"], "--steps"),
    "word among the overrides": (["train", TINY, "word"], "word"),
    "no prompt": (["generate", "D"], "--prompt TEXT"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(command, case):
    argv, expected = USAGE[case]
    found = command(*argv)
    assert (found.code, found.out) == (2, b"")
    assert expected in found.err
    assert len(found.err.splitlines()) == 1, found.err


@pytest.mark.parametrize(
    "verb", ["list", "show", "prepare", "train", "evaluate", "predict", "generate", "score", "doctor"]
)
def test_help(command, verb):
    found = command(verb, "--help")
    assert found.code == 0 and found.out.decode().startswith(f"usage: jaxlm {verb}") and not found.err
    assert verb in command("--help").out.decode()


def test_help_with_an_experiment_lists_its_overrides(command):
    shown = command("train", TINY, "--help").out.decode()
    assert "--workdir" in shown and "--model.width" in shown and "--optimizer.schedule.peak" in shown
    assert "--model.parent" not in shown and "--model.name" not in shown
    assert "k, the size of the beam" in shown  # a field of a config inside a config
    assert shown.count("b1, b2, eps: decay rates") == 1  # fields that share an entry


def test_a_closed_stdout_is_not_an_error():
    done = subprocess.run(
        f"{sys.executable} -m jaxlm list >&-", shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr


def test_a_usage_error_is_quick_and_does_not_import_jax():
    began = time.perf_counter()
    code = "import sys; from jaxlm.cli.main import main; code = main(sys.argv[1:]); print('jax' in sys.modules, code)"
    for argv in (["trian"], ["evaluate", "D", "--splti"], ["train", "experiments.mutli30k"], ["evaluate", "nowhere"]):
        found = subprocess.run(
            [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert found.stdout.split() == ["False", "1" if argv[1:] == ["nowhere"] else "2"]
    assert time.perf_counter() - began < 8, "four commands of less than 2 s each"


def test_a_workdir_of_another_experiment_is_refused(command, workdir):
    found = command("train", TINY, "--workdir", workdir, "--model.width", "32", "--seed", "3")
    assert found.code == 1
    assert "model.width: 32 here, 16 in" in found.err and "seed: 3 here, 0 in" in found.err


def test_a_workdir_that_cannot_be_written(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = command("train", TINY, "--workdir", tmp_path / "file")
    assert found.code == 1 and "another --workdir" in found.err and found.err.count("\n") == 1


def test_missing_data_is_named_before_training(command, tmp_path):
    found = command("train", f"{EXPERIMENT}:missing", "--workdir", tmp_path / "run")
    assert found.code == 1 and "nowhere.en was not found" in found.err and "JAXLM_DATA" in found.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["evaluate", "predict", "score"])
def test_no_workdir(command, tmp_path, verb):
    missing, empty = command(verb, tmp_path / "nowhere"), command(verb, tmp_path)
    assert (missing.code, empty.code) == (1, 1)
    assert "does not exist" in missing.err and "no experiment.json" in empty.err


def test_no_checkpoint_yet(command, workdir, tmp_path):
    for name in ("experiment.json", "tokenizer"):
        copy = shutil.copytree if (workdir / name).is_dir() else shutil.copy
        copy(workdir / name, tmp_path / name)
    found = command("predict", tmp_path)
    assert found.code == 1 and "no checkpoint yet" in found.err


def test_a_damaged_record(command, workdir, tmp_path):
    (tmp_path / "experiment.json").write_text((workdir / "experiment.json").read_text()[:100])
    found = command("predict", tmp_path)
    assert found.code == 1 and "experiment.json, line 6, column 12: not JSON" in found.err


def test_missing_checkpoints_and_splits(command, workdir):
    step, average = command("evaluate", workdir, "--step", "3"), command("evaluate", workdir, "--average-last", "9")
    assert (step.code, average.code) == (1, 1)
    assert "the steps 2, 4, not step 3" in step.err and "average 1 to 2" in average.err
    split = command("evaluate", workdir, "--split", "tset")
    assert split.code == 2 and "it has" in split.err.replace("experiment has", "it has") and "again" in split.err


def test_n_best_needs_as_wide_a_beam(command, workdir):
    found = command("predict", workdir, "--num-beams", "1", "--n-best", "2")
    assert found.code == 2 and "--num-beams 2" in found.err


# Input, and the number of output lines.
ODD = {
    "nothing": (b"", 0),
    "only a byte order mark": (b"\xef\xbb\xbf", 0),
    "blank lines": (b"\n\n  \n", 3),
    "no end of line": (f"{LONG}\n{LONG}".encode(), 2),
    "a blank line and no end": (b"\n ", 2),
    "carriage returns": (f"{LONG}\r\n\r\n{LONG}\r\n".encode(), 3),
    "byte order mark": (b"\xef\xbb\xbf" + LONG.encode() + b"\n", 1),
    "NUL": (f"{LONG}\n\0\n{LONG}\0\n".encode(), 3),
    "emoji": ("😀 👩‍👩‍👧 in a line that is long\n".encode(), 1),
    "other ends of line": ("a line\u2028that\x0bis\x85one\x0cline\rstill\n".encode(), 1),
    "a long line": (b"word " * 2000 + b"\n" + LONG.encode() + b"\n", 2),
}


@pytest.mark.parametrize("case", ODD)
def test_predict_gives_a_line_for_a_line(loaded_once, command, workdir, case):
    data, count = ODD[case]
    found = command("predict", workdir, stdin=data)
    assert found.code == 0, found.err
    assert len(found.lines) == count
    assert ("cut" in found.err) == (
        case not in ("nothing", "only a byte order mark", "blank lines", "a blank line and no end")
    )


def test_predict_ignores_marks_and_carriage_returns(loaded_once, command, workdir):
    odd = b"\xef\xbb\xbf" + LONG.encode() + b"\r\n" + LONG.encode() + b"\n"
    records = [json.loads(line) for line in command("predict", workdir, "--jsonl", stdin=odd).lines]
    assert records[0] == records[1] and records[0]["source"] == LONG


def test_predict_of_a_line_that_is_not_utf8(loaded_once, command, workdir):
    data = f"{LONG}\n".encode() + b"caf\xe9 " + LONG.encode() + b"\n"
    stopped = command("predict", workdir, stdin=data)
    assert stopped.code == 1 and "line 2, byte 3" in stopped.err and "--on-bad-line replace" in stopped.err
    repaired = command("predict", workdir, "--on-bad-line", "replace", "--jsonl", stdin=data)
    assert json.loads(repaired.lines[1])["source"] == f"caf\ufffd {LONG}" and "1 lines were not UTF-8" in repaired.err


def test_a_prompt_of_a_file_has_a_limit(command, workdir, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("short\n" + "x" * 1_000_001 + "\n")
    found = command("generate", workdir, "--file", file, "--max-line-mb", 1)
    assert found.code == 1 and f"{file}, line 2: the line has more than 1,000,000 bytes, the limit" in found.err


def test_score_wants_one_tab(loaded_once, command, workdir):
    for data in (f"{LONG}\tx\n{LONG}\n", f"{LONG}\tx\na\tb\tc\n", f"{LONG}\tx\n\n"):
        found = command("score", workdir, stdin=data.encode())
        assert found.code == 1 and "line 2" in found.err and "expected one" in found.err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (OSError(errno.ENOSPC, "No space left on device", "D/metrics.jsonl"), 1, "the disk is full (D/metrics.jsonl)"),
        (PermissionError(errno.EACCES, "Permission denied", "D"), 1, "D: Permission denied"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1, "out of memory: lower"),
        (ZeroDivisionError("by zero\nand more"), 1, "ZeroDivisionError: by zero (run with --debug for the traceback)"),
    ],
)
def test_exceptions_become_one_line_and_an_exit_code(command, monkeypatch, error, code, expected):
    def fail(_):
        raise error

    monkeypatch.setattr("jaxlm.cli.tools.list.main", fail)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # the test's own stdout stays
    found = command("list")
    assert found.code == code and expected in found.err
    assert found.err.count("\n") == bool(expected)
    if expected:
        assert "Traceback" in command("list", "--debug").err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--evaluate-every", "0"], "--evaluate_every: expected 1 or more, found 0"),
        (["--steps", "0"], "--steps: expected 1 or more, found 0"),
        (["--max-minutes", "-1"], "--max-minutes: expected a number above 0, found '-1'"),
        (["--max-minutes", "inf"], "--max-minutes: expected a finite number, found 'inf'"),
        (["--step-timeout", "-1"], "--step-timeout: expected a number from 0 to 1000000, found '-1'"),
        (["--step-timeout", "1e300"], "--step-timeout: expected a number from 0 to 1000000, found '1e300'"),
        (["--best-metric", "valid/blue"], "expected one of the metrics valid/loss, .*valid/bleu"),
        (["--model.heads", "3"], "does not divide into 3 heads"),
    ],
)
def test_invalid_values_are_reported_before_training(command, tmp_path, words, message):
    found = command("train", f"{EXPERIMENT}:tiny", "--workdir", tmp_path / "run", *words)
    assert found.code in (1, 2) and re.search(message, found.err), found.err
    assert not (tmp_path / "run" / "checkpoints").exists() and "Traceback" not in found.err


def test_functions_without_the_annotation_of_an_experiment(command, tmp_path):
    """An imported experiment is not the file's own, and what is not annotated is named."""
    file = tmp_path / "mine.py"
    file.write_text("from experiments.quickstart import experiment as q\ndef un():\n    return q()\n")
    found = command("show", file)
    assert found.code in (1, 2) and "no function of its own that is annotated `-> Experiment`" in found.err
    found = command("show", f"{file}:un")
    assert found.code in (1, 2) and "un" in found.err and "Experiment" in found.err, found.err

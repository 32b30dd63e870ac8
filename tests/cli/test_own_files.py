"""`jaxlm evaluate --data`: new files pass through the reader of the test split; its own file has its scores."""

import dataclasses
import json
from pathlib import Path

import pytest
from fixtures import cli_runs

from jaxlm import (
    Classification,
    ColumnFile,
    Concat,
    Csv,
    Documents,
    HashSplit,
    LanguageModeling,
    MapLabels,
    MiniLang,
    ParallelFiles,
    Tagging,
    TextFile,
    Translation,
    Tsv,
    Windows,
)
from jaxlm.cli.own_files import with_files
from jaxlm.cli.parser import UsageError
from jaxlm.data.sources.transforms import Lowercase, Take

command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    files = {
        "a.en": "A cat.\r\nA dog.\r\n",
        "b.cs": "\ufeffKočka.\nPes.\n",
        "t.csv": "text;class\n好;1\n坏;0\n",
        "t.txt": "好\t1\n坏\t0\n",
        "new.csv": "id,class,text\n1,0,坏\n",
        "ner.txt": "أحمد N B-PER\n. X O\n",
        "x.txt": "Žluťoučký kůň.\n😀\n",
    }
    for name, text in files.items():
        Path(name).write_bytes(text.encode())
    return tmp_path


def read(task, files, columns=None):
    return with_files(task, "data", files, columns, None).split("data")


def task_of(kind, test, **fields):
    return kind(test, test, test, **fields)


LABELS = {"labels": ("0", "1")}
TAGS = {"labels": ("O", "B-PER")}


@pytest.mark.parametrize(
    ("task", "files"),
    [
        (task_of(Translation, ParallelFiles("a.en", "b.cs", keep_blank=True)), ["a.en", "b.cs"]),
        (task_of(Translation, Lowercase(ParallelFiles("a.en", "b.cs"))), ["a.en", "b.cs"]),
        (task_of(Classification, Csv("t.csv", "text", "class"), **LABELS), ["t.csv"]),
        (task_of(Classification, MapLabels(Tsv("t.txt", 0, 1), ("0", "1"), ("1", "0")), **LABELS), ["t.txt"]),
        (task_of(Tagging, ColumnFile("ner.txt", 0, 2, separator=" "), **TAGS), ["ner.txt"]),
        (task_of(LanguageModeling, TextFile("x.txt", "whole")), ["x.txt"]),
        (task_of(LanguageModeling, Documents(("x.txt", "a.en"), "block")), ["x.txt", "a.en"]),
    ],
    ids=["parallel", "lower_case", "csv", "labels", "tags", "text", "documents"],
)
def test_the_file_of_the_test_split_is_read_as_the_test_split(task, files):
    assert list(read(task, files)) == list(task.test)


def test_a_selection_is_not_made_of_new_files():
    pairs = ParallelFiles("a.en", "b.cs")
    for test in (Take(pairs, 1), HashSplit(pairs, "test", test=0.9), Concat((pairs, pairs))):
        assert list(read(task_of(Translation, test), ["a.en", "b.cs"])) == list(pairs)
    part = task_of(LanguageModeling, TextFile("x.txt", "whole", 0.5, 1.0))
    assert list(read(part, ["x.txt"])) == ["Žluťoučký kůň.\n😀\n"]


def test_files_of_another_kind_are_read_by_their_endings():
    task = task_of(Classification, Csv("t.csv", "text", "class"), **LABELS)
    assert list(read(task, ["new.csv"], ["text", "class"])) == list(read(task, ["new.csv"])) == [("坏", "0")]
    built_in = task_of(Translation, MiniLang("test", 5))
    assert list(read(built_in, ["a.en", "b.cs"])) == [("A cat.", "Kočka."), ("A dog.", "Pes.")]
    rows = LanguageModeling(*[TextFile("x.txt")] * 3, windows=None)
    assert list(read(dataclasses.replace(rows, test=MiniLang("test", 5)), ["x.txt"])) == ["Žluťoučký kůň.", "😀"]
    stream = dataclasses.replace(rows, windows=Windows(8, 2), test=MiniLang("test", 5))
    assert list(read(stream, ["x.txt"])) == ["Žluťoučký kůň.\n😀\n"]
    with pytest.raises(UsageError, match="translate with a.en: expected two files"):
        read(built_in, ["a.en"])


def test_own_files_with_the_pairs_of_the_test_split_have_its_scores(command, workdir, tmp_path):
    """Also with line ends and marks of other systems."""
    expected = json.loads(command("evaluate", workdir).lines[-1])
    from jaxlm.workdir import Workdir

    sources, targets = zip(*Workdir(workdir).read_experiment().task.test, strict=True)
    Path("new.en").write_bytes("\r\n".join(sources).encode())
    Path("new.es").write_bytes(("\ufeff" + "\n".join(targets) + "\n").encode())
    found = command("evaluate", workdir, "--data", "new.en", "new.es")
    assert found.code == 0, found.err
    assert "6 kept" in found.err
    scores = json.loads(found.lines[-1])
    same = ("lines", "bleu", "chrf", "chrf++", "ter", "checkpoints", "search")
    assert {name: scores[name] for name in same} == {name: expected[name] for name in same}
    assert scores["split"] == "data" and scores["data"] == ["new.en", "new.es"]
    Path("short.es").write_text("uno\n")
    found = command("evaluate", workdir, "--data", "new.en", "short.es")
    assert found.code == 1 and "has 6 lines and" in found.err
    assert "add --data FILE" in command("evaluate", workdir, "--on-bad-line", "skip").err
    assert "not allowed with" in command("evaluate", workdir, "--split", "valid", "--data", "x.txt").err

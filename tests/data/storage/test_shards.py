"""Shards: the same by one process and by three, after a kill as before it, and no damage goes unnoticed."""

import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.cli_runs import command, environment  # noqa: F401 (a fixture)

from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.text import Shards
from jaxlm.data.storage.shards import build_shards, split_into_shards
from jaxlm.data.tokenizers.loading import SavedTokenizer
from jaxlm.data.tokenizers.simple import Bytes, Characters, Words
from jaxlm.errors import UserError

RNG = np.random.default_rng(0)
WORDS = ["the", "cat", "sat", "día", "猫", "on", "a", "mat", "\u2028", "."]
TEXTS = [" ".join(["the", *RNG.choice(WORDS, size)]) for size in RNG.integers(1, 60, 400)]
TOKENIZER = Words(len(WORDS) + 2).fit(TEXTS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """The documents, one a line, in two files, one of them packed; and 5 shards of them made by one process."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "one.txt").write_text("".join(text + "\n" for text in TEXTS[:250]))
    (folder / "two.txt.gz").write_bytes(gzip.compress("".join(text + "\n\n" for text in TEXTS[250:]).encode()))
    build_shards(TEXTS, folder / "shards", TOKENIZER, "a test", 1, 9_000)
    return folder


@pytest.fixture
def shards(corpus, tmp_path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(corpus / "shards", tmp_path / "shards")


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder of shards."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_read_is_what_was_written(corpus):
    column = Shards(str(corpus / "shards")).encode(TOKENIZER, bad := ReadStats())
    expected = [row.tolist() for row in TOKENIZER.encode(TEXTS)]
    assert [column[i].tolist() for i in range(len(column))] == expected
    assert bad.kept == len(TEXTS) and column.flat.dtype == "<u2"
    assert list(Shards(str(corpus / "shards"))) == TOKENIZER.decode(TOKENIZER.encode(TEXTS))
    sums = json.loads((corpus / "shards" / "index.json").read_text())["sums"]
    whole = np.concatenate(TOKENIZER.encode(TEXTS))
    expected = {"documents": 400, "tokens": len(whole), "unknown": int((whole == 1).sum())}
    assert sums == expected | {"bytes": sum(len(text.encode()) for text in TEXTS)} and sums["unknown"] > 0
    again = pickle.loads(pickle.dumps(column))
    assert len(pickle.dumps(column)) < column.offsets.nbytes + 4000, "ids travel as the names of their files"
    np.testing.assert_array_equal(np.asarray(again.flat), whole)


def test_the_tokenizer_of_shards(corpus, monkeypatch):
    monkeypatch.setenv("JAXLM_DATA", str(corpus))
    assert SavedTokenizer("shards", TOKENIZER.vocab_size).fit([]).fingerprint == TOKENIZER.fingerprint
    assert SavedTokenizer(str(corpus / "shards" / "tokenizer"), 0).fit([]).fingerprint == TOKENIZER.fingerprint
    Shards("shards").check()


def test_documents_too_long_are_cut(corpus):
    whole = Shards(str(corpus / "shards")).encode(TOKENIZER, ReadStats())
    cut = Shards(str(corpus / "shards"), max_document_tokens=20).encode(TOKENIZER, bad := ReadStats())
    assert cut.lengths.max() == 20 and bad.split == (whole.lengths > 20).sum()
    assert f"{bad.split} too long and cut into pieces" in str(bad)
    np.testing.assert_array_equal(np.asarray(cut.flat), np.asarray(whole.flat))
    assert set(whole.offsets) <= set(cut.offsets)
    assert [len(row) for row in (Ragged.from_rows([[1] * n]).split_long(4) for n in (0, 3, 4, 5, 8))] == [1, 1, 1, 2, 2]


def test_several_processes_write_the_same_bytes(corpus, tmp_path):
    counts = build_shards(iter(TEXTS), tmp_path / "again", TOKENIZER, "a test", 3, 9_000)
    assert counts["shards"] > 4 and counts["kept"] == 0
    assert content(tmp_path / "again") == content(corpus / "shards")


def test_an_interrupted_run_is_resumed(corpus, tmp_path):
    """Interrupted by its documents: finished shards are kept by their time of writing, and all bytes are the same."""

    def broken():
        yield from TEXTS[:300]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(broken(), tmp_path / "run", TOKENIZER, "a test", 1, 9_000)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.ids")}
    assert len(there) > 1
    with pytest.raises(UserError, match="index.json was not found"):
        Shards(str(tmp_path / "run")).encode(TOKENIZER, ReadStats())
    (tmp_path / "run" / ".00007.ids.part").write_bytes(b"half")
    counts = build_shards(TEXTS, tmp_path / "run", TOKENIZER, "a test", 1, 9_000)
    assert counts["kept"] == len(there)
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in there} == there
    assert content(tmp_path / "run") == content(corpus / "shards")


KILLED = """
import sys
from pathlib import Path
from jaxlm.data.storage.shards import build_shards
from jaxlm.data.tokenizers.loading import load_saved_tokenizer

if __name__ == "__main__":
    shards, run, texts = map(Path, sys.argv[1:])
    tell = lambda record, kept: print(record.name, flush=True)
    build_shards(texts.read_text().split("\\n"), run, load_saved_tokenizer(shards), "a test", 2, 40_000, tell)
"""


def test_a_killed_run_is_resumed(corpus, tmp_path):
    """SIGKILL while processes write: no process stays behind, and the next run's bytes are those of an unbroken one."""
    texts = TEXTS * 40
    build_shards(texts, tmp_path / "whole", TOKENIZER, "a test", 1, 40_000)
    (tmp_path / "script.py").write_text(KILLED)
    (tmp_path / "texts").write_text("\n".join(texts))
    argv = [sys.executable, tmp_path / "script.py", corpus / "shards", tmp_path / "run", tmp_path / "texts"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    ended = time.monotonic() + 20
    while _alive(process.pid):
        assert time.monotonic() < ended, "its workers must end with it"
        time.sleep(0.05)
    counts = build_shards(texts, tmp_path / "run", TOKENIZER, "a test", 1, 40_000)
    assert 0 < counts["kept"] <= counts["shards"]
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def _alive(group: int) -> bool:
    """True if a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_shards_of_another_text_are_replaced(corpus, shards):
    counts = build_shards(TEXTS[:100], shards, TOKENIZER, "a test", 1, 9_000)
    assert counts["documents"] == 100 and counts["kept"] == counts["shards"] - 1  # the last one has another end
    build_shards(TEXTS, shards, TOKENIZER, "a test", 1, 9_000)
    assert content(shards) == content(corpus / "shards")
    with pytest.raises(UserError, match="holds shards of a test, not of another: choose another --out"):
        build_shards(TEXTS[:100], shards, TOKENIZER, "another", 1, 9_000)
    assert content(shards) == content(corpus / "shards")


def damaged(shards: Path, how: str) -> None:
    file = shards / "00001.ids"
    index = json.loads((shards / "index.json").read_text())
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif how == "gone":
        file.unlink()
    elif how == "flipped":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    elif how == "ends":
        np.save(shards / "00001.ends.npy", np.load(shards / "00001.ends.npy")[::-1])
    elif how == "zip":
        np.savez(shards / "00001.ends.npz", np.load(shards / "00001.ends.npy"))
        (shards / "00001.ends.npz").replace(shards / "00001.ends.npy")
    elif how == "shape":
        ends = shards / "00001.ends.npy"
        ends.write_bytes(ends.read_bytes().replace(b"'shape': (", b"'shape': (9"))
    elif how == "sums":
        index["sums"]["tokens"] += 1
    elif how == "counts":
        index["shards"][1]["ids"] += 1
        index["sums"]["tokens"] += 1
    if how in ("sums", "counts"):
        (shards / "index.json").write_text(json.dumps(index))
    if how in ("type", "name"):
        index["shards"][1] |= {"dtype": "|O"} if how == "type" else {"name": "../00001"}
        (shards / "index.json").write_text(json.dumps(index))
    if how == "levels":
        (shards / "index.json").write_text('{"version": ' + "[" * 100_000)
    if how == "index":
        (shards / "index.json").write_text(json.dumps(index)[:100])


@pytest.mark.parametrize(
    "how, message",
    [
        ("cut", r"00001.ids has [\d,]+ bytes, expected [\d,]+ .* cut off"),
        ("gone", "shard 00001 of .* cannot be read"),
        ("flipped", "shard 00001 of .* is damaged"),
        ("ends", "does not hold the ends of"),
        ("zip", "cannot be read|does not hold the ends of"),
        ("shape", "cannot be read|does not hold the ends of"),
        ("type", "index.json is damaged .*ids of the type"),
        ("name", "index.json is damaged .*00001"),
        ("levels", "index.json is damaged .*levels of JSON"),
        ("sums", "index.json is damaged .*its sums are not those of its shards"),
        ("counts", "cut off or changed"),
        ("index", "index.json is damaged"),
    ],
)
def test_damage_is_named_and_repaired(corpus, shards, how, message):
    """Each message has the cure, and the cure works."""
    damaged(shards, how)
    with pytest.raises(UserError, match=f"{message}.*jaxlm prepare"):
        Shards(str(shards)).encode(TOKENIZER, ReadStats())
        Shards(str(shards)).check()
    counts = build_shards(TEXTS, shards, TOKENIZER, "a test", 1, 9_000)
    assert counts["kept"] == counts["shards"] - (how in ("cut", "gone", "flipped", "ends", "zip", "shape"))
    assert content(shards) == content(corpus / "shards")


def test_other_tokenizers_are_refused(shards):
    other = Characters().fit(TEXTS)
    with pytest.raises(UserError, match=r"are ids of the tokenizer .*tokenizer=SavedTokenizer"):
        Shards(str(shards)).encode(other, ReadStats())
    with pytest.raises(UserError, match="holds shards of another tokenizer"):
        build_shards(TEXTS, shards, other, "a test")
    with pytest.raises(UserError, match="has no document"):
        build_shards([], shards / "more", other, "nothing")


def test_wide_ids(tmp_path):
    """More than 65,536 ids take four bytes each."""
    texts = [" ".join(f"w{number}" for number in range(first, first + 1000)) for first in range(0, 70_000, 1000)]
    tokenizer = Words(100_000).fit(texts)
    build_shards(texts, tmp_path / "wide", tokenizer)
    column = Shards(str(tmp_path / "wide")).encode(tokenizer, ReadStats())
    assert column.flat.dtype == "<u4" and column.flat.max() == tokenizer.vocab_size - 1 > 2**16
    np.testing.assert_array_equal(column[69], tokenizer.encode(texts[-1:])[0])


def test_portions_depend_on_the_text_alone():
    small, large = list(split_into_shards(TEXTS, 1)), list(split_into_shards(TEXTS, 1 << 30))
    assert [p.texts for p in small] == [[text] for text in TEXTS] and large[0].texts == TEXTS
    digests = {p.digest for texts in (["ab", "c"], ["a", "bc"]) for p in split_into_shards(texts, 9)}
    assert len(digests) == 2


def test_the_verb(corpus, tmp_path, command):  # noqa: F811
    """From files to counts; again: all is kept; with another size or a tokenizer that is not there: one line."""
    files = [corpus / "one.txt", corpus / "two.txt.gz"]
    options = ["--out", tmp_path / "out", "--vocab-size", 280, "--user-defined-symbol", "[MASK]", "--num-workers", 1]
    first = command("prepare", *files, *options)
    assert first.code == 0, first.err
    counts = json.loads(first.lines[-1])
    assert counts["documents"] == 400 and counts["unknown"] == 0 and counts["kept"] == 0
    assert "150 blank left out" in first.err and "bytes a token" in first.err
    again = command("prepare", *files, *options)
    assert json.loads(again.lines[-1])["kept"] == counts["shards"], again.err
    assert list(Shards(str(tmp_path / "out")))[:250] == TEXTS[:250]
    other = command(
        "prepare", files[0], "--out", tmp_path / "valid", "--tokenizer", tmp_path / "out", "--num-workers", 1
    )
    assert json.loads(other.lines[-1])["documents"] == 250, other.err
    for argv, code, message in (
        ([*files, "--out", tmp_path / "out", "--vocab-size", 281], 1, "has a tokenizer of 280 ids, expected 281"),
        ([*files, "--out", tmp_path / "x", "--tokenizer", tmp_path / "none"], 1, "was not found"),
        ([*files, "--out", tmp_path / "x", "--tokenizer", "a", "--vocab-size", 300], 2, "leave out --tokenizer"),
        ([tmp_path / "nowhere.txt", "--out", tmp_path / "x"], 1, "nowhere.txt was not found"),
        ([*files, "--out", tmp_path / "x", "--unit", "heading"], 2, "heading"),
        (files, 2, "--out"),
    ):
        refused = command("prepare", *argv)
        assert refused.code == code and message in refused.err and "Traceback" not in refused.err, refused.err
    assert Bytes().fit().vocab_size == 260

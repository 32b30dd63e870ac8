"""The three passes: the same bytes whatever the processes and interruptions, and what is done again when."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.small_corpus import PART, STEPS, build, content, corpus, sentence

from jaxlm.cli.main import main
from jaxlm.corpora.contamination import Decontaminate
from jaxlm.corpora.corpus import Corpus, CorpusSource, Licenses, Terms
from jaxlm.corpora.duplicates import Duplicates
from jaxlm.corpora.filters import GopherQuality
from jaxlm.corpora.opt_out import OptOut
from jaxlm.corpora.passes import DOCS, hex_id
from jaxlm.data.files import ReadStats
from jaxlm.data.sources.parallel import ParallelFiles
from jaxlm.data.sources.text import Shards, TextFile
from jaxlm.errors import UserError


def documents(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(file) for file in sorted(folder.glob("*.docs.npy"))])


def lines(file: Path) -> list:
    return [json.loads(line) for line in gzip.open(file, "rt")]


def test_what_is_kept(folder):
    totals = build(folder, "out", corpus())
    texts = list(Shards(str(folder / "out")))
    assert totals["read"] == 60 and totals["documents"] == len(texts) == 57 and totals["parts"] > 2
    assert "Write to [EMAIL] now." in "".join(texts) and not any(b"ana@" in c for c in content(folder / "out").values())
    decisions = [line for file in sorted((folder / "out/parts").glob("*.decisions.gz")) for line in lines(file)]
    assert [line[4:6] for line in decisions if line[4]] == [["GopherQuality", "words"]]
    assert sorted(line[1] for line in lines(folder / "out/duplicates.gz")) == ["exact", "near"]
    assert any(text.endswith("More.") for text in texts)  # the longer, of the source with priority
    table = documents(folder / "out")
    assert table.dtype == DOCS and len(table) == 57 and (table["tokens"] == [len(t.encode()) for t in texts]).all()
    assert np.bincount(table["source"]).tolist() == [27, 30]
    manifest = json.loads((folder / "out/manifest.json").read_text())
    assert [(s["name"], s["documents_in"], s["documents_out"]) for s in manifest["sources"]] == [
        ("web", 30, 27),
        ("books", 30, 30),
    ]
    croissant = json.loads((folder / "out/croissant.json").read_text())
    assert [file["sha256"] for file in croissant["distribution"]] == [
        digest for source in manifest["sources"] for digest in source["sha256"].values()
    ]
    assert croissant["license"] == ["NOASSERTION"]
    assert croissant["rai:dataPreprocessingProtocol"][0].startswith("GopherQuality(min_words=5")


def test_bytes_depend_on_neither_processes_nor_interruptions(folder):
    """One and two processes; a build that is killed at random times, and resumed until it ends."""
    build(folder, "one", corpus())
    (folder / "recipe.py").write_text(
        "from jaxlm.corpora.corpus import *; from jaxlm.corpora.duplicates import *\n"
        "from jaxlm.corpora.filters import *; from jaxlm.corpora.personal import *\nfrom pathlib import Path\n"
        "from jaxlm.corpora.passes import Builder; from jaxlm.corpora.write import build_corpus\n"
        "from jaxlm.data.tokenizers.simple import Bytes; from jaxlm.data.files import ReadStats\n"
        "def corpus() -> Corpus:\n"
        "    web = CorpusSource('web', ('web.jsonl',), 'json', key='url', priority=1)\n"
        "    return Corpus((web, CorpusSource('books', ('books.txt',))), (GopherQuality(min_words=5), "
        "Personal(('email', 'ip')), Duplicates()))\n"
        "if __name__ == '__main__':\n"
        f"    builder = Builder(corpus(), Path('two'), 2, {PART})\n"
        "    build_corpus(builder, lambda texts: Bytes().fit(iter(texts)), ReadStats())\n"
    )
    command = [sys.executable, "recipe.py"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    draw, killed = random.Random(1), 0
    while killed < 1:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        end = time.monotonic() + draw.uniform(0.3, 1.5)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    subprocess.run(command, env=environment, check=True)
    assert content(folder / "one") == content(folder / "two")


def test_what_changed_is_done_again(folder):
    """Another later step keeps the parts; another filter, a damaged file or another document makes those again."""
    written = []
    note = {"on_part": lambda record, kept: written.append(kept)}
    build(folder, "out", corpus(), **note)
    parts = len(written)
    assert not any(written)
    for config, expected in (
        (corpus(), [True] * parts),
        (corpus(steps=(*STEPS[:2], Duplicates(verify=False))), [True] * parts),
        (corpus(steps=(GopherQuality(min_words=6), *STEPS[1:])), [False] * parts),
    ):
        written.clear()
        build(folder, "out", config, **note)
        assert written == expected
    file = folder / "out/parts/00001.texts.gz"
    file.write_bytes(file.read_bytes()[:-1])
    written.clear()
    build(folder, "out", config, **note)
    assert written == [True, False, *[True] * (parts - 2)]


def test_licenses(folder):
    pytest.importorskip("license_expression")
    named = replace(corpus().sources[1], license=Terms("CC-BY-SA-4.0", commercial="yes"))
    only = Licenses(("CC-BY-SA-4.0",), outside="drop", unknown="drop")
    build(folder, "out", corpus(sources=(corpus().sources[0], named), licenses=only))
    assert (documents(folder / "out")["source"] == 1).all()
    with pytest.raises(UserError, match="source books has the license CC-BY-SA-4.0, which .* refuses"):
        build(folder, "no", corpus(sources=(named,), licenses=Licenses(("CC0-1.0",))))
    with pytest.raises(UserError, match="source books: license 'free to use' is not an SPDX expression"):
        build(folder, "no", corpus(sources=(replace(named, license=Terms("free to use")),)))
    assert Licenses(("MIT",)).decision("GPL-3.0-only OR MIT") == "keep"
    assert Licenses(("MIT",)).decision("GPL-3.0-only AND MIT") == "refuse"


def test_opt_out(folder):
    web = [json.loads(line) for line in (folder / "web.jsonl").read_text().splitlines()]
    (folder / "out.txt").write_text(f"# a list\nsite1.org\nhttps://a.site2.\n\ntext:{web[12]['text']} And more.\n")
    build(folder, "out", corpus(opt_out=(OptOut("out.txt"),)))
    decisions = [line for file in sorted((folder / "out/parts").glob("*.decisions.gz")) for line in lines(file)]
    dropped = [(line[5]) for line in decisions if line[4] == "OptOut"]
    assert dropped == ["domain", *["address"] * 1, "near duplicate"]
    (folder / "out.txt").write_text("domain\nsite1.org\n")
    with pytest.raises(UserError, match=r"out.txt, line 1: 'domain' is not an entry of an opt-out list"):
        build(folder, "out", corpus(opt_out=(OptOut("out.txt"),)))


def test_decontamination(folder):
    """13-grams of an item are cut out with 200 characters; short items are looked for whole or counted."""
    draw = random.Random(5)
    item, short = sentence(draw, 20), "eight words that are nowhere else in it"
    text = f"{sentence(draw, 60)} {item} {sentence(draw, 60)}"
    (folder / "one.txt").write_text(f"{text}\n{sentence(draw, 60)} {short} {sentence(draw, 70)}\n{sentence(draw)}\n")
    (folder / "eval.txt").write_text(f"{item.upper()}\n{short}\ntoo short\n")
    sets = {"eval": TextFile("eval.txt")}
    step = Decontaminate(sets, min_words=20)
    totals = build(folder, "out", Corpus((CorpusSource("one", ("one.txt",)),), (Duplicates(near=False), step)))
    texts = list(Shards(str(folder / "out")))
    assert totals["documents"] == 3 and item not in "".join(texts) and short not in "".join(texts)
    assert texts[0] == f"{text[: text.index(item) - 200].strip()}\n{text[text.index(item) + len(item) + 200 :].strip()}"
    report = json.loads((folder / "out/contamination.json").read_text())
    assert report == {"eval": {"items": 3, "too short": 1, "in the corpus": 2}}
    (folder / "one.txt").write_text("".join(f"{sentence(draw, 60)} {item}\n" for _ in range(11)))
    build(folder, "common", Corpus((CorpusSource("one", ("one.txt",)),), (step,)))
    assert item in "".join(Shards(str(folder / "common")))  # in more than ten documents: no evidence
    pairs = Decontaminate({"pairs": ParallelFiles("eval.txt", "eval.txt")}, common=20, min_words=5)
    build(folder, "pairs", Corpus((CorpusSource("one", ("one.txt",)),), (pairs,)))
    assert item not in "".join(Shards(str(folder / "pairs")))


BAD = {
    "not JSON": ("{'text': 1}", r"bad.jsonl, line 2, line 1, column 2: not JSON"),
    "missing field": ('{"txt": "x"}', r"bad.jsonl, line 2: no text under 'text' \(it has 'txt'\)"),
    "half surrogate": (r'{"text": "\ud800"}', r"bad.jsonl, line 2: half of a surrogate pair"),
    "not a number": ('{"text": "x", "score": NaN}', r"bad.jsonl, line 2: NaN is not a number"),
    "blank": ("", r"bad.jsonl, line 2: a blank line"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named(folder, name):
    line, message = BAD[name]
    (folder / "bad.jsonl").write_text(f'{{"text": "good"}}\n{line}\n{{"text": "good too"}}\n')
    config = Corpus((CorpusSource("bad", ("bad.jsonl",), "json"),))
    with pytest.raises(UserError, match=message):
        build(folder, "out", config)
    stats = ReadStats()
    skipping = replace(config.sources[0], on_bad_line="skip")
    assert len(list(skipping.records(stats))) == 2 and stats.skipped == 1


def test_bad_sources_are_named(folder):
    web = corpus().sources[0]
    with pytest.raises(UserError, match="the name of a source web is there twice"):
        build(folder, "out", Corpus((web, web)))
    with pytest.raises(UserError, match="the file .*web.jsonl is there twice"):
        build(folder, "out", Corpus((web, replace(web, name="other"))))
    with pytest.raises(UserError, match="source same: line 1 and line 2 have one key, so the id"):
        (folder / "same.jsonl").write_text('{"text": "a", "id": "7"}\n{"text": "b", "id": "7"}\n')
        build(folder, "same", Corpus((CorpusSource("same", ("same.jsonl",), "json", key="id"),)))
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="the source empty .* has no document"):
        build(folder, "out", Corpus((CorpusSource("empty", ("empty.txt",)),)))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="cut.jsonl.gz: damaged gzip"):
        build(folder, "out", Corpus((CorpusSource("cut", ("cut.jsonl.gz",), "json"),)))
    with pytest.raises(UserError, match="no document is left after the steps"):
        build(folder, "none", corpus(steps=(GopherQuality(min_words=1000),)))
    with pytest.raises(UserError, match="expected filters and Personal, then one Duplicates"):
        build(folder, "out", corpus(steps=STEPS[::-1]))


def test_long_documents_and_what_is_around_a_book(folder):
    (folder / "long.txt").write_text("head\nSTART here\n" + "abcdefghij" * 3 + "\nEND of it\ntail\n")
    stats, source = ReadStats(), CorpusSource("long", ("long.txt",), after="START", before="END", longest=20)
    pieces = list(source.records(stats))
    assert [piece.text for piece in pieces] == ["abcdefghij" * 2, "abcdefghij"] and pieces[0].id != pieces[1].id
    assert "1 pieces of documents that were too long" in str(stats)


def test_text_is_normalized(folder):
    (folder / "raw.jsonl").write_text(json.dumps({"text": "e\u0301\r\nb\x00\u2028c\ufeff\td"}) + "\n")
    (record,) = CorpusSource("raw", ("raw.jsonl",), "json").records(ReadStats())
    assert record.text == "\u00e9\nb\nc\td"


def test_the_command(folder, capsys, monkeypatch):
    """`jaxlm prepare MODULE:NAME`: a sample, then the shards with a tokenizer that has the masks as symbols."""
    (folder / "recipes.py").write_text(
        "from jaxlm.corpora.corpus import *\nfrom jaxlm.corpora.filters import *\n"
        "from jaxlm.corpora.personal import Personal\n"
        "def web() -> Corpus:\n    return Corpus((CorpusSource('web', ('web.jsonl',), 'json', key='url'),), "
        "(GopherQuality(min_words=5), Personal(('email',))))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    assert main(["prepare", "recipes:web", "--out", "out", "--sample", "10"]) == 0
    assert "10.00%  GopherQuality: words\n         'too short'" in capsys.readouterr().out
    assert not (folder / "out").exists()
    assert main(["prepare", "recipes:web", "--out", "out", "--vocab-size", "320", "--num-workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 29
    assert main(["prepare", "recipes:books", "--out", "out"]) == 2
    assert "recipes has no variant 'books'" in capsys.readouterr().err
    assert hex_id(documents(folder / "out")["id"][0]) and "[EMAIL]" in "".join(Shards("out"))

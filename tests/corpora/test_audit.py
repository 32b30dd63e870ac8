"""The report with its intervals, documents that are forgotten, and the steps at which a run read one."""

import gzip
import json
import random

import numpy as np
import pytest

from jaxlm import Experiment, FeedForwardLM, LanguageModeling, SavedTokenizer
from jaxlm.cli.main import main
from jaxlm.corpora.audit import bootstrap_interval, wilson_interval
from jaxlm.corpora.corpus import Corpus, CorpusSource, Terms
from jaxlm.corpora.duplicates import Duplicates
from jaxlm.corpora.filters import GopherQuality
from jaxlm.corpora.passes import Builder, hex_id
from jaxlm.corpora.personal import Personal
from jaxlm.corpora.write import build_corpus
from jaxlm.data.batching.bucketing import Buckets, Packing
from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.text import Shards
from jaxlm.data.storage.shards import read_index
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.data.tokenizers.simple import Bytes
from jaxlm.workdir import Workdir


def text_of(number: int, draw) -> str:
    words = "the be to of and that house tree river stone cloud garden light window paper".split()
    tail = "tú tenés un mail: ana@mail.org" if number % 3 == 0 else "so it ends"
    return " ".join(draw.choice(words) + draw.choice(["", "s", "ing"]) for _ in range(20)) + f" of the {tail}"


@pytest.fixture
def built(tmp_path, monkeypatch):
    """120 documents in shards of about 20; a third is Spanish by its markers, a half of those is too short."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    lines = [
        {"url": f"https://www.site{i}.org/{i}", "text": text_of(i, draw), "date": "2024-01-01"} for i in range(120)
    ]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = CorpusSource("web", ("web.jsonl",), "json", key="url", license=Terms())
    steps = (GopherQuality(min_words=20), Personal(("email",)), Duplicates())
    corpus = Corpus((source,), steps, markers={"voseo": ("tenés", "sos"), "rare": ("nowhere",)})

    def build():
        return build_corpus(Builder(corpus, tmp_path / "out", 1, 3000), lambda t: Bytes().fit(iter(t)), ReadStats())

    build()
    return tmp_path / "out", build, lines


def test_intervals():
    low, high = wilson_interval(5, 50)
    assert (round(low, 4), round(high, 4)) == (0.0435, 0.2136)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] > 0.999 and wilson_interval(0, 0) == (0, 1)
    draw = np.random.default_rng(0)
    size, value = draw.integers(50, 150, 400).astype(float), draw.poisson(3, 400).astype(float)
    low, high = bootstrap_interval(value, size)
    assert low < value.sum() / size.sum() < high
    spread = np.sqrt(3 / 400) / 100 * 2 * 1.96
    assert 0.6 * spread < high - low < 2 * spread and (low, high) == bootstrap_interval(value, size)


def test_the_report(built, capsys):
    folder, _, _ = built
    assert main(["audit", str(folder)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["documents"] == 120 and report["by source"]["web"]["share"] == 1 and report["by year"]["2024"]
    assert report["by script"]["latin"]["share"] == 1 and report["read"]["source web"]["share"] == 1
    assert report["masked per million tokens"]["email"]["count"] == 40
    low, high = report["masked per million tokens"]["email"]["interval"]
    assert low < report["masked per million tokens"]["email"]["rate"] < high
    assert "names of persons and postal addresses" in report["not measured"]
    page = (folder / "audit.html").read_text()
    assert "by license" in page and "NOASSERTION" in page and "ana@" not in page
    assert main(["audit", str(folder.parent)]) == 1
    assert "has no manifest.json: expected the folder" in capsys.readouterr().err


def test_drop_rates_by_markers(built):
    from jaxlm.corpora.audit import _drops

    decisions = [[str(i), "web", "es", ["voseo"] * (i < 60), "C4" * (i % 4 == 0), "bad words", 1] for i in range(100)]
    drops = _drops(decisions)["dropped"]
    assert drops["C4: bad words, marker voseo"]["count"] == 15 and drops["C4: bad words, marker voseo"]["of"] == 60
    assert drops["any: rule, all"]["share"] == 0.25
    assert not any("rare" in key for key in drops)


def snapshot(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.ids")}


def test_forget(built, capsys):
    """Ten documents of three shards: those shards alone change, nothing is left, none comes back."""
    folder, build, lines = built
    tables = {file.name[:5]: np.load(file) for file in sorted(folder.glob("*.docs.npy"))}
    victims = [
        hex_id(tables[name]["id"][row])
        for name, rows in (("00000", 4), ("00001", 3), ("00003", 3))
        for row in range(rows)
    ]
    urls = [f"https://www.site{i}.org" for i in range(2)]
    (folder.parent / "list.txt").write_text("\n".join(victims[2:]) + f"\n{urls[0]}\nwww.site1.org\n")
    texts, before = list(Shards(str(folder))), snapshot(folder)
    assert main(["audit", str(folder), "--forget", "list.txt", "--date", "2026-01-01"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {"documents": 10, "shards": ["00000", "00001", "00003"], "generation": 1}
    after = snapshot(folder)
    assert sorted(name for name in before if before[name] != after[name]) == ["00000.ids", "00001.ids", "00003.ids"]
    left = list(Shards(str(folder)))
    Shards(str(folder)).check()
    gone = [text for text in texts if text not in left]
    assert len(gone) == 10 and [text for text in texts if text in left] == left
    content = b"".join(
        f.read_bytes() if f.suffix != ".gz" else gzip.open(f).read() for f in folder.rglob("*") if f.is_file()
    )
    assert not any(text[:60].encode() in content for text in gone)
    assert len((folder / "forgotten.jsonl").read_text().splitlines()) == 10
    assert main(["audit", str(folder), "--forget", "list.txt"]) == 0
    assert json.loads(capsys.readouterr().out) == {"documents": 0, "shards": [], "generation": 1}
    records, _ = read_index(folder)
    assert sum(record.rows for record in records) == 110
    build()
    assert list(Shards(str(folder))) == left
    (folder / "parts/00000.json").unlink()  # made again of the files, which still have them
    build()
    assert list(Shards(str(folder))) == left
    (folder.parent / "list.txt").write_text("nowhere.org\n")
    assert main(["audit", str(folder), "--forget", "list.txt"]) == 1
    assert "no document that matches list.txt" in capsys.readouterr().err


def test_forget_a_text_and_what_is_near_it(built, capsys):
    folder, _, lines = built
    (folder.parent / "list.txt").write_text(f"text:{lines[1]['text'].replace('so it ends', 'so it stops')}\n")
    assert main(["audit", str(folder), "--forget", "list.txt"]) == 1
    assert main(["audit", str(folder), "--forget", "list.txt", "--near"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 1


BATCHINGS = {
    "carried": Windows(16, 3),
    "drawn": Windows(16, 3, carry_state=False),
    "packed": Packing(160, tokens=640, row_multiple=1, too_long="truncate"),
    "buckets": Buckets(640, row_multiple=1, max_length=300),
}


@pytest.mark.parametrize("name", BATCHINGS)
def test_the_steps_that_read_a_document(built, name):
    """Exactly the batches that hold a token of it, checked against the ids: one document has its own."""
    rows = [[10] * 9, [20] * 31, [30] * 5, [40] * 12, [50] * 8] * 3
    rows[7] = [99] * 14
    batches = BATCHINGS[name].batches({"target": Ragged.from_rows(rows)}, 1)
    for k in range(40):
        batch = batches[k]
        there = (batch.target_BT == 99) | (batch.label_BT == 99)
        assert batches.reads(k, 7) == bool(there.any()), k


def test_a_run_knows_its_documents(built, capsys):
    """`jaxlm audit RUN --document ID`, for a run on the shards; the checkpoint says how many steps it did."""
    folder, _, _ = built
    row = 31
    identity = hex_id(np.concatenate([np.load(file)["id"] for file in sorted(folder.glob("*.docs.npy"))])[row])
    shards, size = Shards(str(folder)), load_tokenizer(folder / "tokenizer").vocab_size
    task = LanguageModeling(shards, shards, shards)
    model = FeedForwardLM(size, 4, 4, 2)
    experiment = Experiment(task, model, SavedTokenizer(str(folder), size), Windows(16, 8, carry_state=False))
    workdir = Workdir(folder.parent / "run")
    workdir.create(experiment)
    load_tokenizer(folder / "tokenizer").save(workdir.tokenizer_folder)
    workdir.save_once(experiment, {"w": np.zeros(1, np.float32)}, step=90)
    assert main(["audit", str(workdir), "--document", identity]) == 0
    result = json.loads(capsys.readouterr().out)
    tokens = shards.encode(load_tokenizer(folder / "tokenizer"))
    batches = experiment.batching.batches({"target": tokens}, experiment.seed)
    assert result["steps_done"] == 90 and result["row"] == row
    assert result["steps"] == [k + 1 for k in range(90) if batches.reads(k, row)] and 2 < len(result["steps"]) < 60
    workdir.data_changes_file.write_text('{"after_step": 20, "before": {}}\n')
    assert main(["audit", str(workdir), "--document", identity]) == 0
    later = json.loads(capsys.readouterr().out)
    assert later["steps"] == [step for step in result["steps"] if step > 20] and later["after_changed_data"] == 20
    for arguments, message in (
        ([str(folder), "--document", identity], "is not a workdir"),
        ([str(workdir), "--document", "0" * 32], "has no document 0000"),
        ([str(folder), "--document", identity, "--forget", "x"], "--forget is for a corpus"),
    ):
        assert main(["audit", *arguments]) in (1, 2)
        assert message in capsys.readouterr().err

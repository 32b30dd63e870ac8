"""An imported encoder, from text to text: its vectors, where its heads look, and tasks that start from it."""

import functools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fixtures import cli_runs
from fixtures.rows import Rows
from fixtures.zoo import params_of

import jaxlm
from jaxlm.data.batching.bucketing import Buckets
from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.masked_lm import MaskedLMRows
from jaxlm.data.sources.text import TextSource
from jaxlm.distributed.sharding import data_mesh
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.finetuning import FineTuning
from jaxlm.huggingface.convert import load_pretrained, save_pretrained
from jaxlm.huggingface.workdir import export_folder, import_folder
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.embed import TextEmbedder, attention_maps, token_strings
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import TextClassifier, TokenClassifier
from jaxlm.objectives.labels import Regression, SequenceClassification, TokenClassification
from jaxlm.objectives.masked_lm import MaskedLM
from jaxlm.optim import AdamW, Constant
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.regression import TextRegression
from jaxlm.tasks.tagging import Tagging
from jaxlm.training.initialize import resolve_init
from jaxlm.training.loop import train
from jaxlm.workdir import Workdir

command = cli_runs.command  # a fixture
TEXTS = ["the chicken crossed", "a road", "because it was too wide and too tired to go on", "the road was wide"]
PIECES = 60


@dataclass(frozen=True)
class Texts(TextSource):
    """The texts, each several times over."""

    def describe(self) -> str:
        return "texts"

    def read(self, bad: ReadStats) -> Iterator[str]:
        return iter([f"{text} . " * 6 for text in TEXTS * 2])


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A folder as BERT is published, with WordPiece that cuts and fills every text to one length unless told not to."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bert")
    learnt = tokenizers.BertWordPieceTokenizer()
    learnt.train_from_iterator(TEXTS * 4, vocab_size=PIECES, min_frequency=1, show_progress=False)
    learnt.enable_padding(length=40)
    learnt.enable_truncation(4)
    learnt.save(str(folder / "tokenizer.json"))
    model = Encoder(learnt.get_vocab_size(), 8, 2, 12, 2, max_length=48, init_std=0.5, mlm_head=False)
    save_pretrained(folder, model, params_of(model))
    return folder


@pytest.fixture(scope="module")
def imported(bert, tmp_path_factory) -> Path:
    """The same as a workdir."""
    folder = tmp_path_factory.mktemp("imported") / "run"
    import_folder(bert, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))
        yield


def test_vectors_do_not_know_their_batch(imported):
    run = Workdir(imported).load()
    tokens = TextEmbedder("token")(run, TEXTS)
    for text, vectors in zip(TEXTS, tokens, strict=True):
        names = token_strings(run, text)
        assert names[0] == "<s>" and names[-1] == "</s>" and len(names) == len(vectors)
        assert "".join(name.removeprefix("##") for name in names[1:-1]) == text.replace(" ", "")
    expected = {"first": [v[0] for v in tokens], "last": [v[-1] for v in tokens]}
    expected |= {"mean": [v.mean(0) for v in tokens], "max": [v.max(0) for v in tokens]}
    for pool, vectors in expected.items():
        for order in (slice(None), slice(None, None, -1)):
            found = TextEmbedder(pool, batch_tokens=16)(run, TEXTS[order])
            np.testing.assert_allclose(found, np.stack(vectors[order]), rtol=1e-5, atol=1e-5)


def test_layers(imported):
    """All layers are the last one; the embeddings come before any."""
    run = Workdir(imported).load()
    (last,), (second,), (none,) = (TextEmbedder("token", layer)(run, TEXTS[:1]) for layer in (None, 2, 0))
    np.testing.assert_array_equal(last, second)
    assert np.abs(none - last).max() > 0.1 and none.shape == last.shape
    with pytest.raises(UserError, match="layer 3: the model has 2"):
        TextEmbedder("mean", 3)(run, TEXTS[:1])


def test_a_language_model_reads_to_the_end(imported):
    """The vector of a prefix is the same, whatever follows; there is no EOS."""
    tokenizer = Workdir(imported).load().tokenizer
    model = Decoder(tokenizer.vocab_size, 8, 2, 12, 1, max_length=48)
    run = TrainedModel(model, params_of(model), tokenizer)
    short, long = TextEmbedder("token")(run, ["the road", "the road was wide"])
    np.testing.assert_allclose(long[: len(short)], short, rtol=1e-5, atol=1e-5)
    assert token_strings(run, "the road")[-1] != "</s>"
    names, weight_LNSS = attention_maps(run, "the road was")
    np.testing.assert_allclose(weight_LNSS.sum(-1), 1.0, rtol=1e-5)
    assert weight_LNSS.shape == (1, 2, len(names), len(names)) and np.triu(weight_LNSS, 1).max() == 0.0


def test_embed(imported, command, tmp_path):
    stdin = "".join(f"{text}\n" for text in TEXTS).encode()
    told = command("embed", imported, stdin=stdin)
    assert told.code == 0, told.err
    lines = [json.loads(line) for line in told.lines]
    assert [line["text"] for line in lines] == TEXTS
    assert command("embed", imported, "--out", tmp_path / "v.npy", "--batch-tokens", 16, stdin=stdin).code == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), [line["vector"] for line in lines], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), jaxlm.load(imported).embed(TEXTS, batch_tokens=16))
    assert command("embed", imported, "--pooling", "token", "--out", tmp_path / "v.npz", stdin=stdin).code == 0
    with np.load(tmp_path / "v.npz") as found:
        means = [part.mean(0) for part in np.split(found["vectors"], found["offsets"][1:-1])]
        vectors = jaxlm.load(imported).embed(TEXTS, "token")
        np.testing.assert_array_equal(np.concatenate(vectors), found["vectors"])
        assert len(found["pieces"]) == len(found["vectors"]) == found["offsets"][-1]
    np.testing.assert_allclose(means, [line["vector"] for line in lines], rtol=1e-5, atol=1e-5)
    assert "cut there" not in told.err
    cut = command("embed", imported, stdin=f"{LONG}\nit\n{'the ' * 46}\n{'the ' * 47}\n".encode())
    assert "2 lines were longer than the 48 tokens that the model reads" in cut.err
    refused = command("embed", imported, "--pooling", "token", "--out", "x.npy")
    assert refused.code == 2 and "lines of different lengths" in refused.err
    assert "an encoder without a task" in command("evaluate", imported).err


def test_report_draws_heads(imported, command, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    ask = ("report", imported, "--attention", TEXTS[2], "--num-examples", 0, "--out", page)
    assert command(*ask).code == 0
    assert "layer 2, head 1" in page.read_text() and "layer 2, head 2" in page.read_text()
    assert command(*ask, "--layer", 1, "--head", 2).code == 0
    assert "layer 1, head 2" in page.read_text() and "head 1" not in page.read_text()
    assert command(*ask, "--layer", 3).code == 0 and "has 1 to 2" in page.read_text()


def tuned(task, model, objective, best: str, imported: Path) -> Experiment:
    return Experiment(
        task, model, batching=Buckets(tokens=256, max_shapes=1, max_length=32), optimizer=AdamW(Constant(1e-2)),
        objective=objective, finetuning=FineTuning(str(imported)), steps=80, log_every=80, evaluate_every=80,
        checkpoint_every=80, best_metric=best,
    )  # fmt: skip


LONG = "the road was wide " * 30


def test_texts_beyond_the_positions(imported):
    """Vectors are of what the model reads; of a pair the longer text is cut; words are tagged in parts of a text."""
    run = Workdir(imported).load()
    (tokens,), (mean,) = TextEmbedder("token")(run, [LONG]), TextEmbedder("mean")(run, [LONG])
    assert len(tokens) == 48
    np.testing.assert_allclose(mean, tokens.mean(0), rtol=1e-5, atol=1e-5)
    rows = Rows((("a", "no"),))
    task = Classification(rows, rows, rows, sequence_format=SequenceFormat(), labels=("no", "yes"))
    model = TextClassifier(dropout=0.0).with_trunk(run.model)
    texts = [f"{LONG}\ttoo tired", f"{LONG}\tthe chicken", "a"]
    answers = task.predict(TrainedModel(model, params_of(model) | {"model": run.params}, run.tokenizer), texts)
    shares = [answer.json["probabilities"]["yes"] for answer in answers]
    assert len(set(shares)) == 3, "the second text counts"
    assert (
        task.max_input_tokens(model) == 48
        and replace(task, sequence_format=SequenceFormat(max_length=32)).max_input_tokens(model) == 32
    )
    words = Tagging(rows, rows, rows, sequence_format=SequenceFormat(), labels=("no", *"abcdefg"))
    tagger = TokenClassifier(num_labels=8, dropout=0.0).with_trunk(run.model)
    tagging = TrainedModel(tagger, params_of(tagger) | {"model": run.params}, run.tokenizer)
    assert run.tokenizer.encode([LONG])[0].size == 120 and 46 % 4 == 2  # 46 of them fit: 11 phrases and two words
    phrase = LONG.split()
    texts = [" ".join(phrase[first : first + 46]) for first in range(0, 120, 46)]
    whole, *parts = words.predict(tagging, [LONG, *texts])
    assert len(whole.json["tags"]) == 120
    assert whole.text == " ".join(part.text for part in parts) and len(set(whole.json["tags"])) > 1
    gold = Rows(((LONG, " ".join(["no"] * 120)), ("a", "no")))
    found = replace(words, test=gold).evaluate(tagging, "test")
    a = words.predict(tagging, ["a"])[0].text
    right = whole.json["tags"].count("no") + (a == "no")
    assert found["words"] == 121 and found["accuracy"] == pytest.approx(right / 121)


def test_gaps_of_an_imported_model(bert, tmp_path, command):
    """With its head it fills gaps at once, and its own text trains it further, with a fresh head for pairs."""
    tokenizers = pytest.importorskip("tokenizers")
    whole = tmp_path / "bert"
    shutil.copytree(bert, whole)
    ids = tokenizers.Tokenizer.from_file(str(whole / "tokenizer.json")).get_vocab_size()
    save_pretrained(whole, inner := Encoder(ids, 8, 2, 12, 2, max_length=48, init_std=0.5), params_of(inner))
    made = import_folder(whole, tmp_path / "run")
    said = command("predict", tmp_path / "run", "--jsonl", stdin=b"the [MASK] was wide\n")
    assert said.code == 0 and len(json.loads(said.lines[0])["masks"][0]) == 5, said.err
    mine = Encoder(99, 16, 2, 8, 1, nsp_head=True, norm="pre", dropout=0.0, attention_dropout=0.0)
    rows = MaskedLMRows(length=16, rows=8, next_sentence=True)
    task = replace(made.task, train=Texts(), valid=Texts(), test=Texts(), eval_batching=rows, valid_batches=1)
    more = Experiment(
        task, mine, batching=rows, optimizer=AdamW(Constant(1e-2)), objective=MaskedLM(), steps=2, log_every=2,
        evaluate_every=2, checkpoint_every=2, best_metric="valid/nll", finetuning=FineTuning(str(tmp_path / "run")),
    )  # fmt: skip
    found = resolve_init(more).model
    expected = inner.clone(nsp_head=True, dropout=0.0, attention_dropout=0.0, init_std=0.02)
    assert found == expected
    with pytest.raises(UserError, match="a published Encoder cannot stand in the place of the experiment's Decoder"):
        resolve_init(replace(more, model=Decoder(99)))
    assert "valid/next_sentence" in train(more, tmp_path / "more")
    assert train(replace(more, steps=3), tmp_path / "more")["step"] == 3
    told = export_folder(tmp_path / "more", tmp_path / "out")
    assert "tokenizer.json" in told and load_pretrained(tmp_path / "out")[0].nsp_head


PAIRS = [("the road\ta road", "yes"), ("the chicken\ttoo wide", "no"), ("a road\tthe road", "yes"), ("it\tgo on", "no")]


@pytest.mark.slow
def test_a_pair_is_learnt(imported, tmp_path, command):
    """Told by heart, with a head on the imported model; and what the workdir then answers, and refuses."""
    rows = Rows(tuple(PAIRS))
    task = Classification(rows, rows, rows, sequence_format=SequenceFormat(), labels=("no", "yes"))
    made = tuned(task, TextClassifier(dropout=0.0), SequenceClassification(), "valid/accuracy", imported)
    summary = train(made, tmp_path / "run")
    assert summary["valid/accuracy"] == 100.0
    assert Workdir(tmp_path / "run").read_experiment().model.model.vocab > 20
    said = command("predict", tmp_path / "run", stdin=b"the road\ta road\nit\tgo on\n")
    assert said.lines == ["yes", "no"], said.err
    with pytest.raises(UserError, match="'maybe', which is none of the task's labels no, yes"):
        train(replace(made, task=replace(task, train=Rows((("a\tb", "maybe"),)))), tmp_path / "other")


@pytest.mark.slow
def test_numbers_are_learnt(imported, tmp_path):
    rows = Rows(tuple((text, "4.5" if label == "yes" else "1") for text, label in PAIRS))
    task = TextRegression(rows, rows, rows, sequence_format=SequenceFormat(), min_value=1.0)
    made = tuned(
        task, TextClassifier(num_labels=1, dropout=0.0, pooling="mean"), Regression(), "valid/pearson", imported
    )
    assert train(made, tmp_path / "run")["valid/pearson"] > 99.0
    run = Workdir(tmp_path / "run").load()
    answer, blank = task.predict(run, [PAIRS[0][0], ""])
    assert float(answer.text) == pytest.approx(4.5, abs=0.3) and blank.text == ""
    scores = task.evaluate(run, "test")
    assert scores["spearman"] > 80.0 and scores["mean_squared_error"] < 0.1
    with pytest.raises(UserError, match=r"'9', expected a number from 1.0 to 5.0"):
        replace(task, test=Rows((("a", "9"),))).check()


@pytest.mark.slow
def test_words_of_several_pieces_are_tagged(imported, tmp_path):
    """The label of a word stands at its first piece; every word gets one tag, also one of unknown characters."""
    rows = Rows((("crossed roads", "VERB NOUN"), ("widest road tired", "ADJ NOUN ADJ"), ("東 crossed", "X VERB")))
    task = Tagging(rows, rows, rows, sequence_format=SequenceFormat(), labels=("VERB", "NOUN", "ADJ", "X"))
    made = tuned(task, TokenClassifier(num_labels=4, dropout=0.0), TokenClassification(), "valid/accuracy", imported)
    assert train(made, tmp_path / "run")["valid/accuracy"] == 100.0
    run = Workdir(tmp_path / "run").load()
    columns = task._encode_pairs(rows, list(rows), run.tokenizer)[0]
    labels, source = columns["label"], columns["source"]
    assert [[i for i in labels[row] if i >= 0] for row in range(3)] == [[0, 1], [2, 1, 2], [3, 0]]
    assert (labels.lengths == source.lengths).all() and (source.lengths > np.array([3, 4, 3])).any()
    lines = ["crossed roads", "", "widest road tired"]
    assert [answer.text for answer in task.predict(run, lines)] == ["VERB NOUN", "", "ADJ NOUN ADJ"]
    assert task.evaluate(run, "test")["words"] == 7

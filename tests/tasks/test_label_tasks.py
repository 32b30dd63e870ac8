"""The tasks of tagging and classification: what they read, say and judge, with a model whose answers are known."""

import dataclasses
import json
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from fixtures.rows import Rows

from jaxlm.data.batching.collate import collate
from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.files import ReadStats
from jaxlm.data.sources.conll import ColumnFile, ConllU, RepairTags
from jaxlm.data.sources.parallel import ParallelFiles
from jaxlm.data.tokenizers.simple import Characters, Words, WordsWithChars
from jaxlm.errors import UserError
from jaxlm.inference.base import TrainedModel
from jaxlm.metrics.classification import iob2_tags
from jaxlm.models.bag_of_words import BagOfWords
from jaxlm.models.rnn_classifier import RecurrentTagger
from jaxlm.nn.layers.word_embedding import CharacterCNN
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.objectives.labels import SequenceClassification, TokenClassification
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.tagging import Tagging, split_raw
from jaxlm.types import Array, Batch

TAGS = iob2_tags("PER", "LOC")
TRAIN = [("Juan vio a Ana María en Roma", "B-PER O O B-PER I-PER O B-LOC"), ("Roma arde", "B-LOC O"), ("no", "O")]
TEST = [("Ana vio Madrid", "B-PER O B-LOC"), ("María", "B-PER"), ("Juan y Juan", "B-PER O B-PER")]
OPINIONS = [("bien bien", "P"), ("mal", "N"), ("no mal", "P"), ("regular", "N")]


def tagging(test=TEST, **fields) -> Tagging:
    train, test = Rows(tuple(TRAIN)), Rows(tuple(test))
    return Tagging(train, test, test, labels=TAGS, iob2_spans=True, **fields)


def classification() -> Classification:
    rows = Rows(tuple(OPINIONS))
    return Classification(rows, rows, rows, labels=("N", "P"))


SPELLED = WordsWithChars().fit(text for text, _ in TRAIN)


class ById(nn.Module):
    """Says of each word the label `id modulo labels`, and of a text that of its first word."""

    num_labels: int
    rows: bool = False

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        self.param("unused", nn.initializers.zeros_init(), (1,))
        logits_BSC = 5.0 * jax.nn.one_hot(batch.source_BS % self.num_labels, self.num_labels)
        return logits_BSC[:, 0] if self.rows else logits_BSC


def by_id(task: Any, tokenizer: Any) -> TrainedModel:
    model = ById(len(task.labels), isinstance(task, Classification))
    return TrainedModel(model, {"unused": np.zeros(1, np.float32)}, tokenizer)


def test_columns_are_in_step():
    task, bad = tagging(), ReadStats()
    columns = task.encode_train(SPELLED, None, bad)
    assert bad.kept == 3 and list(task.texts()) == [text for text, _ in TRAIN] and task.count("train") == 3
    assert [[TAGS[i] for i in row] for row in map(columns["label"].__getitem__, range(3))] == [
        tags.split() for _, tags in TRAIN
    ]
    batch = collate(columns, np.array([1, 0]), np.array([0, 1]), (3, 9, 0), packed=False)
    assert batch.token_label_BS.tolist()[0] == [TAGS.index("B-LOC"), 0] + [-1] * 7
    assert batch.token_label_BS[1, 7] == -1 and (batch.token_label_BS[2] == -1).all()
    letters = ("", "?", "", "", *SPELLED.alphabet)
    spelled = ["".join(letters[i] for i in word) for word in batch.character_BSW[1]]
    assert " ".join(spelled).strip() == TRAIN[0][0]
    columns = classification().encode_train(Words().fit(["mal bien no regular"]), None, bad)
    batch = collate(columns, np.array([3, 0]), np.array([0, 1]), (3, 4, 0), packed=False)
    assert batch.class_B.tolist() == [0, 1, -1] and batch.character_BSW is None


def test_prediction_of_tags():
    """In order, a tag a word by the model's rule, blank lines blank, words never seen and odd white space as well."""
    task = tagging()
    lines = ["Ana vio Ana", "  ", "☃ Roma", "x" * 50, "Ana\tarde  no", ""]
    answers = task.predict(by_id(task, SPELLED), lines)
    for line, answer in zip(lines, answers, strict=True):
        (ids,) = SPELLED.encode([line])
        expected = [TAGS[i % len(TAGS)] for i in ids]
        assert answer.text == " ".join(expected) and len(expected) == len(line.split())
        assert answer.json["source"] == line and answer.json["prediction"] == answer.text
        assert answer.json["words"] == line.split() and answer.json["tags"] == expected
        for span in answer.json["spans"]:
            assert span["text"] == " ".join(line.split()[span["begin"] : span["end"]])
        json.dumps(answer.json)
    assert task.predict(by_id(task, SPELLED), []) == []
    alone = [task.predict(by_id(task, SPELLED), [line])[0] for line in lines]
    assert alone == answers


RAW = [
    "Juan, isn't it $3.50?",
    "Kočka\tžije v Praze…",
    "今天好",
    "مُحَمَّدٌ إلى القاهرة.",
    "हिन्दी भाषा",
    "I 👨‍👩‍👧 love 😀!",
]


def test_raw_text_is_split_at_the_word_boundaries_of_unicode():
    """Each word with its place; nothing but white space is between two of them."""
    words = [[word for word, _ in split_raw(text)] for text in RAW]
    assert words[0] == ["Juan", ",", "isn't", "it", "$", "3.50", "?"]
    assert words[1:3] == [["Kočka", "žije", "v", "Praze", "…"], ["今", "天", "好"]]
    assert words[3][0] == "مُحَمَّدٌ" and words[4][0] == "हिन्दी" and words[5][1] == "👨‍👩‍👧"
    task = dataclasses.replace(tagging(), split_words=True)
    for text, row, answer in zip(RAW, words, task.predict(by_id(task, SPELLED), RAW), strict=True):
        assert [text[begin:end] for begin, end in answer.json["offsets"]] == row == answer.json["words"]
        assert "".join(row) == "".join(text.split())
        assert answer.text == " ".join(map("/".join, zip(row, answer.json["tags"], strict=True)))
    assert tagging().predict(by_id(task, SPELLED), [" a,\u3000b "])[0].json["offsets"] == [(1, 3), (4, 5)]


def test_evaluation_of_tags():
    """Against counts by hand, of the answers that `predict` gives."""
    task, told = tagging(), []
    answers = [answer.text.split() for answer in task.predict(by_id(task, SPELLED), [text for text, _ in TEST])]
    gold = [tags.split() for _, tags in TEST]
    figures = task.evaluate(by_id(task, SPELLED), "test", told.append)
    flat = [(a, b) for row, true in zip(answers, gold, strict=True) for a, b in zip(row, true, strict=True)]
    assert figures["accuracy"] == pytest.approx(100 * sum(a == b for a, b in flat) / len(flat))
    assert (figures["split"], figures["lines"], figures["words"], sum(told)) == ("test", 3, 7, 3)
    assert figures["unknown"]["words"] == 2  # Madrid, y
    assert figures["tags"]["B-PER"]["support"] == 4 and figures["spans"]["PER"]["support"] == 4
    assert {"precision", "recall", "f1", "macro_f1"} <= set(figures)
    json.dumps(figures)
    perfect = tagging([(text, answer.text) for (text, _), answer in
                       zip(TEST, task.predict(by_id(task, SPELLED), [t for t, _ in TEST]), strict=True)])  # fmt: skip
    figures = perfect.evaluate(by_id(task, SPELLED), "test")
    assert figures["accuracy"] == 100.0 and figures["f1"] == 100.0


def test_classes_are_predicted_and_counted():
    task, tokenizer = classification(), Words().fit(text for text, _ in OPINIONS)
    lines = ["mal", "", "nunca oído", "bien y mal"]
    answers = task.predict(by_id(task, tokenizer), lines)
    assert answers[1].text == ""
    for line, answer in zip(lines, answers, strict=True):
        if line:
            (ids,) = tokenizer.encode([line])
            assert answer.text == task.labels[ids[0] % 2] == answer.json["prediction"]
            assert sum(answer.json["probabilities"].values()) == pytest.approx(1.0)
            assert answer.json["probabilities"][answer.text] == pytest.approx(1 / (1 + np.exp(-5.0)), rel=1e-5)
    figures = task.evaluate(by_id(task, tokenizer), "valid")
    said = [answer.text for answer in task.predict(by_id(task, tokenizer), [text for text, _ in OPINIONS])]
    right = sum(a == b for a, (_, b) in zip(said, OPINIONS, strict=True))
    assert figures["accuracy"] == pytest.approx(25.0 * right)
    assert figures["confusion"][0][0] + figures["confusion"][1][1] == right
    assert figures["classes"]["P"]["support"] == 2
    sample = next(task.show_examples(by_id(task, tokenizer), 2))
    assert sample == f"bien bien -> {said[0]} (right: P)"


@pytest.mark.parametrize("kind", ["tagging", "classification"])
def test_the_loss_of_validation_is_a_mean_over_labels(kind):
    task, objective = (
        (tagging(), TokenClassification()) if kind == "tagging" else (classification(), SequenceClassification())
    )
    tokenizer = SPELLED if kind == "tagging" else Words().fit(text for text, _ in OPINIONS)
    trained = by_id(task, tokenizer)
    figures = task.validate(trained, objective, 16)
    classes = len(task.labels)
    surprise = []  # of 5 on one label and 0 on all others
    for text, labels in task.valid:
        (ids,) = tokenizer.encode([text])
        gold = [task.labels.index(label) for label in labels.split()]
        for i, label in zip(ids if kind == "tagging" else ids[:1], gold, strict=True):
            surprise.append(np.log(np.exp(5.0) + classes - 1) - 5.0 * (i % classes == label))
    assert figures["valid/loss"] == pytest.approx(np.mean(surprise), rel=1e-5)
    evaluated = task.evaluate(trained, "valid")
    assert figures["valid/accuracy"] == evaluated["accuracy"]
    assert figures["valid/f1"] == evaluated["f1" if kind == "tagging" else "macro_f1"]


def test_samples_mark_what_is_wrong():
    task = tagging()
    sample = list(task.show_examples(by_id(task, SPELLED), 2))[1]
    (said,) = task.predict(by_id(task, SPELLED), ["María"])
    assert sample == ("María/B-PER" if said.text == "B-PER" else f"María/{said.text}(B-PER)")


def test_an_unknown_tag_is_named_with_its_line(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text("a\tO\n\nb\tO\nJuan\tB-ORG\n", encoding="utf-8")
    task = replace(tagging(), test=ColumnFile(str(path)))
    with pytest.raises(UserError, match=r"x\.conll, line 4: 'Juan' has the tag 'B-ORG'.* O, B-PER, I-PER, B-LOC"):
        task.check()
    with pytest.raises(UserError, match="rows, sentence 1, word 2: 'b' has the tag 'X'"):
        tagging([("a b", "O X")]).check()
    with pytest.raises(UserError, match="2 words and 1 tags"):
        tagging([("a b", "O")]).check()
    with pytest.raises(UserError, match="text 1, 'bien'.* class 'Q'.*N, P"):
        replace(classification(), test=Rows((("bien", "Q"),))).check()
    with pytest.raises(UserError, match="no split 'dev'; this experiment has train, valid, test"):
        tagging().evaluate(by_id(tagging(), SPELLED), "dev")


def test_models_and_tokenizers_that_do_not_fit():
    task = tagging()
    with pytest.raises(UserError, match=r"5 labels .* the model has 3"):
        task.predict(TrainedModel(ById(3), {}, SPELLED), ["a"])
    with pytest.raises(UserError, match="O, B-LOC, .* are not the task's labels O, B-PER"):
        task.check_model(RecurrentTagger(SPELLED.vocab_size, 5, tag_names=iob2_tags("LOC", "PER")), SPELLED)
    net = CharacterCNN(SPELLED.char_vocab_size - 1)
    with pytest.raises(UserError, match=f"embeds {net.vocab}"):
        task.check_model(RecurrentTagger(SPELLED.vocab_size, 5, characters=net), SPELLED)
    with pytest.raises(UserError, match="WordTokenizer.*WordsWithChars"):
        task.check_model(RecurrentTagger(SPELLED.vocab_size, 5, characters=net), Words().fit(["a"]))
    with pytest.raises(UserError, match="7 tags, and CharacterTokenizer makes 28 ids"):
        task.encode_train(Characters().fit(task.texts()), None, ReadStats())
    with pytest.raises(UserError, match="all different"):
        replace(classification(), labels=("N", "N"))
    with pytest.raises(UserError, match="IOB2"):
        replace(tagging(), labels=("O", "NOUN"))


def test_a_tagger_and_a_bag_learn(tmp_path):
    """From a file to figures: a few steps of plain gradient descent, and the training data are known by heart."""
    path = tmp_path / "x.conllu"
    words = [("el", "DET"), ("gato", "NOUN"), ("ve", "VERB"), ("la", "DET"), ("casa", "NOUN")]
    rows = [f"{n}\t{word}\t_\t{tag}\t_\t_\t_\t_\t_\t_" for n, (word, tag) in enumerate(words, 1)]
    path.write_text("\n".join(rows) + "\n\n" + "\n".join(rows[:2]) + "\n", encoding="utf-8")
    source = ConllU(str(path))
    task = Tagging(source, source, source, labels=("DET", "NOUN", "VERB"))
    tokenizer = WordsWithChars().fit(task.texts())
    net = CharacterCNN(tokenizer.char_vocab_size, 4, 4)
    model = RecurrentTagger(tokenizer.vocab_size, 3, Recurrent(LSTM(4), bidirectional=True), 4, net, crf=True)
    assert figures_after(task, model, tokenizer, TokenClassification(), 60)["valid/accuracy"] == 100.0
    opinions, words = classification(), Words().fit(text for text, _ in OPINIONS)
    bag = BagOfWords(words.vocab_size, 2, 8, (8,))
    assert figures_after(opinions, bag, words, SequenceClassification(), 60)["valid/accuracy"] == 100.0


def figures_after(task: Any, model: nn.Module, tokenizer: Any, objective: Any, steps: int) -> dict[str, float]:
    columns = task.encode_train(tokenizer, None, ReadStats())
    rows = np.arange(len(columns["source"]))
    batch = collate(columns, rows, rows, (len(rows), 6, 0), packed=False)
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]

    @jax.jit
    def step(params):
        def mean(params):
            loss = objective(model, params, batch, jax.random.key(1))
            return loss.total / loss.count

        return jax.tree.map(lambda p, g: p - 1.0 * g, params, jax.grad(mean)(params))

    before = task.validate(TrainedModel(model, params, tokenizer), objective, 64)
    for _ in range(steps):
        params = step(params)
    after = task.validate(TrainedModel(model, params, tokenizer), objective, 64)
    assert after["valid/loss"] < 0.5 * before["valid/loss"]
    return after


def test_tags_that_a_crf_never_predicts_are_refused(tmp_path):
    """In the sets that training reads, with any model; in an evaluation only with a CRF."""
    bad = (("el rio Ebro", "O O I-LOC"),)
    (tmp_path / "w").write_text("a\nel rio Ebro\n")
    (tmp_path / "t").write_text("O\nO O I-LOC\n")
    files = ParallelFiles(str(tmp_path / "w"), str(tmp_path / "t"))
    with pytest.raises(UserError, match=r"t, line 2, word 3: 'Ebro' is I-LOC after O: IOB2 begins.*RepairTags"):
        replace(tagging(), train=files).encode_train(SPELLED, None, ReadStats())
    with pytest.raises(UserError, match="sentence 1, word 3: 'Ebro' is I-LOC after O"):
        tagging(bad).check()
    repaired = replace(tagging(), train=RepairTags(files)).encode_train(SPELLED, None, ReadStats())
    assert repaired["label"].flat.tolist() == [0, 0, 0, TAGS.index("B-LOC")]
    chain = RecurrentTagger(SPELLED.vocab_size, len(TAGS), crf=True, tag_names=TAGS)
    with pytest.raises(UserError, match="'Ebro' is I-LOC after O"):
        tagging(bad)._encode_pairs(Rows(bad), list(bad), SPELLED, chain)
    tagging(bad)._encode_pairs(Rows(bad), list(bad), SPELLED, replace(chain, crf=False))
    with pytest.raises(UserError, match="the CRF of the model forbids tags that are not IOB2.*tag_names=()"):
        replace(tagging(), iob2_spans=False).check_model(chain, SPELLED)
    tagging().check_model(chain, SPELLED)


@pytest.mark.parametrize("text, label", [("a\tb\tc", "3"), ("a\tb\tc\td\te", "1")])
def test_the_class_of_a_question_is_one_of_its_endings(text, label):
    """A class without an ending would have the probability 0, and an ending without a class would not be read."""
    rows = Rows((("q\tr\ts", "1"), (text, label)))
    task = Classification(rows, rows, rows, sequence_format=SequenceFormat("choices"), labels=("1", "2", "3"))
    with pytest.raises(UserError, match="text 2.* endings and the class .*: expected an ending for it"):
        task.check()

"""Parsing: every answer is a tree over exactly the words, for models that have learnt nothing."""

import json
from dataclasses import replace
from functools import lru_cache

import jax
import numpy as np
import pytest
from fixtures.zoo import params_of

from jaxlm.cli.main import main
from jaxlm.data.minilang.sources import MiniLangTrees
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import WordsWithChars
from jaxlm.data.tokenizers.tree_tokens import TreeTokens
from jaxlm.decode.beam_config import Beam
from jaxlm.errors import UserError
from jaxlm.grammar.tree_automaton import END, LEAF, start_state, tree_automaton
from jaxlm.inference.base import TrainedModel
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.properties import abstract_params
from jaxlm.models.rnn_classifier import RecurrentTagger
from jaxlm.nn.rnn.cells import GRU
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.report.tree_picture import tree_to_svg
from jaxlm.tasks.parsing import Parsing, TreeTagging
from jaxlm.trees.linearize import Brackets, level_labels
from jaxlm.trees.reader import parse_tree
from jaxlm.trees.tree import escape, split_words

TRAIN, TEST = MiniLangTrees("train", 200), MiniLangTrees("test", 6)
LINES = ["veo ( los )NP XX castillos -LRB- verdes", "", "a\tb  c ", "\u2009 x\u2009y \u2581 \U0001f600", ". . .", "hoy"]
MODEL = EncoderDecoder(
    19, 8, 2, 12, 1, 1, norm="pre", dropout=0.0, tie_embeddings="none", source_vocab=340, aligned=(4, 5)
)


@lru_cache
def parser(beams: int = 1) -> tuple[Parsing, TrainedModel]:
    task = Parsing(TRAIN, TEST, TEST)
    tokenizer = TreeTokens(19, SentencePiece(340, "bpe")).fit(task.texts())
    search = replace(task.search, beam=Beam(num_beams=beams, temperature=2.0), max_source_len=64)
    return replace(task, search=search), TrainedModel(MODEL, params_of(MODEL), tokenizer)


@lru_cache
def tagger() -> tuple[TreeTagging, TrainedModel]:
    task = TreeTagging(TRAIN, TEST, TEST, labels=level_labels(TRAIN))
    tokenizer = WordsWithChars(100, 40).fit(task.texts())
    model = RecurrentTagger(100, num_labels=len(task.labels), recurrent=Recurrent(GRU(4)), word_width=4)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract_params(model))
    return task, TrainedModel(model, params, tokenizer)


def test_the_automaton_ends_every_text_in_its_limit():
    """Random walks within the least limit and more: exactly the words, always an end; the distances are exact."""
    dfa = tree_automaton(("XX", "(A", "(B", ")A", ")B"), 3)
    assert dfa.next_QC.shape == (42_067, 5)
    after_QC = np.where(dfa.next_QC >= 0, dfa.distance_Q[dfa.next_QC], np.iinfo(np.int32).max - 1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        words = int(rng.integers(1, 30))
        state, limit, kinds = start_state(words), words + 3 + int(rng.integers(0, 60)), []
        assert dfa.distance_Q[state] == words + 3
        while END not in kinds:
            assert dfa.distance_Q[state] == after_QC[state].min() + 1
            kinds.append(int(rng.choice(np.flatnonzero(after_QC[state] < limit - len(kinds)))))
            state = dfa.next_QC[state, kinds[-1]]
        assert len(kinds) <= limit and kinds.count(LEAF) == words
        symbols = ["", "(A", ")A", "XX"]
        assert Brackets().decode([symbols[kind] for kind in kinds[:-1]], ["w"] * words) is not None


@pytest.mark.parametrize("beams", [1, 5, pytest.param(21, marks=pytest.mark.slow)])
def test_every_answer_is_a_tree_over_the_words(beams):
    task, trained = parser(beams)
    answers = task.predict(trained, LINES)
    for line, answer in zip(LINES, answers, strict=True):
        words = [escape(word) for word in split_words(line)]
        assert answer.json["words"] == words and (answer.text == "") == (not words)
        if words:
            assert [leaf.word for leaf in parse_tree(answer.text).leaves()] == words
            assert answer.json["spans"] == [list(span) for span in parse_tree(answer.text).spans()[1:]]
            assert answer.json["logprob"] < 0 and len(answer.json["hypotheses"]) == 1
    assert task.predict(trained, LINES[:1])[0].text == answers[0].text, "batch mates change nothing"


def test_a_sentence_beyond_the_model_gets_a_flat_tree():
    task, trained = parser()
    long, short = task.predict(trained, ["y " * 10_000, "hoy"])
    assert long.text.startswith("(TOP (FRAG (XX y) (XX y)") and long.json["flat"] and len(long.json["words"]) == 10_000
    assert "flat" not in short.json


def test_evaluation_and_pictures():
    task, trained = parser()
    scores = task.evaluate(trained, "test")
    assert scores["lines"] == 6 and scores["errors"] == scores["flat"] == 0
    assert 0 < scores["f1"] < 100 and scores["signature"] == "labels:collins|tags:gold|len:all|v:1"
    assert scores["not_in_train"]["sentences"] <= 6
    tree = parse_tree("(TOP (S (NP (X a<b)) (VP (Y c))))")
    picture = tree_to_svg(tree)
    assert picture.count("<text") == 2 + 6 and picture.count("<line") == 7 and "a&lt;b" in picture


def test_a_model_that_does_not_fit_is_refused():
    task, trained = parser()
    for changes, name in (({"aligned": None}, "aligned"), ({"source_vocab": 99}, "source_vocab")):
        with pytest.raises(UserError, match=name):
            task.check_model(MODEL.clone(**changes), trained.tokenizer)
    with pytest.raises(UserError, match="TreeTokens"):
        task.check_model(MODEL, tagger()[1].tokenizer)
    with pytest.raises(UserError, match="vocab_size = 19"):
        TreeTokens(30, SentencePiece(340, "bpe")).fit(task.texts())


def test_the_tokenizer_marks_words_and_comes_back(tmp_path):
    tokenizer = parser()[1].tokenizer
    texts = ["hoy veo )NP (S XX", "\U0001f600 a_b"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert (ids >= 340).sum() == len(text.split()) and ids[0] >= 340
        assert tokenizer.side("source").decode([ids]) == [text]
    symbols = "(S (NP XX )NP XX )S"
    assert tokenizer.decode(tokenizer.side("target").encode([symbols])) == [symbols]
    assert tokenizer.side("target").encode(["(NEVER"])[0].tolist() == [1], "a label that train lacks is unknown"
    tokenizer.save(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path / "tokenizer") == tokenizer


def test_labels_are_trees_too():
    task, trained = tagger()
    answers = task.predict(trained, LINES)
    for line, answer in zip(LINES, answers, strict=True):
        assert answer.json["words"] == [escape(word) for word in split_words(line)]
    scores = task.evaluate(trained, "valid")
    assert scores["lines"] == 6 and scores["errors"] == 0 and "|tags:gold|" in scores["signature"]
    assert task.check() is None, "an unknown label of the test set is no error"


def test_two_files_are_scored_without_a_model(tmp_path, capsys):
    gold, predicted = tmp_path / "gold", tmp_path / "predicted"
    gold.write_text("(ROOT\n (S (NP-SBJ (X a)) (VP (Y b))))\n(ROOT (NP (X c)))\n")
    predicted.write_text("(TOP (S (NP (XX a)) (VP (XX b))))\n\n")
    command = ["evaluate", "--gold", str(gold), "--predicted", str(predicted)]
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["f1"], scores["sentences"], scores["skipped"]) == (100.0, 2, 1)
    assert main([*command, "--raw"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["recall"] == 75.0 and scores["signature"].endswith("|trees:raw|v:1")
    assert main(["evaluate", "--gold", str(gold)]) == 2 and "--predicted FILE" in capsys.readouterr().err
    predicted.write_text("(TOP (S (NP (XX a)) (VP (XX b))))\n(TOP (X d)))")
    assert main(command) == 1 and "line 2, column 12" in capsys.readouterr().err

"""Frame-semantic parsing: scores of multisets, splits by article, prompts and answers, agreement of annotators."""

import json

import pytest

from benchmarks.frame_data import (
    Lexicon,
    Sentence,
    answer_schema,
    make_prompt,
    prompt_sentence,
    read_answer,
    read_sentences,
    score_pairs,
    score_second_annotator,
    split_by_article,
    write_answer,
)
from jaxlm.grammar.constraint import schema_constraint

SENTENCES = [
    Sentence("en_a001", ("He", "went", "and", "went"), ((1, "Motion"), (3, "Motion"))),
    Sentence("en_a002", ('"I', "say"), ((1, "Statement"),)),
    Sentence("en_b001", ("We", "Went", "home"), ((1, "Motion"),)),
]


def test_scores_are_of_multisets():
    scores = score_pairs([[("Motion", "went")], [("Motion", "say")]], [s.pairs for s in SENTENCES[:2]])
    assert scores["pair"] == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert scores["frame"] == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert scores["trigger"] == pytest.approx((1, 2 / 3, 4 / 5))
    assert score_pairs([[]], [[]])["pair"] == (0, 0, 0)


def test_lexicon_and_split():
    parts = split_by_article([*SENTENCES, Sentence("en_c001", ("a",), ()), Sentence("en_d001", ("b",), ())], 0)
    assert {name: [s.name for s in part] for name, part in parts.items()} == {
        "test": ["en_a001", "en_a002", "en_b001"], "valid": ["en_c001"], "train": ["en_d001"]
    }  # fmt: skip
    assert Lexicon.fit(SENTENCES).predict(("Went", "home", "say")) == [("Motion", "Went"), ("Statement", "say")]


def test_answers_and_prompts():
    answer = write_answer(SENTENCES[1].pairs)
    assert answer == '[["Statement", "say"]]' and read_answer(answer) == SENTENCES[1].pairs
    assert read_answer("[]") == [] and read_answer('[["a"]]') is None and read_answer("x") is None
    assert read_answer('[["a", 1]]') is None and read_answer("3") is None
    prompt = make_prompt(SENTENCES[1], ["Motion", "Statement"], SENTENCES[:1], SENTENCES)
    assert prompt_sentence(prompt) == SENTENCES[1].text == '"I say' and "- Motion: went, Went\n" in prompt
    assert schema_constraint(answer_schema(["Motion"])).source_words == 1
    json.dumps(answer_schema(["Motion"]))


@pytest.mark.data
def test_the_second_annotator(data_root):
    """The agreement of the two annotators, which bounds what a system can reach."""
    first = read_sentences()
    count, scores = score_second_annotator(first)
    assert (len(first), count) == (500, 400)
    assert [round(scores[part][2], 2) for part in ("pair", "frame", "trigger")] == [0.68, 0.69, 0.82]

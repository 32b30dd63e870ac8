"""Spans of tags, and what is counted: against conlleval's rules, written as that script has them, and seqeval."""

import random
from collections import Counter

import pytest

from jaxlm.errors import UserError
from jaxlm.metrics.classification import (
    SENTENCE_START,
    Counts,
    extract_spans,
    forbidden_transitions,
    iob2_tags,
    score_spans,
)

TAGS = iob2_tags("a", "b-c")


def conlleval(tags: list[str]) -> list[tuple[str, int, int]]:
    """The spans by the two questions that the script of the CoNLL-2000 task asks at each word."""
    found, begin = [], None
    cut = [("O", "")] + [tuple(tag.partition("-")[::2]) for tag in tags] + [("O", "")]
    for index, ((before, old), (now, new)) in enumerate(zip(cut, cut[1:], strict=False)):
        ends = (before, now) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")} or (before != "O" and old != new)
        starts = now == "B" or (before, now) == ("O", "I") or (now != "O" and old != new)
        if ends and begin is not None:
            found.append((old, begin, index))
            begin = None
        if starts:
            begin = index
    return found


def sentences(count: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.choices(TAGS, k=draw.randrange(12)) for _ in range(count)]


def noisy(rows: list[list[str]], seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [[draw.choice(TAGS) if draw.random() < 0.2 else tag for tag in row] for row in rows]


def test_spans_by_hand():
    assert extract_spans("B-a I-a O I-b-c B-b-c I-a".split()) == [
        ("a", 0, 2),
        ("b-c", 3, 4),
        ("b-c", 4, 5),
        ("a", 5, 6),
    ]
    assert extract_spans([]) == extract_spans(["O"]) == []


def test_spans_are_those_of_conlleval():
    for row in sentences(2000, 0):
        assert extract_spans(row) == conlleval(row)


def test_scores_count_equal_spans():
    gold = sentences(300, 1)
    said = noisy(gold, 2)
    counts = Counter()
    for true, other in zip(gold, said, strict=True):
        counts["right"] += len(set(conlleval(true)) & set(conlleval(other)))
        counts["gold"] += len(conlleval(true))
        counts["said"] += len(conlleval(other))
    micro, by_class = score_spans(gold, said)
    assert micro == Counts(counts["gold"], counts["said"], counts["right"])
    precision, recall = counts["right"] / counts["said"], counts["right"] / counts["gold"]
    assert micro.f1 == pytest.approx(200 * precision * recall / (precision + recall))
    assert (micro.precision, micro.recall) == pytest.approx((100 * precision, 100 * recall))
    assert list(by_class) == ["a", "b-c"] and sum(found.correct for found in by_class.values()) == counts["right"]


def test_nothing_to_find_and_nothing_found():
    assert score_spans([["O"]], [["O"]])[0].f1 == 0.0
    missed, _ = score_spans([["B-a"]], [["O"]])
    invented, _ = score_spans([["O"]], [["B-a"]])
    assert (missed.f1, missed.precision, invented.f1, invented.recall) == (0.0, 0.0, 0.0, 0.0)
    assert score_spans([["B-a"]], [["I-a"]])[0].f1 == 100.0  # not strict: both are one word of the class a


def test_rows_of_other_lengths_are_refused():
    with pytest.raises(UserError, match="sentence 2 has 1 tags and 2"):
        score_spans([["O"], ["O"]], [["O"], ["O", "O"]])


def test_scores_are_those_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    gold = sentences(300, 3)
    said = noisy(gold, 4)
    micro, by_class = score_spans(gold, said)
    report = metrics.classification_report(gold, said, output_dict=True)
    assert micro.f1 == pytest.approx(100 * metrics.f1_score(gold, said))
    for name, found in by_class.items():
        expected = report[name]
        ours = found.precision / 100, found.recall / 100, found.f1 / 100, found.gold
        assert ours == pytest.approx(tuple(expected[key] for key in ("precision", "recall", "f1-score", "support")))


def test_forbidden_transitions_are_those_that_begin_a_span_with_an_inside():
    forbidden = set(forbidden_transitions(TAGS))
    for before in range(SENTENCE_START, len(TAGS)):
        for after, tag in enumerate(TAGS):
            row = ([] if before == SENTENCE_START else [TAGS[before]]) + [tag]
            begins = any(first == len(row) - 1 for _, first, _ in extract_spans(row))
            assert ((before, after) in forbidden) == (tag.startswith("I-") and begins)
    assert forbidden_transitions(("O", "B-x")) == ()


@pytest.mark.parametrize("tags", [("O", "NOUN"), ("O", "I-a"), ("O", "B-a", "I-b"), ("B-a", "E-a")])
def test_tags_that_are_no_iob2(tags):
    with pytest.raises(UserError, match="IOB2"):
        forbidden_transitions(tags)

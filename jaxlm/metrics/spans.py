"""Spans of IOB2 tags, as in named entity recognition: extraction, and precision, recall and F1.

IOB2: B-person begins a span of the class "person", I-person continues it, O is outside of all spans.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxlm.errors import UserError

SENTENCE_START = -1
"""The place before the first word, in a transition."""

Span = tuple[str, int, int]
"""Class, first word, word after the last."""


def extract_spans(tags: Sequence[str]) -> list[Span]:
    """The spans of one sentence, in order. An I- without a span of its class before it begins one, as in conlleval
    (Tjong Kim Sang and Buchholz, 2000) and in seqeval's default mode.
    """
    spans: list[Span] = []
    begin, open_class = 0, None
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        continues = prefix == "I" and open_class == name
        if open_class is not None and not continues:
            spans.append((open_class, begin, index))
            open_class = None
        if prefix in ("B", "I") and not continues:
            begin, open_class = index, name
    return spans


@dataclass(frozen=True)
class Counts:
    """True, predicted and correct spans or labels."""

    gold: int = 0
    predicted: int = 0
    correct: int = 0

    @property
    def precision(self) -> float:
        """The percentage of the predicted items that are correct; 0 if there are none."""
        return 100.0 * self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """The percentage of the true items that were predicted; 0 if there are none."""
        return 100.0 * self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 100."""
        return 200.0 * self.correct / (self.gold + self.predicted) if self.correct else 0.0

    def to_json(self) -> dict[str, float]:
        """The figures for a JSON object; "support" is the number of true items."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1, "support": self.gold}


def score_spans(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> tuple[Counts, dict[str, Counts]]:
    """Over all sentences (micro average) and by class: a span is correct if its class, beginning and end are."""
    counts: dict[str, Counter[str]] = {"gold": Counter(), "predicted": Counter(), "correct": Counter()}
    for number, (gold_tags, tags) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(gold_tags) != len(tags):
            raise UserError(f"sentence {number} has {len(gold_tags)} tags and {len(tags)} were predicted")
        gold_spans = set(extract_spans(gold_tags))
        spans = set(extract_spans(tags))
        for name, group in (("gold", gold_spans), ("predicted", spans), ("correct", gold_spans & spans)):
            counts[name].update(span[0] for span in group)
    classes = sorted({*counts["gold"], *counts["predicted"]})
    by_class = {c: Counts(**{name: counter[c] for name, counter in counts.items()}) for c in classes}
    return Counts(**{name: counter.total() for name, counter in counts.items()}), by_class


def forbidden_transitions(tags: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(from, to) for every I- without a span of its class before it; `from` is SENTENCE_START for the first word.

    Raises UserError unless each tag is O, a B-, or an I- whose B- is among the tags.
    """
    for tag in tags:
        if tag != "O" and not (tag[:2] in ("B-", "I-") and f"B{tag[1:]}" in tags):
            raise UserError(f"the tag {tag!r} of {', '.join(tags)}: IOB2 has O, B-class, and I-class with its B-class")
    return tuple(
        (before, after)
        for before in range(SENTENCE_START, len(tags))
        for after, tag in enumerate(tags)
        if tag.startswith("I-") and (before == SENTENCE_START or tags[before] not in (tag, f"B{tag[1:]}"))
    )


def iob2_tags(*classes: str) -> tuple[str, ...]:
    """The tags of the classes: O, then B- and I- of each."""
    return ("O", *(f"{prefix}-{name}" for name in classes for prefix in "BI"))

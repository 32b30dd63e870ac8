"""Spans of IOB2 tags, as in named entity recognition, and how well they were found.

IOB2: B-person begins a span of the class "person", I-person goes on with it, O is outside of all.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxlm.errors import UserError

SENTENCE_START = -1
"""Stands for "before the first word" in a transition."""

Span = tuple[str, int, int]
"""Class, first word, word after the last."""


def extract_spans(tags: Sequence[str]) -> list[Span]:
    """The spans of one sentence, in order. An I- that continues nothing of its class begins a span: what conlleval
    (Tjong Kim Sang and Buchholz 2000) and seqeval's default mode do."""
    found: list[Span] = []
    begin, open_class = 0, None
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and open_class == name
        if open_class is not None and not goes_on:
            found.append((open_class, begin, index))
            open_class = None
        if prefix in ("B", "I") and not goes_on:
            begin, open_class = index, name
    return found


@dataclass(frozen=True)
class Counts:
    """How many spans or labels there are, how many were said, how many of these are right."""

    gold: int = 0
    predicted: int = 0
    correct: int = 0

    @property
    def precision(self) -> float:
        """Per cent of what was said that is right; 0 where nothing was said."""
        return 100.0 * self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Per cent of what there is that was said; 0 where there is nothing."""
        return 100.0 * self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 100."""
        return 200.0 * self.correct / (self.gold + self.predicted) if self.correct else 0.0

    def to_json(self) -> dict[str, float]:
        """The figures for a JSON object; "support" is how many there are."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1, "support": self.gold}


def score_spans(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> tuple[Counts, dict[str, Counts]]:
    """Over all sentences (micro average) and by class: a span is right where class, beginning and end are."""
    counts: dict[str, Counter[str]] = {"gold": Counter(), "predicted": Counter(), "correct": Counter()}
    for number, (true, other) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(true) != len(other):
            raise UserError(f"sentence {number} has {len(true)} tags and {len(other)} were said: expected as many")
        of_true, of_other = set(extract_spans(true)), set(extract_spans(other))
        for name, some in (("gold", of_true), ("predicted", of_other), ("correct", of_true & of_other)):
            counts[name].update(span[0] for span in some)
    classes = sorted({*counts["gold"], *counts["predicted"]})
    by_class = {c: Counts(**{name: counter[c] for name, counter in counts.items()}) for c in classes}
    return Counts(**{name: counter.total() for name, counter in counts.items()}), by_class


def forbidden_transitions(tags: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(from, to) for every I- that would continue nothing of its class; `from` START is the beginning of a sentence.

    Raises UserError unless each tag is O, a B- or an I- whose B- is there.
    """
    for tag in tags:
        if tag != "O" and not (tag[:2] in ("B-", "I-") and f"B{tag[1:]}" in tags):
            raise UserError(f"the tag {tag!r} of {', '.join(tags)}: IOB2 has O, B-class, and I-class beside its B-")
    return tuple(
        (before, after)
        for before in range(SENTENCE_START, len(tags))
        for after, tag in enumerate(tags)
        if tag.startswith("I-") and (before == SENTENCE_START or tags[before] not in (tag, f"B{tag[1:]}"))
    )


def iob2_tags(*classes: str) -> tuple[str, ...]:
    """The tags of the classes: O, then B- and I- of each."""
    return ("O", *(f"{prefix}-{name}" for name in classes for prefix in "BI"))

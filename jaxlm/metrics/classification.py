"""Scores of classification (confusion matrix, accuracy, F1 by class and macro), of regression (correlations) and of
spans as in named entity recognition (precision, recall, F1).

IOB2 tags: B-person begins a span of the class "person", I-person continues it, O is outside of all spans.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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
    open_class = None
    for index, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        if prefix == "I" and open_class == name:
            spans[-1] = name, spans[-1][1], index + 1
        else:
            open_class = name if prefix in ("B", "I") else None
            spans += [(name, index, index + 1)] if prefix in ("B", "I") else []
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
    counts: tuple[Counter[str], ...] = Counter(), Counter(), Counter()  # as the fields of `Counts`
    for number, (gold_tags, tags) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(gold_tags) != len(tags):
            raise UserError(f"sentence {number} has {len(gold_tags)} tags and {len(tags)} were predicted")
        true_spans, spans = set(extract_spans(gold_tags)), set(extract_spans(tags))
        for counter, group in zip(counts, (true_spans, spans, true_spans & spans), strict=True):
            counter.update(span[0] for span in group)
    by_class = {name: Counts(*(counter[name] for counter in counts)) for name in sorted({*counts[0], *counts[1]})}
    return Counts(*(counter.total() for counter in counts)), by_class


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


def confusion_matrix(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) counts: rows are the true classes, columns the predicted ones. Ids from 0 to `num_classes` - 1."""
    pairs = np.asarray(gold, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def accuracy(counts_CC: np.ndarray) -> float:
    """Percentage on the diagonal; 0 without counts."""
    return 100.0 * float(np.trace(counts_CC)) / max(int(counts_CC.sum()), 1)


def per_class_counts(counts_CC: np.ndarray, names: Sequence[str]) -> dict[str, Counts]:
    """The true, predicted and correct items of each class."""
    counts_C3 = np.stack([counts_CC.sum(1), counts_CC.sum(0), np.diag(counts_CC)], axis=1)
    return {name: Counts(*row) for name, row in zip(names, counts_C3.tolist(), strict=True)}


def macro_f1(counts_CC: np.ndarray) -> float:
    """The unweighted mean F1, 0 to 100, of the classes that occur or were predicted."""
    gold_or_predicted_C = counts_CC.sum(1) + counts_CC.sum(0)
    seen_C = gold_or_predicted_C > 0
    if not seen_C.any():
        return 0.0
    return float(np.mean(200.0 * np.diag(counts_CC)[seen_C] / gold_or_predicted_C[seen_C]))


def pearson(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation, -1 to 1; 0 if one of the two is constant."""
    gold, predicted = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (gold, predicted))
    norm = np.sqrt((gold**2).sum() * (predicted**2).sum())
    return float((gold * predicted).sum() / norm) if norm else 0.0


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks; ties share the mean of their ranks."""
    return pearson(_ranks(gold), _ranks(predicted))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[index]

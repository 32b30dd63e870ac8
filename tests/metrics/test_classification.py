"""Accuracy and F1 of classes, against their definitions counted item by item."""

import numpy as np
import pytest

from jaxlm.metrics.classification import accuracy, confusion_matrix, macro_f1, per_class_counts

NAMES = ("N", "NEU", "P", "never")


def drawn(seed: int, size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 3, size)
    return gold, np.where(rng.random(size) < 0.4, rng.integers(0, 3, size), gold)


def f1(gold: np.ndarray, said: np.ndarray, label: int) -> float:
    right = sum(a == b == label for a, b in zip(gold, said, strict=True))
    precision, recall = right / max((said == label).sum(), 1), right / max((gold == label).sum(), 1)
    return 100 * 2 * precision * recall / max(precision + recall, 1e-9)


def test_figures_are_their_definitions():
    gold, said = drawn(0)
    counts = confusion_matrix(gold, said, 4)
    assert counts.sum() == 200 and counts[1, 2] == sum((gold == 1) & (said == 2))
    assert accuracy(counts) == pytest.approx(100 * np.mean(gold == said))
    assert macro_f1(counts) == pytest.approx(np.mean([f1(gold, said, label) for label in range(3)]))
    for label, (name, found) in enumerate(per_class_counts(counts, NAMES).items()):
        assert name == NAMES[label] and found.f1 == pytest.approx(f1(gold, said, label))
        assert found.to_json()["support"] == (gold == label).sum()


def test_a_class_that_is_never_said_pulls_the_macro_average_down():
    gold, said = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert macro_f1(confusion_matrix(gold, said, 3)) == pytest.approx((2 * 100 * 0.75 / 1.75 + 0) / 2)


def test_of_nothing():
    counts = confusion_matrix(np.zeros(0, int), np.zeros(0, int), 3)
    assert accuracy(counts) == macro_f1(counts) == 0.0

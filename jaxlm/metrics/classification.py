"""Scores of classification (confusion matrix, accuracy, F1 by class and macro) and of regression (correlations)."""

from collections.abc import Sequence

import numpy as np

from jaxlm.metrics.spans import Counts


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

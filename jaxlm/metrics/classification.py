"""How well classes were told: accuracy, and precision, recall and F1 of each class and on average.

And numbers: how far they go up and down together with the true ones (Pearson), and in the same order (Spearman).
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.metrics.spans import Counts


def confusion_matrix(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) counts: rows are what is true, columns what was said. Ids from 0 to classes - 1."""
    pairs = np.asarray(gold, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def accuracy(counts_CC: np.ndarray) -> float:
    """Per cent on the diagonal; 0 of nothing."""
    return 100.0 * float(np.trace(counts_CC)) / max(int(counts_CC.sum()), 1)


def per_class_counts(counts_CC: np.ndarray, names: Sequence[str]) -> dict[str, Counts]:
    """What there was of each class, what was said, what was right."""
    gold, said, right = counts_CC.sum(1), counts_CC.sum(0), np.diag(counts_CC)
    return {name: Counts(int(gold[i]), int(said[i]), int(right[i])) for i, name in enumerate(names)}


def macro_f1(counts_CC: np.ndarray) -> float:
    """Mean F1, 0 to 100, of the classes that occur or were said: each counts alike, however rare it is."""
    gold, said, right = counts_CC.sum(1), counts_CC.sum(0), np.diag(counts_CC)
    seen = gold + said > 0
    return float(np.mean(200.0 * right[seen] / (gold + said)[seen])) if seen.any() else 0.0


def pearson(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Correlation, -1 to 1; 0 where one of the two never changes."""
    gold, predicted = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (gold, predicted))
    size = np.sqrt((gold**2).sum() * (predicted**2).sum())
    return float((gold * predicted).sum() / size) if size else 0.0


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Correlation of the ranks; equal numbers share the mean of their ranks."""
    return pearson(_ranks(gold), _ranks(predicted))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[which]

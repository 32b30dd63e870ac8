"""Smoothing of n-gram counts: Kneser-Ney, Witten-Bell and stupid back-off.

Interpolated smoothing takes a mass from the count c(h w) of every n-gram and distributes it by the shorter history h':

    p(w | h) = kept(h w) / S(h) + gamma(h) p(w | h'),    S(h) = sum_w kept(h w) + taken(h w),
    gamma(h) = sum_w taken(h w) / S(h)

down to the uniform distribution over all words, `<unk>` and `</s>` included, `<s>` and padding not. An n-gram that is
pruned has all its mass taken. In back-off form (`jaxlm.ngram.counts`) p is the probability of the n-gram, gamma the
weight of its history. Chen and Goodman 1998; modified Kneser-Ney as in Heafield et al. 2013 (KenLM's lmplz).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.errors import UserError
from jaxlm.ngram.counts import LOG_ZERO, BackoffLevel, BackoffTables, NGrams, to_tables


@dataclass(frozen=True)
class KneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3; Heafield et al. 2013, section 3).

    c(h w) is the number of different words before h w; for the longest n-grams, and those that begin with `<s>`, it is
    the number of occurrences. taken = D1, D2 or D3 for counts of 1, 2 and more; kept = c - taken. For each order

        Y = n1 / (n1 + 2 n2),    Dj = j - (j + 1) Y n(j+1) / nj,    nj = number of n-grams with c = j

    discount_fallback: D1, D2, D3 of an order whose nj do not determine them (small texts, or single characters).
    prune_thresholds: n-grams of order k that occur at most prune_thresholds[k-1] times are removed; higher orders use
        the last number.
    """

    discount_fallback: tuple[float, float, float] = (0.5, 1.0, 1.5)
    prune_thresholds: tuple[int, ...] = ()

    def estimate(self, ngrams: Sequence[NGrams]) -> BackoffTables:
        """Return the tables of the model. Raises UserError if `prune_thresholds` is not valid."""
        taken = []
        counts = adjusted_counts(ngrams)
        for count in counts:
            discount = np.array([0.0, *(estimate_discounts(count) or self.discount_fallback)])
            taken.append(discount[np.minimum(count, 3)])
        kept = [count - mass for count, mass in zip(counts, taken, strict=True)]
        return _interpolate(ngrams, kept, taken, thresholds_by_order(self.prune_thresholds, len(ngrams)))


@dataclass(frozen=True)
class WittenBell:
    """Interpolated Witten-Bell: kept = c(h w), taken = 1 for every n-gram seen (Witten and Bell 1991, method C).

    gamma(h) = T(h) / (c(h) + T(h)), where T(h) is the number of different words after h.
    prune_thresholds: see `KneserNey`.
    """

    prune_thresholds: tuple[int, ...] = ()

    def estimate(self, ngrams: Sequence[NGrams]) -> BackoffTables:
        """Return the tables of the model. Raises UserError if `prune_thresholds` is not valid."""
        kept = [level.count.astype(np.float64) for level in ngrams]
        thresholds = thresholds_by_order(self.prune_thresholds, len(ngrams))
        return _interpolate(ngrams, kept, [np.minimum(c, 1.0) for c in kept], thresholds)


@dataclass(frozen=True)
class StupidBackoff:
    """S(w | h) = c(h w) / c(h) if h w was seen, else alpha S(w | h') (Brants et al. 2007).

    The scores do not sum to one. An unseen word has the log score LOG_ZERO. An unseen history costs no alpha, because
    back-off tables have no entry for it; the ranking of the words after a history is unaffected.
    """

    alpha: float = 0.4

    def estimate(self, ngrams: Sequence[NGrams]) -> BackoffTables:
        """Return the tables of the model. Raises UserError unless 0 < alpha <= 1."""
        if not 0.0 < self.alpha <= 1.0:
            raise UserError(f"stupid back-off with alpha {self.alpha}: expected 0 < alpha <= 1 (model.smoothing.alpha)")
        levels, size = [], 1
        for n, level in enumerate(ngrams):
            total = np.bincount(level.parent, level.count, size)
            score = _safe_log(level.count / np.maximum(total, 1)[level.parent])
            size = len(level)
            backoff = np.zeros(size)
            if n + 1 < len(ngrams):
                backoff[ngrams[n + 1].parent] = math.log(self.alpha)
            levels.append(BackoffLevel(level.parent, level.word, score, backoff))
        return to_tables(levels)


Smoothing = KneserNey | WittenBell | StupidBackoff


def adjusted_counts(ngrams: Sequence[NGrams]) -> list[np.ndarray]:
    """Return the counts of Kneser-Ney: the number of different words before each n-gram.

    n-grams of the highest order and those that begin with `<s>`, which no word precedes, keep their occurrences.
    """
    counts = []
    for level, longer in itertools.pairwise(ngrams):
        before = np.bincount(longer.suffix, minlength=len(level))
        counts.append(np.where(level.starts_with_bos, level.count, before))
    return [*counts, ngrams[-1].count]


def estimate_discounts(count: np.ndarray) -> tuple[float, float, float] | None:
    """Return D1, D2, D3 of one order's adjusted counts, or None if they are undefined or negative."""
    n = np.bincount(np.minimum(count, 5), minlength=6)
    if not n[1:4].all():
        return None
    y = n[1] / (n[1] + 2 * n[2])
    one, two, three = (j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))
    return (one, two, three) if min(one, two, three) >= 0 else None


def thresholds_by_order(prune_thresholds: tuple[int, ...], orders: int) -> list[int]:
    """Return the threshold of every order. Raises UserError unless they start with 0, never fall, and fit the order."""
    if not prune_thresholds:
        return [0] * orders
    if prune_thresholds[0] != 0 or list(prune_thresholds) != sorted(prune_thresholds) or len(prune_thresholds) > orders:
        raise UserError(
            f"prune_thresholds={prune_thresholds}: expected at most {orders} numbers, one an order, that start with 0 "
            "(all words are kept) and never fall, as in (0, 0, 1): an n-gram that is kept needs its parts"
        )
    return [*prune_thresholds, *[prune_thresholds[-1]] * (orders - len(prune_thresholds))]


def _interpolate(
    ngrams: Sequence[NGrams],
    discounted_counts: Sequence[np.ndarray],
    discount_mass: Sequence[np.ndarray],
    threshold: Sequence[int],
) -> BackoffTables:
    """Apply the equation of this module's docstring order by order, and remove n-grams up to the threshold."""
    vocab = len(ngrams[0])
    outcome = ~np.isin(np.arange(vocab), ngrams[0].special.never_predicted)
    below, size, weight, levels = np.array([1 / outcome.sum()]), 1, [], []
    new_row = np.zeros(1, np.int32)  # the row of each n-gram of the order below after pruning
    for n, level in enumerate(ngrams):
        kept = level.count > threshold[n] if n and threshold[n] else np.ones(len(level), bool)
        keep = np.where(kept, discounted_counts[n], 0.0)
        take = np.where(kept, discount_mass[n], discounted_counts[n] + discount_mass[n])
        total, mass = np.bincount(level.parent, keep + take, size), np.bincount(level.parent, take, size)
        safe_total = np.where(total > 0, total, 1.0)
        gamma = np.where(total > 0, mass / safe_total, 1.0)
        p = keep / safe_total[level.parent] + gamma[level.parent] * below[level.suffix]
        if n == 0:
            p = np.where(outcome, p, 0.0)
        weight.append(gamma)
        levels.append((new_row[level.parent[kept]], level.word[kept], p[kept], kept))
        below, size, new_row = p, len(level), (np.cumsum(kept) - 1).astype(np.int32)
    # the weight of a history is the gamma of the order above
    rows = zip(levels, [*weight[1:], np.ones(size)], strict=True)
    return to_tables([BackoffLevel(parent, word, _safe_log(p), _safe_log(gamma[kept]))
                      for (parent, word, p, kept), gamma in rows])  # fmt: skip


def _safe_log(p: np.ndarray) -> np.ndarray:
    """Return the natural log, LOG_ZERO for 0."""
    return np.log(p, where=p > 0, out=np.full(len(p), LOG_ZERO))

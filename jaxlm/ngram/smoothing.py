"""From counts to probabilities: what an n-gram model says of words it has not seen after a history.

Interpolated smoothing takes a mass from the counts c(h w) of every n-gram and deals it out by the shorter history h':

    p(w | h) = kept(h w) / S(h) + gamma(h) p(w | h'),    S(h) = sum_w kept(h w) + taken(h w),
    gamma(h) = sum_w taken(h w) / S(h)

down to the uniform distribution over all words, `<unk>` and `</s>` included, `<s>` and padding not. An n-gram that is
pruned has all its mass taken. In back-off form (`jaxlm.ngram.backoff`) p is the probability of the n-gram, gamma the
weight of its history. Chen and Goodman 1998; modified Kneser-Ney as in Heafield et al. 2013 (KenLM's lmplz).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.errors import UserError
from jaxlm.ngram.backoff import LOG_ZERO, BackoffLevel, BackoffTables, to_tables
from jaxlm.ngram.counts import NGrams


@dataclass(frozen=True)
class KneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3; Heafield et al. 2013, section 3).

    c(h w) is the number of different words before h w; for the longest n-grams, and those that begin with `<s>`, it is
    the number of occurrences. taken = D1, D2 or D3 for counts of 1, 2 and more; kept is the rest. For each order

        Y = n1 / (n1 + 2 n2),    Dj = j - (j + 1) Y n(j+1) / nj,    nj = number of n-grams with c = j

    discount_fallback: D1, D2, D3 of an order whose nj do not give them (as in small texts, or among single characters).
    prune_thresholds: n-grams of order k that occur at most prune_thresholds[k-1] times are left out (orders
      not named: the last number).
    """

    discount_fallback: tuple[float, float, float] = (0.5, 1.0, 1.5)
    prune_thresholds: tuple[int, ...] = ()

    def estimate(self, ngrams: Sequence[NGrams]) -> BackoffTables:
        """The tables of the model. Raises UserError where `prune_thresholds` is not valid."""
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

    gamma(h) = T(h) / (c(h) + T(h)), where T(h) is the number of different words seen after h.
    prune_thresholds: see `KneserNey`.
    """

    prune_thresholds: tuple[int, ...] = ()

    def estimate(self, ngrams: Sequence[NGrams]) -> BackoffTables:
        """The tables of the model. Raises UserError where `prune_thresholds` is not valid."""
        kept = [level.count.astype(np.float64) for level in ngrams]
        return _interpolate(
            ngrams, kept, [np.minimum(c, 1.0) for c in kept], thresholds_by_order(self.prune_thresholds, len(ngrams))
        )


@dataclass(frozen=True)
class StupidBackoff:
    """S(w | h) = c(h w) / c(h) if h w was seen, else alpha S(w | h') (Brants et al. 2007).

    These are scores: they do not sum to one. A word that was never seen has the log score NEVER. A history that was
    never seen costs no alpha, as back-off tables have no place for it; the order of the words after a history is right.
    """

    alpha: float = 0.4

    def estimate(self, ngrams: Sequence[NGrams]) -> BackoffTables:
        """The tables of the model. Raises UserError unless 0 < alpha <= 1."""
        if not 0.0 < self.alpha <= 1.0:
            raise UserError(f"stupid back-off with alpha {self.alpha}: expected 0 < alpha <= 1 (model.smoothing.alpha)")
        levels, size = [], 1
        for n, here in enumerate(ngrams):
            total = np.bincount(here.parent, here.count, size)
            score = _safe_log(here.count / np.maximum(total, 1)[here.parent])
            size = len(here)
            history = np.zeros(size, bool)
            if n + 1 < len(ngrams):
                history[ngrams[n + 1].parent] = True
            levels.append(BackoffLevel(here.parent, here.word, score, np.where(history, math.log(self.alpha), 0.0)))
        return to_tables(levels)


Smoothing = KneserNey | WittenBell | StupidBackoff


def adjusted_counts(ngrams: Sequence[NGrams]) -> list[np.ndarray]:
    """The counts of Kneser-Ney: different words before the n-gram; occurrences if it is of the highest order or begins
    with `<s>`, before which there is no word."""
    counts = []
    for here, longer in zip(ngrams, [*ngrams[1:], None], strict=True):
        if longer is None:
            counts.append(here.count)
        else:
            counts.append(np.where(here.starts_with_bos, here.count, np.bincount(longer.suffix, minlength=len(here))))
    return counts


def estimate_discounts(count: np.ndarray) -> tuple[float, float, float] | None:
    """D1, D2, D3 of one order's adjusted counts; None where they have no value between 0 and 1, 2, 3."""
    n = np.bincount(np.minimum(count, 5), minlength=6)
    if not n[1:4].all():
        return None
    y = n[1] / (n[1] + 2 * n[2])
    one, two, three = (j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))
    return (one, two, three) if min(one, two, three) >= 0 else None


def thresholds_by_order(prune_thresholds: tuple[int, ...], orders: int) -> list[int]:
    """The threshold of every order. Raises UserError unless they start with 0, never fall, and fit the order."""
    if not prune_thresholds:
        return [0] * orders
    if prune_thresholds[0] != 0 or list(prune_thresholds) != sorted(prune_thresholds) or len(prune_thresholds) > orders:
        raise UserError(
            f"prune_thresholds={prune_thresholds}: expected at most {orders} numbers, one an order, that start "
            "with 0 (all words are kept) "
            "and never fall, as in (0, 0, 1): an n-gram that stays needs its parts"
        )
    return [*prune_thresholds, *[prune_thresholds[-1]] * (orders - len(prune_thresholds))]


def _interpolate(
    ngrams: Sequence[NGrams],
    discounted_counts: Sequence[np.ndarray],
    discount_mass: Sequence[np.ndarray],
    threshold: Sequence[int],
) -> BackoffTables:
    """The equation of this module's docstring, order by order; n-grams that occur too rarely are left out."""
    vocab = len(ngrams[0])
    outcome = ~np.isin(np.arange(vocab), ngrams[0].special.never_predicted)
    below, size, weight, levels = np.array([1 / outcome.sum()]), 1, [], []
    row_of = np.zeros(1, np.int32)  # of the order below: where each n-gram went when the rare ones had left
    for n, here in enumerate(ngrams):
        stays = here.count > threshold[n] if n and threshold[n] else np.ones(len(here), bool)
        keep, take = (
            np.where(stays, discounted_counts[n], 0.0),
            np.where(stays, discount_mass[n], discounted_counts[n] + discount_mass[n]),
        )
        total, mass = np.bincount(here.parent, keep + take, size), np.bincount(here.parent, take, size)
        gamma = np.where(total > 0, mass / np.where(total > 0, total, 1.0), 1.0)
        p = keep / np.where(total > 0, total, 1.0)[here.parent] + gamma[here.parent] * below[here.suffix]
        if n == 0:
            p = np.where(outcome, p, 0.0)
        weight.append(gamma)
        levels.append((row_of[here.parent[stays]], here.word[stays], p[stays], stays))
        below, size, row_of = p, len(here), (np.cumsum(stays) - 1).astype(np.int32)
    weight.append(np.ones(size))
    return to_tables(
        [
            BackoffLevel(parent, word, _safe_log(p), _safe_log(weight[n + 1][stays]))
            for n, (parent, word, p, stays) in enumerate(levels)
        ]
    )


def _safe_log(p: np.ndarray) -> np.ndarray:
    """Natural log, NEVER of 0."""
    return np.log(p, where=p > 0, out=np.full(len(p), LOG_ZERO))

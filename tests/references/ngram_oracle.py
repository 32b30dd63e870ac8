"""n-gram probabilities straight from the formulas: dictionaries, recursion, no arrays; slow and plain."""

from collections import Counter
from collections.abc import Callable, Sequence

BOS, EOS = 2, 3
Gram = tuple[int, ...]
Probability = Callable[[int, Gram], float]


def occurrences(rows: Sequence[Sequence[int]], order: int) -> Counter[Gram]:
    """Raw counts of all n-grams up to `order`."""
    counts: Counter[Gram] = Counter()
    for row in rows:
        for n in range(1, order + 1):
            counts.update(tuple(row[i : i + n]) for i in range(len(row) - n + 1))
    return counts


def sentences(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[BOS, *map(int, row), EOS] for row in rows]


def kneser_ney(rows: Sequence[Sequence[int]], order: int, words: Sequence[int], prune: Sequence[int]) -> Probability:
    """Modified Kneser-Ney of marked rows (Chen and Goodman 1998, equations 23 to 26), interpolated with 1 / |words|."""
    raw = occurrences(rows, order)

    def adjusted(gram: Gram) -> int:
        if len(gram) == order or gram[0] == BOS:
            return raw[gram]
        return sum(1 for longer in raw if longer[1:] == gram)

    count = {gram: adjusted(gram) for gram in raw if gram != (BOS,)}
    discount = {n: discounts([c for gram, c in count.items() if len(gram) == n]) for n in range(1, order + 1)}

    def p(word: int, history: Gram) -> float:
        after = {gram: c for gram, c in count.items() if gram[:-1] == history}
        below = p(word, history[1:]) if history else 1 / len(words)
        if not after:
            return below
        spared = {}
        for gram, c in after.items():
            rare = len(gram) > 1 and raw[gram] <= prune[len(gram) - 1]
            spared[gram] = 0.0 if rare else c - discount[len(gram)][min(c, 3) - 1]
        total = sum(after.values())
        return (spared.get((*history, word), 0.0) + (total - sum(spared.values())) * below) / total

    return p


def discounts(counts: Sequence[int]) -> list[float]:
    """D1, D2 and D3+, or 0.5, 1 and 1.5."""
    n = Counter(counts)
    if not (n[1] and n[2] and n[3]):
        return [0.5, 1.0, 1.5]
    y = n[1] / (n[1] + 2 * n[2])
    found = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
    return found if min(found) >= 0 else [0.5, 1.0, 1.5]


def witten_bell(rows: Sequence[Sequence[int]], order: int, words: Sequence[int]) -> Probability:
    """(c(h w) + T(h) p(w | h')) / (c(h) + T(h))."""
    raw = occurrences(rows, order)
    del raw[(BOS,)]

    def p(word: int, history: Gram) -> float:
        after = {gram: c for gram, c in raw.items() if gram[:-1] == history}
        below = p(word, history[1:]) if history else 1 / len(words)
        return (raw[(*history, word)] + len(after) * below) / (sum(after.values()) + len(after)) if after else below

    return p


def stupid_backoff(rows: Sequence[Sequence[int]], order: int, alpha: float) -> Probability:
    """c(h w) / c(h) if that is not 0, else alpha times the score after h'; nothing is charged for an unknown h."""
    raw = occurrences(rows, order)
    del raw[(BOS,)]

    def score(word: int, history: Gram) -> float:
        total = sum(c for gram, c in raw.items() if gram[:-1] == history)
        if total and raw[(*history, word)] or not history:
            return raw[(*history, word)] / total
        return (alpha if total else 1.0) * score(word, history[1:])

    return score

"""Scores of pairs (frame, trigger) as multisets of strings, and the agreement of two annotators, which bounds them."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from experiments.frame_semantics.names import ALL
from experiments.frame_semantics.sentences import SECOND, Pair, Sentence, read_sentences

PARTS = {"pair": lambda pair: pair, "frame": lambda pair: pair[0], "trigger": lambda pair: pair[1]}
MIN_COUNT = 5
"""Frames that occur less often have no part in the mean over frames."""


def score_pairs(
    predicted: Sequence[Sequence[Pair]], gold: Sequence[Sequence[Pair]]
) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 over all sentences, of pairs, frames and triggers, as multisets of strings."""
    scores = {}
    for name, part in PARTS.items():
        bags = [(Counter(map(part, ours)), Counter(map(part, theirs)))
                for ours, theirs in zip(predicted, gold, strict=True)]  # fmt: skip
        common = sum((ours & theirs).total() for ours, theirs in bags)
        precision, recall = (common / max(sum(bag[side].total() for bag in bags), 1) for side in (0, 1))
        scores[name] = precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)
    return scores


def frame_figures(
    predicted: Sequence[Sequence[Pair]], gold: Sequence[Sequence[Pair]], learned: Collection[str]
) -> dict[str, Any]:
    """All scores, for a JSON object: `score_pairs`, the mean F1 over frames, and the recall of pairs with frames that
    the training sentences have, and of those with other frames.
    """
    figures: dict[str, Any] = {
        name: dict(zip(("precision", "recall", "f1"), scores, strict=True))
        for name, scores in score_pairs(predicted, gold).items()
    }
    counts = Counter(frame for pairs in gold for frame, _ in pairs)
    common = [frame for frame, count in counts.items() if count >= MIN_COUNT]
    f1 = [score_pairs(_only({frame}, predicted), _only({frame}, gold))["pair"][2] for frame in common]
    figures["macro"] = {"frames": len(common), "f1": float(np.mean(f1)) if f1 else None}
    sides = {"seen": set(counts) & set(learned), "unseen": set(counts) - set(learned)}
    for name, frames in sides.items():
        kept = _only(frames, gold)
        figures[name] = {"pairs": sum(map(len, kept)), "recall": score_pairs(_only(frames, predicted), kept)["pair"][1]}
    return figures


def score_second_annotator(
    first: Iterable[Sentence], frames: Collection[str] = ALL
) -> tuple[int, dict[str, tuple[float, float, float]]]:
    """The number of sentences that the second annotator has in common with the first, and the scores on them."""
    pairs = {sentence.name: sentence.pairs for sentence in first}
    common = [sentence for sentence in read_sentences(SECOND) if sentence.name in pairs]
    predicted = [sentence.pairs if frames is ALL else _only(frames, [sentence.pairs])[0] for sentence in common]
    return len(common), score_pairs(predicted, [pairs[sentence.name] for sentence in common])


def _only(frames: Collection[str], answers: Sequence[Sequence[Pair]]) -> list[list[Pair]]:
    return [[pair for pair in pairs if pair[0] in frames] for pairs in answers]

"""Bracket scores of constituency trees, equal to EVALB's (Sekine and Collins 1997) without its limits of length.

A sentence without a word in the predicted tree is skipped, one with other words is an error: both are left out of the
sums. `f1_all` counts errors, with nothing matched, so that a parser that drops words cannot win.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal

from jaxlm.data.files import ReadStats, read_lines
from jaxlm.errors import UserError
from jaxlm.metrics.classification import Counts
from jaxlm.trees.reader import Trees, parse_tree
from jaxlm.trees.tree import TRACE, Tree, normalize

UNKNOWN_TAG = "XX"
"""The tag of a parser that predicts none: the gold tags take its place."""

LENGTHS = (0, 10, 20, 40)
"""The bounds of classes of length, in words, that have an F1 of their own."""


@dataclass(frozen=True)
class BracketParameters:
    """A parameter file of EVALB.

    delete: tags whose words are left out, labels whose brackets are. equal, equal_words: pairs that count as the same.
    quotes: a word that is deleted on one side only comes back if both tags are among them. cutoff: in words.
    """

    name: str = "collins"
    delete: tuple[str, ...] = ("TOP", TRACE, ",", ":", "``", "''", ".")
    equal: tuple[tuple[str, str], ...] = (("ADVP", "PRT"),)
    equal_words: tuple[tuple[str, str], ...] = ()
    quotes: tuple[str, ...] = ()
    labeled: bool = True
    cutoff: int = 40


COLLINS = BracketParameters()
NEW = BracketParameters("new", (*COLLINS.delete, "S1", "?", "!"), quotes=("``", "''", "POS"))
"""The parameters of new.prm."""

PARAMETERS: dict[str, BracketParameters] = {"collins": COLLINS, "new": NEW}


@dataclass
class SentenceScore:
    """Brackets (label, first word, word after the last) of a sentence, and the counts of its other figures."""

    status: Literal["valid", "error", "skipped"]
    length: int
    gold: Counter = field(default_factory=Counter)
    predicted: Counter = field(default_factory=Counter)
    crossing: int = 0
    words: int = 0
    tags: int = 0


def score_sentence(gold: Tree, predicted: Tree | None, parameters: BracketParameters = COLLINS) -> SentenceScore:
    """The score of one predicted tree; None has no words."""
    trees = [gold, predicted or Tree("")]
    leaves = [[leaf for leaf in tree.leaves() if leaf.label != TRACE] for tree in trees]
    length, same_number = len(leaves[0]), len(leaves[0]) == len(leaves[1])
    if same_number and all(leaf.label == UNKNOWN_TAG for leaf in leaves[1]):
        leaves[1] = [leaf._replace(label=true.label) for true, leaf in zip(*leaves, strict=True)]
    kept = [[leaf.label not in parameters.delete for leaf in side] for side in leaves]
    if not any(kept[1]):
        return SentenceScore("skipped", length)
    if same_number and sum(kept[0]) != sum(kept[1]):
        for place, pair in enumerate(zip(*leaves, strict=True)):
            if all(leaf.label in parameters.quotes for leaf in pair):
                kept[0][place] = kept[1][place] = kept[0][place] or kept[1][place]
    leaves = [[leaf for leaf, flag in zip(*side, strict=True) if flag] for side in zip(leaves, kept, strict=True)]
    same_word, same_tag = dict(parameters.equal_words), dict(parameters.equal)
    words = [[same_word.get(leaf.word or "", leaf.word) for leaf in side] for side in leaves]
    tags = [[same_tag.get(tag, tag) for tag, _, _ in side] for side in leaves]
    true, guessed = (Counter(_brackets(tree, flags, parameters)) for tree, flags in zip(trees, kept, strict=True))
    if words[0] != words[1]:
        return SentenceScore("error", length, true, guessed)
    right = sum(map(str.__eq__, *tags))
    return SentenceScore("valid", length, true, guessed, _count_crossing(true, guessed), len(words[0]), right)


def _brackets(tree: Tree, kept: list[bool], parameters: BracketParameters) -> Iterable[tuple[str, int, int]]:
    """The brackets that count; words have numbers without the deleted ones."""
    same, flags = dict(parameters.equal), iter(kept)
    number = [0, *accumulate(leaf.label != TRACE and next(flags) for leaf in tree.leaves())]
    for label, first, last in tree.spans():
        label = re.split("[-=]", label, maxsplit=1)[0]
        if number[first] < number[last] and label not in parameters.delete:
            yield same.get(label, label) if parameters.labeled else "", number[first], number[last]


def _count_crossing(gold: Counter, predicted: Counter) -> int:
    """The predicted brackets that overlap a gold one, neither inside of the other."""
    spans = {bracket[1:] for bracket in gold}
    return sum(
        count for (_, start, end), count in predicted.items()
        if any(first < start < last < end or start < first < end < last for first, last in spans)
    )  # fmt: skip


def score_trees(
    gold: Sequence[Tree], predicted: Sequence[Tree | None], parameters: BracketParameters = COLLINS, note: str = ""
) -> dict[str, Any]:
    """The figures of a corpus, in percent but for counts: sums come before ratios. `note` is part of the signature.

    Raises UserError if the numbers of trees differ.
    """
    if len(gold) != len(predicted):
        raise UserError(f"{len(gold):,} gold trees and {len(predicted):,} predicted ones: expected one for each")
    scores = [score_sentence(*pair, parameters) for pair in zip(gold, predicted, strict=True)]
    own_tags = any(leaf.label != UNKNOWN_TAG for tree in predicted if tree for leaf in tree.leaves())
    figures, cutoff = _summary(scores, own_tags), parameters.cutoff
    figures[f"length<={cutoff}"] = _summary([score for score in scores if score.length <= cutoff], own_tags)
    figures["by_length"] = {
        f"{low + 1}-{high or ''}": _summary([s for s in scores if low < s.length <= (high or s.length)], own_tags)["f1"]
        for low, high in pairwise((*LENGTHS, 0))
    }
    counts = _by_label([score for score in scores if score.status == "valid"])
    figures["labels"] = {label: count.to_json() for label, count in counts.items()}
    labeled, tags = parameters.name + ",unlabeled" * (not parameters.labeled), "predicted" if own_tags else "gold"
    return figures | {"signature": f"labels:{labeled}|tags:{tags}|len:all{note}|v:1"}


def score_tree_files(gold_file: str, predicted_file: str, parameters: BracketParameters, raw: bool) -> dict[str, Any]:
    """The figures of two files in step, of which the second may have a blank line for a missing tree."""
    gold, predicted = (list(Trees(file).read_trees(ReadStats())) for file in (gold_file, predicted_file))
    lines = list(read_lines(predicted_file))
    if len(gold) == len(lines) != len(predicted):
        predicted = [parse_tree(line) if line.strip() else None for line in lines]
    if not raw:
        gold, predicted = ([tree and normalize(tree) for tree in trees] for trees in (gold, predicted))
    return score_trees([tree or Tree("") for tree in gold], predicted, parameters, "|trees:raw" * raw)


def _summary(scores: list[SentenceScore], own_tags: bool) -> dict[str, Any]:
    valid = [score for score in scores if score.status == "valid"]
    number = max(len(valid), 1)
    counts, with_errors = _sum(valid), _sum(scores)
    figures = {"f1": counts.f1, "recall": counts.recall, "precision": counts.precision, "f1_all": with_errors.f1}
    figures["complete_match"] = 100 * sum(score.gold == score.predicted for score in valid) / number
    figures["mean_crossing"] = sum(score.crossing for score in valid) / number
    figures["no_crossing"] = 100 * sum(score.crossing == 0 for score in valid) / number
    figures["two_or_less_crossing"] = 100 * sum(score.crossing <= 2 for score in valid) / number
    if own_tags:
        figures["tagging_accuracy"] = 100 * sum(s.tags for s in valid) / max(sum(s.words for s in valid), 1)
    status = Counter(score.status for score in scores)
    sentences = {"sentences": len(scores), "errors": status["error"], "skipped": status["skipped"]}
    return {name: round(value, 2) for name, value in figures.items()} | sentences | {"brackets": vars(counts)}


def _sum(scores: Iterable[SentenceScore]) -> Counts:
    counts = [astuple(count) for count in _by_label(scores).values()]
    return Counts(*map(sum, zip(*counts, strict=True)))


def _by_label(scores: Iterable[SentenceScore]) -> dict[str, Counts]:
    """Gold, predicted and matched brackets of each label; nothing matches in an error."""
    counters: tuple[Counter[str], ...] = Counter(), Counter(), Counter()
    for score in scores:
        matched = score.gold & score.predicted if score.status == "valid" else Counter()
        for counter, side in zip(counters, (score.gold, score.predicted, matched), strict=True):
            for (label, _, _), count in side.items():
                counter[label] += count
    return {label: Counts(*(counter[label] for counter in counters)) for label in sorted(counters[0] | counters[1])}

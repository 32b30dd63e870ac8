"""Bracket scores: the sample of EVALB, cases by hand, a naive oracle, error and skipped sentences."""

import random
from dataclasses import replace

import pytest
from fixtures.random_trees import random_tree

from jaxlm.errors import UserError
from jaxlm.metrics.brackets import COLLINS, NEW, BracketParameters, score_sentence, score_trees
from jaxlm.trees.reader import parse_tree
from jaxlm.trees.tree import Tree, normalize

CASES = """
(TOP (S (NP (DT The) (NN dog)) (VP (VBD barked)) (. .))) | (TOP (S (NP (DT The) (NN dog) (VP (VBD barked))) (. .)))
(TOP (S (NP (NP (DT a) (NN b))) (VP (VBZ c)))) | (TOP (S (NP (DT a) (NN b)) (VP (VBZ c))))
(TOP (S (NP (PRP it)) (PRT (RP up)) (VP (VBZ x) (NP (DT a) (NN b))))) | \
(TOP (S (NP (PRP it)) (ADVP (RB up)) (VP (VBZ x) (NP (DT a)) (NN b))))
(TOP (S (NP (PRP it)) (VP (VBD was) (NP (NNP B) (NNP M) (PP (IN in) (NP (NNP R))))))) | \
(TOP (S (NP (PRP it)) (VP (VP (VBD was) (NP (NNP B) (NNP M))) (PP (IN in) (NP (NNP R))))))
(TOP (FRAG (. .) (. .))) | (TOP (FRAG (. .) (. .)))
(TOP (S (NP-SBJ-1 (PRP it)) (VP (VBZ is) (SBAR (-NONE- 0) (S (-NONE- *T*-1)))))) | (TOP (S (NP (PRP it)) (VP (VBZ is))))
( (S (NP (PRP it)) (VP (VBZ is)))) | (TOP (S (NP (PRP it)) (VP (VBZ is))))
(TOP (S (NP (PRP it)) (VP (VBZ is) (POS ')))) | (TOP (S (NP (PRP it)) (VP (VBZ is) ('' '))))
"""
GOLD, PREDICTED = zip(*[map(parse_tree, line.split("|")) for line in CASES.strip().splitlines()], strict=True)
EXPECTED = [(2, 3, 3, 0, 3, 3), (3, 4, 3, 0, 3, 3), (4, 5, 5, 0, 4, 5), (5, 6, 7, 1, 6, 6), None, (3, 3, 3, 0, 2, 2),
            (3, 4, 3, 0, 2, 2), None]  # fmt: skip

SAMPLE = [
    ("valid", 4, 4, 4, 0, 4, "(S (A (P this)) (B (Q is) (A (R a) (T test))))"),
    ("valid", 3, 4, 4, 0, 4, "(S (A (P this)) (B (Q is) (C (R a) (T test))))"),
    ("valid", 4, 4, 4, 0, 3, "(S (A (P this)) (B (Q is) (A (R a) (U test))))"),
    ("valid", 3, 4, 4, 0, 3, "(S (C (P this)) (B (Q is) (A (R a) (U test))))"),
    ("valid", 3, 4, 4, 0, 4, "(S (A (P this)) (B (Q is) (R a) (A (T test))))"),
    ("valid", 2, 4, 3, 1, 4, "(S (A (P this) (Q is)) (A (R a) (T test)))"),
    ("valid", 1, 4, 1, 0, 4, "(S (P this) (Q is) (R a) (T test))"),
    ("valid", 0, 4, 0, 0, 4, "(TOP (P this) (Q is) (R a) (T test))"),
    ("valid", 4, 4, 5, 0, 4, "(S (A (P this)) (B (Q is) (A (A (R a) (T test)))))"),
    ("valid", 4, 4, 8, 0, 4, "(S (A (P this)) (B (Q is) (A (A (A (A (A (R a) (T test))))))))"),
    ("skipped", 0, 0, 0, 0, 0, ""),
    ("error", 0, 4, 5, 0, 0, "(S (A (P this)) (B (Q was) (A (A (R a) (T test)))))"),
    ("error", 0, 4, 5, 0, 0, "(S (A (P this)) (B (Q is) (U not) (A (A (R a) (T test)))))"),
    ("skipped", 0, 0, 0, 0, 0, ""),
    ("valid", 4, 4, 4, 0, 4, "(TOP (S (A (P this)) (B (Q is) (A (R a) (T test)))))"),
    ("error", 0, 4, 4, 0, 0, "(S (A (P this)) (NONE *) (B (Q is) (A (R a) (T test))))"),
    ("error", 0, 4, 6, 0, 0, "(S (A (P this)) (S (NONE abc) (A (NONE *))) (B (Q is) (A (R a) (T test))))"),
    ("valid", 4, 4, 4, 0, 4, "(S (A (P this)) (B (Q is) (A (R a) (TT test))))"),
    ("valid", 4, 4, 4, 0, 4, "(S (A (P This)) (B (Q is) (A (R a) (T test))))"),
    ("error", 0, 4, 4, 0, 0, "(S (A (P That)) (B (Q is) (A (R a) (T test))))"),
]
"""The first 20 sentences of EVALB's sample, which is in the public domain, and its table."""
SENTENCE = SAMPLE[0][-1]


def figures(score):
    matched = (score.gold & score.predicted).total() if score.status == "valid" else 0
    return matched, score.gold.total(), score.predicted.total(), score.crossing, score.tags, score.words


def test_the_sample_of_evalb():
    sample = BracketParameters("sample", COLLINS.delete[:-1], (("T", "TT"),), (("This", "this"),))
    pairs = [(parse_tree(SENTENCE), parse_tree(text) if text else None) for *_, text in SAMPLE]
    for pair, (status, correct, gold, predicted, crossing, tags, _) in zip(pairs, SAMPLE, strict=True):
        score = score_sentence(*pair, sample)
        assert (score.status, *figures(score)[:5]) == (status, correct, gold, predicted, crossing, tags)
    again = [SENTENCE.replace("(A (P", "(A-SBJ-1 (P"), f"{SENTENCE[:-1]} (-NONE- *))", f"{SENTENCE[:-1]} (: *))"]
    long = f"(S {' '.join([SENTENCE[3:-1]] * 11)})"
    pairs += [(parse_tree(text), parse_tree(SENTENCE)) for text in again] + [(parse_tree(long), parse_tree(long))]
    # The sample has the traces and the colon on both sides.
    pairs[21:23] = [(gold, gold) for gold, _ in pairs[21:23]]
    result = score_trees(*zip(*pairs, strict=True), sample)
    assert (result["recall"], result["precision"], result["complete_match"]) == (87.76, 90.53, 52.94)
    assert (result["mean_crossing"], result["no_crossing"], result["tagging_accuracy"]) == (0.06, 94.12, 98.15)
    short = result["length<=40"]
    assert (short["recall"], short["precision"], short["complete_match"]) == (81.25, 85.25, 50.0)
    assert (short["sentences"], short["errors"], short["skipped"], short["tagging_accuracy"]) == (23, 5, 2, 96.88)


def test_cases_by_hand():
    for gold, predicted, expected in zip(GOLD, PREDICTED, EXPECTED, strict=True):
        score = score_sentence(gold, predicted)
        assert score.status == "valid" and figures(score) == expected if expected else score.status != "valid"
    assert score_sentence(GOLD[4], PREDICTED[4]).status == "skipped"
    assert score_sentence(GOLD[7], PREDICTED[7]).status == "error"
    assert figures(score_sentence(GOLD[7], PREDICTED[7], NEW)) == (3, 3, 3, 0, 2, 3)
    assert figures(score_sentence(normalize(GOLD[6]), PREDICTED[6]))[:3] == (3, 3, 3)
    result = score_trees(GOLD, PREDICTED)
    assert (result["recall"], result["precision"], result["f1"]) == (80.0, 83.33, 81.63)
    assert (result["complete_match"], result["mean_crossing"], result["tagging_accuracy"]) == (16.67, 0.17, 95.24)
    assert result["signature"] == "labels:collins|tags:predicted|len:all|v:1"
    assert (result["errors"], result["skipped"]) == (1, 1) and result["f1_all"] == round(200 * 20 / (28 + 27), 2)


def test_gold_tags_take_the_place_of_unknown_ones():
    without = [parse_tree("(TOP (S (NP (XX The) (XX dog)) (VP (XX barked)) (XX .)))")]
    result = score_trees(GOLD[:1], without)
    assert result["f1"] == 100.0 and "tagging_accuracy" not in result and "|tags:gold|" in result["signature"]
    labeled = [parse_tree("(TOP (S (VP (XX The) (XX dog)) (VP (XX barked)) (XX .)))")]
    unlabeled = score_trees(GOLD[:1], labeled, replace(COLLINS, labeled=False))
    assert unlabeled["f1"] == 100.0 and "unlabeled" in unlabeled["signature"]
    assert score_trees(GOLD[:1], labeled)["f1"] == 66.67
    assert score_trees(GOLD[:1], [None])["skipped"] == 1 and score_trees([], [])["f1"] == 0.0
    with pytest.raises(UserError, match="expected one for each"):
        score_trees(GOLD, PREDICTED[:3])


def oracle(gold: Tree, predicted: Tree):
    """(matched, gold, predicted, crossing, tags) word by word, by lists; None unless the words are the same."""

    def read(tree: Tree):
        words, brackets = [], []

        def walk(node: Tree) -> None:
            if node.word is not None:
                if node.label not in COLLINS.delete:
                    words.append((node.word, node.label))
                return
            begin = len(words)
            place = len(brackets)
            brackets.append(None)
            for child in node.children:
                walk(child)
            brackets[place] = (node.label.split("-")[0].split("=")[0], begin, len(words))

        walk(tree)
        merged = [("ADVP" if b[0] == "PRT" else b[0], *b[1:]) for b in brackets if b[1] < b[2] and b[0] != "TOP"]
        return words, merged

    (gold_words, gold_brackets), (words, brackets) = read(gold), read(predicted)
    if [word for word, _ in gold_words] != [word for word, _ in words] or not words:
        return None
    left, matched = list(gold_brackets), 0
    for bracket in brackets:
        if bracket in left:
            left.remove(bracket)
            matched += 1
    crossing = sum(any(a < c < b < d or c < a < d < b for _, a, b in gold_brackets) for _, c, d in brackets)
    tags = sum(a[1] == b[1] for a, b in zip(gold_words, words, strict=True))
    return matched, len(gold_brackets), len(brackets), crossing, tags


def variant(rng: random.Random, tree: Tree) -> Tree:
    """Another tree over the same words, now and then with another tag or word."""
    leaves = iter(
        leaf._replace(label=rng.choice([leaf.label] * 9 + ["X"]), word=rng.choice([leaf.word] * 60 + ["w9"]))
        for leaf in tree.leaves()
    )

    def fill(node: Tree) -> Tree:
        return next(leaves) if node.word is not None else node._replace(children=tuple(map(fill, node.children)))

    return fill(random_tree(rng, len(tree.leaves()), "A B PRT ADVP TOP A-SBJ".split()))


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_pairs_against_an_oracle(count):
    rng, valid = random.Random(2), 0
    for _ in range(count):
        gold = random_tree(rng, rng.randint(1, 12), "A B PRT ADVP TOP A-SBJ".split())
        predicted = variant(rng, gold)
        score, expected = score_sentence(gold, predicted), oracle(gold, predicted)
        assert (score.status == "valid") == (expected is not None)
        assert expected is None or figures(score)[:5] == expected, (str(gold), str(predicted))
        valid += expected is not None
    assert valid > count // 2

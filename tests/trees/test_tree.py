"""Trees in Penn brackets: any layout, the normal form, faults by their place; sequences and back."""

import os
import random
from pathlib import Path

import pytest
from fixtures.random_trees import random_tree

from jaxlm.data.files import ReadStats
from jaxlm.data.minilang.sources import MiniLangTrees
from jaxlm.errors import UserError
from jaxlm.trees.linearize import MAX_LEVEL, Brackets, Levels
from jaxlm.trees.reader import Trees, parse_tree
from jaxlm.trees.tree import Tree, escape, normalize, unescape

EXAMPLE = "(TOP (S (NP (DT The) (NN dog)) (VP (VBD barked)) (. .)))"


def write(folder: Path, text: str) -> str:
    (folder / "trees.ptb").write_text(text, encoding="utf-8")
    return str(folder / "trees.ptb")


def test_any_layout_is_read(tmp_path):
    """One tree over several lines, two on a line, without spaces, with Windows ends of lines."""
    text = "(ROOT\r\n  (NP\n    (NN Introduction)))( (S (VP (VB Go)))\n)(S1(X(UH a\u2009b)))"
    pairs = list(Trees(write(tmp_path, text)))
    assert [tree for _, tree in pairs] == [
        "(TOP (NP (NN Introduction)))", "(TOP (S (VP (VB Go))))", "(TOP (X (UH a\u2009b)))",
    ]  # fmt: skip
    assert [words for words, _ in pairs] == ["Introduction", "Go", "a_b"], "space inside a word is no end of a word"


def test_the_normal_form():
    raw = "( (S=1 (NP-SBJ=2 (-NONE- *)) (VP (VP (VBZ is)) (PRT|ADVP (RP up)) (-LRB- friend-LRB-s-RRB-)) (-NONE- 0)))"
    tree = normalize(parse_tree(raw))
    assert str(tree) == "(TOP (S (VP (VP (VBZ is)) (PRT|ADVP (RP up)) (-LRB- friend-LRB-s-RRB-))))"
    assert tree.text() == "is up friend(s)" and tree.spans()[0] == ("TOP", 0, 3)
    assert normalize(parse_tree("(TOP (NP (-NONE- *)))")) is None
    assert str(normalize(parse_tree("(NN dog)"))) == "(TOP (NN dog))"
    for word in (")NP", "XX", "(", "a(b)c", "-LRB-", "--"):
        assert "(" not in escape(word) and unescape(escape(word)) == unescape(word)
        assert parse_tree(str(Tree("TOP", (Tree("X", (), escape(word)),)))).leaves()[0].word == escape(word)


SPANISH = """\ufeff( (SENTENCE (S (sn.e-SUJ (-NONE- *0*)) (neg (rn No)) (grup.verb (vmip1s0 sé))
    (S.F.C-CD (conj.subord (cs si)) (S*C (sn-SUJ (-NONE- *T*-1)) (infinitiu (vmn0000 llegará))))) (fc ,) (fe ")
    (fpa -LRB-) (fpt -RRB-) (fp .)))\r\n
    (sentence (S+co% (grup.verb (vmip3s0 Llueve)) (coord (cc y/o)) (S/x (v nieva))) (fp …))
"""


def test_another_treebank(tmp_path):
    """Spanish labels with dots, stars and the marks of levels, a byte order mark, empty elements, functions."""
    pairs = list(Trees(write(tmp_path, SPANISH)))
    assert [words for words, _ in pairs] == ['No sé si llegará , " ( ) .', "Llueve y/o nieva …"]
    trees = [parse_tree(tree) for _, tree in pairs]
    assert [label for label, _, _ in trees[1].spans()] == "TOP sentence S+co% grup.verb coord S/x".split()
    assert "(S.F.C (conj.subord (cs si)) (S*C (infinitiu" in pairs[0][1] and "sn" not in pairs[0][1].split("-")[0]
    for lines in (Brackets(), Brackets("tag"), Levels()):
        assert [lines.decode(lines.encode(tree), tree.words()).spans() for tree in trees] == [t.spans() for t in trees]


def test_an_indented_tree_is_the_same_tree():
    text = parse_tree(EXAMPLE).indented()
    assert text == "(TOP\n  (S\n    (NP (DT The) (NN dog))\n    (VP (VBD barked))\n    (. .)))"
    assert parse_tree(text.replace("\n", " ")) == parse_tree(EXAMPLE) and parse_tree("(X a)").indented() == "(X a)"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("(S (X a)))", 10, "closing bracket without"),
        ("(S\n (X a", None, "ends inside a tree"),
        ("(S (X a b))", 9, "two words in a bracket"),
        ("(S (X a) b)", 10, "after a constituent"),
        ("(S a (X b))", 6, "after the word 'a'"),
        ("(S (X))", 6, "'X' has no word"),
        ("(S ())", 5, "empty bracket"),
        ("word (S (X a))", 1, "in no bracket"),
        ("(" * 300, 201, "more than 200 brackets"),
    ],
)
def test_faults_are_named_by_their_place_or_skipped(tmp_path, text, place, problem):
    file = write(tmp_path, f"{EXAMPLE}\n{text}")
    with pytest.raises(UserError, match=problem) as error:
        list(Trees(file))
    assert place is None or f"line 2, column {place}:" in str(error.value)
    stats = ReadStats()
    assert EXAMPLE in [tree for _, tree in Trees(file, on_bad_line="skip").read(stats)] and stats.skipped >= 1


def test_reading_continues_after_a_fault(tmp_path):
    file = write(tmp_path, f"(S (X a b) (Y c))\n{EXAMPLE} ) word\n{EXAMPLE}")
    stats = ReadStats()
    assert len(list(Trees(file, on_bad_line="skip").read(stats))) == 2 and stats.skipped == 3
    for text in ("", "\n \n"):
        with pytest.raises(UserError, match="empty|no tree"):
            list(Trees(write(tmp_path, text)))


@pytest.mark.parametrize("lines", [Brackets(), Brackets("tag"), Levels()], ids=["XX", "tag", "levels"])
def test_sequences_are_trees_again(lines):
    rng = random.Random(0)
    trees = [normalize(random_tree(rng, rng.randint(1, 9))) for _ in range(300)]
    trees += [
        normalize(parse_tree(text)) for text in ("(TOP (X a))", "(TOP (TOP (X a)))", "(TOP (X a) (X b))", EXAMPLE)
    ]
    trees += [normalize(parse_tree(tree)) for _, tree in MiniLangTrees("test", 20)]
    for tree in trees:
        words = [leaf.word for leaf in tree.leaves()]
        back = lines.decode(lines.encode(tree), words)
        assert back.spans() == tree.spans(), tree
        if lines == Brackets("tag"):
            assert back == tree


def test_the_sequences_of_the_papers():
    tree = parse_tree(EXAMPLE)
    assert " ".join(Brackets().encode(tree)) == "(S (NP XX XX )NP (VP XX )VP XX )S"
    assert Levels().encode(tree) == ["2/NP/", "-1/S/", "0/S/VP", "0//"]
    for symbols in ("(S XX", "(S XX )S XX", "(S )S", ")S", "(S XX )S (S XX )S", "XX XX", "(S XX XX XX )S"):
        assert Brackets().decode(symbols.split(), ["a", "b"]) is None


def test_any_labels_are_a_tree():
    rng = random.Random(1)
    for size in (1, 2, 7, 500):
        words = [f"w{i}" for i in range(size)]
        labels = [f"{rng.randint(-9, 9)}/{rng.choice(['A', 'B+C', ''])}/{rng.choice(['', 'D+E'])}" for _ in words]
        tree = Levels().decode(labels, words)
        assert [leaf.word for leaf in tree.leaves()] == words and parse_tree(str(tree)) == tree
    deep = Levels().decode(["1/A/"] * 999 + ["0//"], list("w" * 1000))
    assert max(end - start for _, start, end in deep.spans()) == 1000 and len(deep.spans()) <= MAX_LEVEL + 2


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("JAXLM_DATA"), reason="needs the treebanks under JAXLM_DATA")
@pytest.mark.parametrize("lines", [Brackets(), Levels()], ids=["XX", "levels"])
def test_treebanks_come_back(lines):
    for path in ("gum_const/gum.dev.ptb.gz", "craft_const/craft.dev.ptb.gz"):
        for text, line in Trees(path):
            tree = parse_tree(line)
            words = [leaf.word for leaf in tree.leaves()]
            assert str(tree) == line and len(text.split()) == len(words)
            assert lines.decode(lines.encode(tree), words).spans() == tree.spans()

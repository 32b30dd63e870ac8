"""Constituency trees in Penn brackets, such as (TOP (S (NP (DT The) (NN dog)) (VP (VBD barked)) (. .))).

A bracket has a label and constituents, or a tag and a word. Only brackets and ASCII white space end a label or a word;
round brackets in words are written -LRB- and -RRB-.
"""

import re
from typing import NamedTuple

from jaxlm.data.sources.conll import join_tokens

TOP = "TOP"
OUTER_LABELS = ("", "ROOT", "TOP", "S1", "VROOT")
TRACE = "-NONE-"
"""The tag of an empty element, which is not a word of the sentence."""

_WORD = re.compile(r"[^\t\n\v\f\r ]+")
BRACKET_NAMES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}


class Tree(NamedTuple):
    """A constituent with its children; or a leaf, whose label is the tag of `word`, written as in the file."""

    label: str
    children: tuple["Tree", ...] = ()
    word: str | None = None

    def __str__(self) -> str:
        return f"({self.label} {self.word or ' '.join(map(str, self.children))})"

    def leaves(self) -> list["Tree"]:
        """The words with their tags, from left to right."""
        return [self] if self.word is not None else [leaf for child in self.children for leaf in child.leaves()]

    def words(self) -> list[str]:
        """The words, as in the file."""
        return [leaf.word or "" for leaf in self.leaves()]

    def indented(self, depth: int = 0) -> str:
        """The tree in lines, a line for a constituent of words alone."""
        if all(child.word is not None for child in self.children):
            return "  " * depth + str(self)
        inner = "".join(f"\n{child.indented(depth + 1)}" for child in self.children)
        return f"{'  ' * depth}({self.label}{inner})"

    def spans(self) -> list[tuple[str, int, int]]:
        """(label, first word, word after the last) of each constituent, a constituent before its parts."""
        spans: list[tuple[str, int, int]] = []

        def walk(tree: Tree, start: int) -> int:
            if tree.word is not None:
                return start + 1
            place, end = len(spans), start
            spans.append((tree.label, start, end))
            for child in tree.children:
                end = walk(child, end)
            spans[place] = tree.label, start, end
            return end

        walk(self, 0)
        return spans

    def text(self) -> str:
        """The sentence for a model."""
        return model_text(self.words())


def model_text(words: list[str]) -> str:
    """Words between single spaces, their brackets unescaped, with "_" for white space inside a word."""
    return join_tokens(map(unescape, words))


def split_words(line: str) -> list[str]:
    """The words of a line between ASCII white space."""
    return _WORD.findall(line)


def escape(word: str) -> str:
    """The word as it is written in a tree."""
    return word.replace("(", "-LRB-").replace(")", "-RRB-")


def unescape(word: str) -> str:
    """The word with its brackets."""
    return re.sub("|".join(BRACKET_NAMES), lambda match: BRACKET_NAMES[match[0]], word) if "-" in word else word


def normalize(tree: Tree) -> Tree | None:
    """The tree under TOP without traces and what is empty then, None if nothing is left; and NP for NP-SBJ=2.

    A label that begins with a hyphen, as -LRB- does, stays.
    """

    def normal(tree: Tree) -> Tree | None:
        label = tree.label if tree.label[:1] in ("-", "=") else re.split("[-=]", tree.label, maxsplit=1)[0]
        children = tuple(filter(None, map(normal, tree.children)))
        return Tree(label, children, tree.word) if children or tree.word is not None and label != TRACE else None

    is_outer = tree.word is None and tree.label in OUTER_LABELS
    children = tuple(filter(None, map(normal, tree.children if is_outer else (tree,))))
    return Tree(TOP, children) if children else None

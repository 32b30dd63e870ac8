"""Trees as sequences that models predict, and back: brackets, and a label for each word.

(TOP (S (NP (DT The) (NN dog)) (VP (VBD barked)) (. .))) is (S (NP XX XX )NP (VP XX )VP XX )S, or 2/NP/ -1/S/ 0/S/VP 0//
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from jaxlm.data.sources.base import Pairs
from jaxlm.trees.reader import parse_tree
from jaxlm.trees.tree import TOP, Tree

MAX_LEVEL = 100
"""The most constituents above two words that labels express; a further one is merged with the one around it."""


def _without_top(tree: Tree) -> Tree:
    child = tree.children[0]
    return child if tree.label == TOP != child.label and len(tree.children) == 1 and child.word is None else tree


def _with_top(tree: Tree) -> Tree:
    return tree if tree.label == TOP and tree.word is None else Tree(TOP, (tree,))


@dataclass(frozen=True)
class Brackets:
    """Labeled brackets, and "XX" or its tag for a word, without a TOP of one constituent (Vinyals et al. 2015)."""

    leaf: Literal["XX", "tag"] = "XX"

    def encode(self, tree: Tree) -> list[str]:
        """The symbols of a normalized tree."""

        def walk(tree: Tree) -> list[str]:
            if tree.word is not None:
                return [tree.label if self.leaf == "tag" else "XX"]
            return [f"({tree.label}", *(symbol for child in tree.children for symbol in walk(child)), f"){tree.label}"]

        return walk(_without_top(tree))

    def decode(self, symbols: Iterable[str], words: Sequence[str]) -> Tree | None:
        """The tree over the words, None if there is none; the label of a constituent is that of its opening bracket."""
        stack: list[tuple[str, list[Tree]]] = [("", [])]
        left = iter(words)
        for symbol in symbols:
            if symbol.startswith("("):
                stack.append((symbol[1:], []))
            elif symbol.startswith(")"):
                label, children = stack.pop()
                if not children or not stack:
                    return None
                stack[-1][1].append(Tree(label, tuple(children)))
            elif (word := next(left, None)) is None or len(stack) == 1:
                return None
            else:
                stack[-1][1].append(Tree(symbol, (), word))
        is_tree = len(stack) == len(stack[0][1]) == 1 and next(left, None) is None
        return _with_top(stack[0][1][0]) if is_tree else None


@dataclass(frozen=True)
class Levels:
    """A label for each word (Gómez-Rodríguez and Vilares 2018): the number of constituents that it shares with the next
    word, less that of the word before; the lowest of them; the chain over the word alone. Chains are joined by "+".

    Any sequence of labels is a tree: levels below 1 become 1, and neighbors on one level share a constituent.
    """

    def encode(self, tree: Tree) -> list[str]:
        """The labels of a normalized tree; a "/" or "+" in one of its own labels is written as %2F or %2B."""
        gaps: list[tuple[int, str]] = []  # between words: level, lowest constituent
        chains: list[str] = []

        def walk(tree: Tree, level: int, names: tuple[str, ...]) -> None:
            while tree.word is None and len(tree.children) == 1:
                names, tree = (*names, _quoted(tree.label)), tree.children[0]
            if tree.word is not None:
                chains.append("+".join(names))
                return
            name = "+".join((*names, _quoted(tree.label)))
            for number, child in enumerate(tree.children):
                if number:
                    gaps.append((level, name))
                walk(child, level + 1, ())

        walk(_without_top(tree), 1, ())
        before = [0, *(level for level, _ in gaps)]
        parts = zip([*gaps, (before[-1], "")], before, chains, strict=True)
        return [f"{level - last}/{name}/{chain}" for (level, name), last, chain in parts]

    def decode(self, labels: Iterable[str], words: Sequence[str]) -> Tree:
        """The tree over the words, of any labels that `encode` gives for some trees."""
        stack: list[tuple[int, str, list[Tree]]] = []
        level, parts = 0, [label.split("/") for label in labels]
        for place, ((step, name, chain), word) in enumerate(zip(parts, words, strict=True)):
            node = _chain(chain, Tree("XX", (), word))
            level = min(max(level + int(step), 1), MAX_LEVEL) if place + 1 < len(words) else 0
            while stack and stack[-1][0] > level:
                _, label, children = stack.pop()
                node = _chain(label, *children, node)
            if stack and stack[-1][0] == level:
                stack[-1][2].append(node)
            elif level:
                stack.append((level, name or TOP, [node]))
        return _with_top(node)


def _quoted(label: str) -> str:
    return label.replace("%", "%25").replace("/", "%2F").replace("+", "%2B")


def _chain(labels: str, *children: Tree) -> Tree:
    """The constituents of a chain over the children; without labels, the only child."""
    for label in reversed(labels.split("+") if labels else ()):
        children = (Tree(unquote(label), children),)
    return children[0]


def level_labels(trees: Pairs) -> tuple[str, ...]:
    """The labels of all trees, for `TreeTagging` and its model."""
    return tuple(sorted({label for _, tree in trees for label in Levels().encode(parse_tree(tree))}))

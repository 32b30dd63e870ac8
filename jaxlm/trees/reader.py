"""The reader of trees in Penn brackets of any layout, and the source of their sentences."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, find_file, iter_lines, too_large
from jaxlm.data.sources.base import FilteredPairs
from jaxlm.errors import UserError
from jaxlm.trees.tree import Tree, normalize

MAX_DEPTH = 200
"""The most brackets within each other; those of treebanks have about 30."""

TOKEN = re.compile(r"[()]|[^()\t\n\v\f\r ]+")


@dataclass(frozen=True)
class Trees(FilteredPairs):
    """Pairs (words between single spaces, normalized tree on one line) of a file.

    `on_bad_line="skip"` continues after a fault with the next bracket that is in no other one.
    """

    path: str
    on_bad_line: OnBadLine = "error"
    max_text_bytes: int = MAX_TEXT_BYTES

    def describe(self) -> str:
        return f"{self.path}, words -> tree"

    def read_trees(self, stats: ReadStats) -> Iterator[Tree | None]:
        """The trees as they are in the file, None for a faulty one. Raises UserError."""
        lines = iter_lines(self.path, self.on_bad_line, stats, self.max_text_bytes)
        name, tree = find_file(self.path), None
        for tree in parse_trees(lines, str(name), self.on_bad_line, self.max_text_bytes):
            yield tree
        if tree is None and self.on_bad_line != "skip":
            raise UserError(f"{name} has no tree: expected brackets such as (TOP (S (NP (PRP it)) ...))")

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        for raw in self.read_trees(stats):
            tree = raw and normalize(raw)
            yield (tree.text(), str(tree)) if tree else (raw and "", raw and "")  # blank or unreadable


def parse_tree(line: str) -> Tree:
    """The tree on a line. Raises UserError if it is not exactly one."""
    trees = list(filter(None, parse_trees([line], "the tree")))
    if len(trees) != 1:
        raise UserError(f"{len(trees)} trees on a line, expected one: {line[:80]!r}")
    return trees[0]


def _read_token(brackets: list[list], token: str) -> Tree | None:
    """The tree that the token completes, if the open brackets are [label or None, children, word or None].

    Raises ValueError for a fault.
    """
    label, children, word = brackets[-1] if brackets else (None, [], None)
    if token == "(":
        if len(brackets) == MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} brackets within each other")
        if word is not None:
            raise ValueError(f"a bracket after the word {word!r}: expected words or constituents, not both")
        brackets.append([None, [], None])
        return None
    if not brackets:
        raise ValueError("a closing bracket without an opening one" if token == ")" else f"{token!r} is in no bracket")
    if token != ")":
        if children:
            raise ValueError(f"the word {token!r} after a constituent: expected words or constituents, not both")
        if word is not None:
            raise ValueError(f"two words in a bracket, {word!r} and {token!r}")
        brackets[-1][0 if label is None else 2] = token
        return None
    if not children and word is None:
        raise ValueError("an empty bracket" if label is None else f"the tag {label!r} has no word")
    brackets.pop()
    tree = Tree(label or "", tuple(children), word)
    return brackets[-1][1].append(tree) if brackets else tree


def parse_trees(
    lines: Iterable[str | None], name: str, on_bad_line: OnBadLine = "error", max_bytes: int = MAX_TEXT_BYTES
) -> Iterator[Tree | None]:
    """The trees in lines (None: one that cannot be read); for a fault None or, unless it is skipped, a UserError."""
    brackets: list[list] = []
    skipping, depth, size, number = False, 0, 0, 0
    for number, line in enumerate(lines, start=1):
        if (size := (size + len(line or "")) * bool(depth)) > max_bytes:
            raise UserError(f"{name}, line {number}: {too_large('the tree', max_bytes)}")
        if line is None:
            brackets, skipping = [], depth > 0
            yield None
        for match in TOKEN.finditer(line or ""):
            depth = max(depth + (match[0] == "(") - (match[0] == ")"), 0)
            try:
                if not skipping and (tree := _read_token(brackets, match[0])):
                    yield tree
            except ValueError as fault:
                if on_bad_line != "skip":
                    place = f"{name}, line {number}, column {match.start() + 1}"
                    raise UserError(f"{place}: {fault}. Fix it, or set on_bad_line='skip'.") from None
                brackets, skipping = [], True
                yield None
            skipping = skipping and depth > 0
    if brackets and on_bad_line != "skip":
        raise UserError(f"{name}, line {number}: the file ends inside a tree, {depth} brackets are open")
    if brackets:
        yield None

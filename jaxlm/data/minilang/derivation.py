"""Rules and derivations of a synchronous grammar; a derivation gives both sentences and both trees."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

ENGLISH, SPANISH = 0, 1


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule without variables. Side 0 is English, side 1 Spanish."""

    symbol: str
    fragments: tuple[str, str]  # brackets, words and slots, as in "(NP {0} {1})"
    slots: tuple[str, ...]  # the names of the slots
    children: tuple[str, ...]  # their symbols
    sentiment_signs: tuple[int, ...]  # factors of the slots' sentiments: 1, -1 under negation, 0 if not the speaker's
    sentiment: int  # of the rule itself
    polarity: int  # -1 negated, 1 the affirmative counterpart of a negated rule, 0 neither

    @cached_property
    def words(self) -> tuple[str, str]:
        """The fragments without the brackets, as in "{0} {1}"."""
        english, spanish = (" ".join(re.sub(r"\([A-Z]+ |\)", " ", side).split()) for side in self.fragments)
        return english, spanish

    @cached_property
    def tokens(self) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
        """Each side as a sequence of words and numbers of slots."""
        english, spanish = (
            tuple(int(item[1:-1]) if item[0] == "{" else item for item in side.split()) for side in self.words
        )
        return english, spanish


class Derivation:
    """A rule and the derivations of its slots. `words` are the two sentences before contraction, with extra spaces."""

    __slots__ = ("rule", "children", "words")

    def __init__(self, rule: Rule, children: tuple["Derivation", ...] = ()):
        self.rule = rule
        self.children = children
        self.words = rule.words
        if children:
            english, spanish = rule.words
            self.words = (
                english.format(*[child.words[ENGLISH] for child in children]),
                spanish.format(*[child.words[SPANISH] for child in children]),
            )

    def tree(self, side: int) -> str:
        """The bracketed tree of one side, with extra spaces as in `words`."""
        text = self.rule.fragments[side]
        return text.format(*[child.tree(side) for child in self.children]) if self.children else text

    def sentiment(self) -> int:
        """The sum of the sentiments in the derivation, each times the signs of the rules above it."""
        counted = zip(self.rule.sentiment_signs, self.children, strict=True)
        return self.rule.sentiment + sum(sign * child.sentiment() for sign, child in counted if sign)

    def polar_phrases(self, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], "Derivation"]]:
        """All phrases that are or can be negated, each with its path, the numbers of the slots that lead to it."""
        if self.rule.polarity:
            yield path, self
        for number, child in enumerate(self.children):
            yield from child.polar_phrases((*path, number))

    def replace(self, path: tuple[int, ...], new: "Derivation") -> "Derivation":
        """The derivation with the phrase `new` at the end of the path."""
        if not path:
            return new
        children = list(self.children)
        children[path[0]] = children[path[0]].replace(path[1:], new)
        return Derivation(self.rule, tuple(children))

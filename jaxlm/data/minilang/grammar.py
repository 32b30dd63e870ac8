"""A synchronous grammar with features: one derivation gives two sentences and two trees.

A rule rewrites one symbol on both sides at once (Aho and Ullman 1969; with tree fragments, Eisner 2003). It is a line
of its weight among the rules for the same symbol, the symbol, and English ~ Spanish:

    4  Nbar.G.N    {Adjective.G.N} {Noun.G.N} ~ {Noun} {Adjective}
    1  Place       (PP (P in|en) {NP.G.N})

A side has brackets, words, and slots in braces: a symbol, which later mentions abbreviate. A side that is left out is
the same, with the words behind the bars. Slots are drawn from left to right; `[Noun.G.N]` only is drawn. The sentiment
of a slot `{!X}` is not the speaker's. A weight with "+" marks a phrase that the rule with "-" in its place negates.

A symbol is a name and its features, separated by dots. A capital letter is a variable with one value in all of a rule,
which makes agreement. A slot that one side does not mention is deleted there (English "do", a Spanish clitic) and must
have a single expansion. The grammar has no recursion, so its language is finite.
"""

import itertools
import math
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

ENGLISH, SPANISH = 0, 1

MAX_POOLED_DERIVATIONS = 500
"""A symbol with at most as many derivations has all of them enumerated, and sampling one is a bisection."""


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule without variables."""

    symbol: str
    fragments: tuple[str, ...]  # of each side: brackets, words and slots, as in "(NP {0} {1})"
    children: tuple[str, ...]  # the symbols of the slots
    sentiment_signs: tuple[int, ...]  # factors of the slots' sentiments: 1, -1 under negation, 0 if not the speaker's
    sentiment: int  # of the rule itself
    polarity: int  # -1 negated, 1 the affirmative counterpart of a negated rule, 0 neither

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The fragments without the brackets, as in "{0} {1}"."""
        return tuple(" ".join(re.sub(r"\([A-Z]+ |\)", " ", side).split()) for side in self.fragments)

    @cached_property
    def tokens(self) -> tuple[tuple[str | int, ...], ...]:
        """Each side as a sequence of words and numbers of slots."""
        return tuple(tuple(int(item[1:-1]) if item[0] == "{" else item for item in side.split()) for side in self.words)


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
        return self.rule.fragments[side].format(*[child.tree(side) for child in self.children])

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


class SynchronousGrammar:
    """Rules with variables, and those without that are instantiated from them on demand.

    `start` is the start symbol; `domains` has the values of each variable.
    """

    def __init__(self, start: str, domains: Mapping[str, Sequence[str]]):
        self.start = start
        self.domains = domains
        self._templates: dict[str, list[tuple[int, Rule]]] = defaultdict(list)  # weighted; variables: at "name.*"
        self._options: dict[str, tuple[tuple[Rule, ...], ...]] = {}
        self._counts: dict[str, int] = {}
        self._pools: dict[str, tuple[list[Derivation], list[float]]] = {}

    def add_rules(self, rules: str) -> None:
        """Add rules, a line each; a line that begins with a space continues the one before it."""
        for weight, mark, lhs, text in re.findall(r"^(\d+)([+-]?) +(\S+) +(.*)", re.sub(r"\n +", " ", rules), re.M):
            self.add_rule(lhs, text, weight=int(weight), polarity=int(f"{mark}1") if mark else 0)

    def add_rule(self, lhs: str, text: str, *, weight: int = 1, sentiment: int = 0, polarity: int = 0) -> None:
        """Add a rule in the notation of this module; the other arguments as in `Rule`."""
        slots: dict[str, int] = {}

        def number_slot(match: re.Match[str]) -> str:
            bracket, mark, name = match.groups()
            known = [number for number, slot in enumerate(slots) if slot.startswith(name)]
            if not known:
                slots[name] = 0 if mark else -1 if polarity < 0 else 1
            return f"{{{known[0] if known else len(slots) - 1}}}" if bracket == "{" else ""

        sides = re.split(" *~ *", re.sub(r"([{[])(!?)([\w.]+)[]}]", number_slot, text))
        fragments = tuple(re.sub(r"([^ ]+)\|([^ )]+)", rf"\{side + 1}", sides[side - len(sides)]) for side in (0, 1))
        template = Rule(lhs, fragments, tuple(slots), tuple(slots.values()), sentiment, polarity)
        name, *features = lhs.split(".")
        self._templates[f"{name}.*" if self.domains.keys() & set(features) else lhs].append((weight, template))

    def _instantiate(self, template: Rule, symbol: str) -> Iterator[Rule]:
        """All rules of a template that rewrite the symbol: its free variables take every value."""
        bound: dict[str, str] = {}
        for name, value in zip(template.symbol.split("."), symbol.split("."), strict=True):
            if value not in self.domains.get(name, (name,)) or bound.setdefault(name, value) != value:
                return
        slots = [slot.split(".") for slot in template.children]
        free = sorted({part for slot in slots for part in slot} & self.domains.keys() - bound.keys())
        for values in itertools.product(*(self.domains[name] for name in free)):
            value_of = bound | dict(zip(free, values, strict=True))
            children = tuple(".".join(value_of.get(part, part) for part in slot) for slot in slots)
            yield replace(template, symbol=symbol, children=children)

    def weighted_rules(self, symbol: str) -> tuple[tuple[Rule, ...], ...]:
        """The rules for a symbol with derivations, in a group for each template, repeated by its weight."""
        if symbol not in self._options:
            groups: list[tuple[Rule, ...]] = []
            for weight, template in self._templates[f"{symbol.split('.')[0]}.*"] + self._templates[symbol]:
                rules = self._instantiate(template, symbol)
                productive = tuple(rule for rule in rules if all(map(self.count_derivations, rule.children)))
                groups += [productive] * weight if productive else []
            self._options[symbol] = tuple(groups)
        return self._options[symbol]

    def rules(self, symbol: str) -> list[Rule]:
        """The rules for a symbol, each once, in the order of their definition."""
        return [rule for group in dict.fromkeys(self.weighted_rules(symbol)) for rule in group]

    def count_derivations(self, symbol: str | None = None) -> int:
        """The exact number of derivations: the sum over rules of the product over slots."""
        symbol = self.start if symbol is None else symbol
        if symbol not in self._counts:
            products = (math.prod(map(self.count_derivations, rule.children)) for rule in self.rules(symbol))
            self._counts[symbol] = sum(products)
        return self._counts[symbol]

    def sample(self, symbol: str, draw: Callable[[], float]) -> Derivation:
        """A random derivation. `draw` returns uniform numbers in [0, 1), like `random.Random(seed).random`."""
        derivations, steps = self._pools.get(symbol) or self.enumerate_derivations(symbol)
        if derivations:
            return derivations[bisect(steps, draw())]
        options = self.weighted_rules(symbol)
        group = options[int(draw() * len(options))]
        rule = group[int(draw() * len(group))]
        return Derivation(rule, tuple([self.sample(child, draw) for child in rule.children]))

    def enumerate_derivations(self, symbol: str) -> tuple[list[Derivation], list[float]]:
        """All derivations of a symbol and the cumulative sum of their probabilities; none if they are too many."""
        if symbol not in self._pools:
            derivations: list[Derivation] = []
            shares: list[float] = []
            options = self.weighted_rules(symbol) if self.count_derivations(symbol) <= MAX_POOLED_DERIVATIONS else ()
            for rule, group_size in ((rule, len(group)) for group in options for rule in group):
                for row in itertools.product(*(self._derivation_probs(child) for child in rule.children)):
                    derivations.append(Derivation(rule, tuple([child for child, _ in row])))
                    shares.append(math.prod([share for _, share in row]) / group_size / len(options))
            self._pools[symbol] = derivations, [*itertools.accumulate(shares[:-1]), 1.0]
        return self._pools[symbol]

    def _derivation_probs(self, symbol: str) -> Iterator[tuple[Derivation, float]]:
        derivations, steps = self.enumerate_derivations(symbol)
        return zip(derivations, (b - a for a, b in itertools.pairwise([0.0, *steps])), strict=True)

    def unique_derivation(self, symbol: str) -> Derivation:
        """The derivation of a symbol that has exactly one."""
        (rule,) = self.rules(symbol)
        return Derivation(rule, tuple(map(self.unique_derivation, rule.children)))

    def parse(self, words: Sequence[str], side: int = ENGLISH) -> list[Derivation]:
        """All derivations of a sentence on one side; none if it is not in the language."""
        memo: dict[tuple[str, int], list[tuple[Derivation, int]]] = {}

        def parse_symbol(symbol: str, begin: int) -> list[tuple[Derivation, int]]:
            if (symbol, begin) not in memo:
                memo[symbol, begin] = []
                for rule in self.rules(symbol):
                    for slots, end in parse_items(rule, rule.tokens[side], begin):
                        children = [slots.get(n) or self.unique_derivation(c) for n, c in enumerate(rule.children)]
                        memo[symbol, begin].append((Derivation(rule, tuple(children)), end))
            return memo[symbol, begin]

        def parse_items(
            rule: Rule, items: Sequence[str | int], begin: int
        ) -> Iterator[tuple[dict[int, Derivation], int]]:
            if not items:
                yield {}, begin
            elif isinstance(first := items[0], int):
                for derivation, middle in parse_symbol(rule.children[first], begin):
                    for slots, end in parse_items(rule, items[1:], middle):
                        yield {first: derivation} | slots, end
            elif begin < len(words) and words[begin] == first:
                yield from parse_items(rule, items[1:], begin + 1)

        return [derivation for derivation, end in parse_symbol(self.start, 0) if end == len(words)]

    def move_negation(self, derivation: Derivation) -> Iterator[Derivation]:
        """All derivations with the negation moved from a negated phrase to an affirmative one."""
        for (path, phrase), (other_path, other) in itertools.combinations(derivation.polar_phrases(), 2):
            if phrase.rule.polarity != other.rule.polarity:
                changed = derivation.replace(path, self._toggle_negation(phrase))
                yield changed.replace(other_path, self._toggle_negation(other))

    def _toggle_negation(self, derivation: Derivation) -> Derivation:
        """The counterpart of a phrase with polarity: negated if it is affirmative, affirmative if it is negated."""
        rule = derivation.rule
        same, twins = ([r for r in self.rules(rule.symbol) if r.polarity == p] for p in (rule.polarity, -rule.polarity))
        twin = twins[same.index(rule)]
        old = {child.rule.symbol.split(".")[0]: child for child in derivation.children}
        children = []
        for symbol in twin.children:
            word = old.get(symbol.split(".")[0])
            if word:  # with other features, its rule has the same index among the rules of the other symbol
                other = self.rules(symbol)[self.rules(word.rule.symbol).index(word.rule)]
                children.append(Derivation(other, word.children))
            else:
                children.append(self.unique_derivation(symbol))
        return Derivation(twin, tuple(children))

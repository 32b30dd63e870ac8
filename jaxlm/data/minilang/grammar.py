"""A synchronous grammar with features: one derivation gives two sentences and two trees.

A rule rewrites one symbol on both sides at once; the slots of both sides have the same names (Aho and Ullman 1969; with
tree fragments, Eisner 2003). So an adjective can follow its noun on one side only:

    rule("Nbar.G.N", "{adjective} {noun}", "{noun} {adjective}", {"adjective": "Adjective.G.N", "noun": "Noun.G.N"})

A symbol is a name and its features, separated by dots. A capital letter is a variable with one value in all of a rule,
which makes agreement. A slot that one side does not mention is deleted there (English "do", a Spanish clitic) and must
have a single expansion. The grammar has no recursion, so its language is finite.
"""

import itertools
import math
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.minilang.derivation import ENGLISH, Derivation, Rule

MAX_POOLED_DERIVATIONS = 500
"""A symbol with at most as many derivations has all of them enumerated, and sampling one is a bisection."""


@dataclass(frozen=True)
class Template:
    """A rule as written, with variables for features. Sentiments as in `Rule`; the sign is 0 for `muted_slot`."""

    lhs: tuple[str, ...]
    fragments: tuple[str, str]
    slots: Mapping[str, tuple[str, ...]]
    weight: int
    sentiment: int = 0
    sentiment_sign: int = 1
    muted_slot: str = ""
    polarity: int = 0

    def instantiate(self, features: Sequence[str], domains: Mapping[str, Sequence[str]]) -> Iterator[Rule]:
        """All rules that rewrite the symbol with these features: its free variables take every value."""
        bound: dict[str, str] = {}
        if len(features) != len(self.lhs):
            raise ValueError(f"{'.'.join(features)} has {len(features)} parts, the rule for {self.lhs} {len(self.lhs)}")
        for name, value in zip(self.lhs, features, strict=True):
            if name not in domains and name != value:
                return
            if name in domains and (value not in domains[name] or bound.setdefault(name, value) != value):
                return
        free = sorted({part for slot in self.slots.values() for part in slot if part in domains} - set(bound))
        for values in itertools.product(*(domains[name] for name in free)):
            yield self._instantiate_rule(".".join(features), bound | dict(zip(free, values, strict=True)))

    def _instantiate_rule(self, symbol: str, bound: Mapping[str, str]) -> Rule:
        numbers = {name: f"{{{number}}}" for number, name in enumerate(self.slots)}
        english, spanish = (side.format(**numbers) for side in self.fragments)
        children = tuple(".".join(bound.get(part, part) for part in slot) for slot in self.slots.values())
        signs = tuple(0 if name == self.muted_slot else self.sentiment_sign for name in self.slots)
        return Rule(symbol, (english, spanish), tuple(self.slots), children, signs, self.sentiment, self.polarity)


class SynchronousGrammar:
    """Templates, and the rules that are instantiated from them on demand.

    Args:
      start: the start symbol.
      domains: the values of each variable.
    """

    def __init__(self, start: str, domains: Mapping[str, Sequence[str]]):
        self.start = start
        self.domains = domains
        self._templates: dict[str, list[Template]] = defaultdict(list)  # by symbol, or by "name.*" if with variables
        self._options: dict[str, tuple[tuple[Rule, ...], ...]] = {}
        self._counts: dict[str, int] = {}
        self._pools: dict[str, tuple[list[Derivation], list[float]]] = {}

    def add_rule(
        self,
        lhs: str,
        english: str,
        spanish: str,
        slots: Mapping[str, str] | None = None,
        *,
        weight: int = 1,
        **sentiment: Any,
    ) -> None:
        """Add a rule.

        Args:
          lhs: the symbol that it rewrites.
          english, spanish: brackets, words and slots in braces.
          slots: the symbol of each slot.
          weight: its relative frequency among the rules for the same symbol.
          sentiment: the fields `sentiment`, `sentiment_sign`, `muted_slot` and `polarity` of `Template`.
        """
        parts = {name: tuple(symbol.split(".")) for name, symbol in (slots or {}).items()}
        head = tuple(lhs.split("."))
        template = Template(head, (english, spanish), parts, weight, **sentiment)
        self._templates[f"{head[0]}.*" if self.domains.keys() & set(head) else lhs].append(template)

    def weighted_rules(self, symbol: str) -> tuple[tuple[Rule, ...], ...]:
        """The rules for a symbol with derivations, in a group for each template, repeated by its weight."""
        if symbol not in self._options:
            features = symbol.split(".")
            groups: list[tuple[Rule, ...]] = []
            for template in self._templates[f"{features[0]}.*"] + self._templates[symbol]:
                bound = template.instantiate(features, self.domains)
                productive = tuple(rule for rule in bound if all(map(self.count_derivations, rule.children)))
                groups += [productive] * template.weight if productive else []
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

        def complete(rule: Rule, slots: dict[int, Derivation]) -> Derivation:
            children = enumerate(rule.children)
            return Derivation(rule, tuple(slots.get(n) or self.unique_derivation(child) for n, child in children))

        def parse_symbol(symbol: str, begin: int) -> list[tuple[Derivation, int]]:
            if (symbol, begin) not in memo:
                memo[symbol, begin] = [
                    (complete(rule, slots), end)
                    for rule in self.rules(symbol)
                    for slots, end in parse_items(rule, rule.tokens[side], begin)
                ]
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
        old = dict(zip(rule.slots, derivation.children, strict=True))
        slots = zip(twin.slots, twin.children, strict=True)
        children = (
            self._inflect(old[name], symbol) if name in old else self.unique_derivation(symbol)
            for name, symbol in slots
        )
        return Derivation(twin, tuple(children))

    def _inflect(self, word: Derivation, symbol: str) -> Derivation:
        """The word with other features: its rule has the same index among the rules of the other symbol."""
        place = self.rules(word.rule.symbol).index(word.rule)
        return Derivation(self.rules(symbol)[place], word.children)

"""A text rule for one tokenizer, and the grammars of batches that it gives."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.data.text_rule import TextRule, mark_id
from jaxlm.data.token_automaton import TokenAutomaton, token_automaton
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.decode.automaton import Grammar, automata
from jaxlm.decode.quote import quotes
from jaxlm.tasks.translate import Search


@dataclass(frozen=True)
class CompiledRule:
    """A rule as a table over the ids of a tokenizer, or the ids of its marks."""

    automaton: TokenAutomaton | None = None
    marks: tuple[int, int] | None = None

    @property
    def least(self) -> int:
        """The tokens of the shortest text, EOS counted."""
        return self.automaton.least if self.automaton else 1

    def grammar(self, source_BS: Any, valid_BS: Any, limit_B: Any) -> Grammar:
        """For rows with these sources. Raises UserError where a limit has no room for any text."""
        if self.automaton:
            return automata([self.automaton], np.zeros(len(source_BS), np.int32), limit_B)
        return quotes(source_BS, valid_BS, *self.marks)


def compiled(rule: TextRule, tokenizer: Tokenizer) -> CompiledRule:
    """Raises UserError where the tokenizer can write no text of the rule, or has no such marks."""
    if rule.marks:
        opening, closing = (mark_id(tokenizer, mark) for mark in rule.marks)
        return CompiledRule(marks=(opening, closing))
    return CompiledRule(token_automaton(rule.automaton, tokenizer, rule.what))


@dataclass(frozen=True)
class ConstrainedSearch(Search):
    """A search whose answers follow a rule; an answer may be as long as the shortest text that does."""

    rule: CompiledRule = CompiledRule()

    @property
    def constrained(self) -> bool:
        """Whether `grammar` gives one."""
        return True

    def limit(self, source_tokens: Any) -> np.ndarray:
        """As `Search.limit`, and never too few tokens for any text."""
        return np.maximum(super().limit(source_tokens), self.rule.least)

    def grammar(self, source_BS: Any, valid_BS: Any, limit_B: Any) -> Grammar:
        """That of the rule."""
        return self.rule.grammar(source_BS, valid_BS, limit_B)


def constrained(search: Search, rule: TextRule, tokenizer: Tokenizer) -> ConstrainedSearch:
    """The same search under a rule."""
    return ConstrainedSearch(**vars(search), rule=compiled(rule, tokenizer))

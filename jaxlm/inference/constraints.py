"""Constraints on generated text, compiled for a tokenizer, and the grammars of batches that they give."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.copy_constraint import make_copy_constraint
from jaxlm.decode.grammar import TokenGrammar, batch_dfas
from jaxlm.grammar.constraint import Constraint, delimiter_id, require_writable
from jaxlm.grammar.token_dfa import TokenDFA, build_token_dfa
from jaxlm.inference.translate import Search


@dataclass(frozen=True)
class TokenConstraint:
    """A constraint as an automaton over the ids of a tokenizer, or the ids of its two delimiters."""

    dfa: TokenDFA | None = None
    delimiter_ids: tuple[int, int] | None = None

    @property
    def shortest_length(self) -> int:
        """Tokens of the shortest allowed text, EOS counted."""
        return self.dfa.shortest_length if self.dfa else 1

    def grammar(self, source_BS: Any, valid_BS: Any, limit_B: Any) -> TokenGrammar:
        """The grammar of rows with these sources. Raises UserError if a limit is too short for any allowed text."""
        if self.dfa:
            return batch_dfas([self.dfa], np.zeros(len(source_BS), np.int32), limit_B)
        return make_copy_constraint(source_BS, valid_BS, *self.delimiter_ids)


def compile_constraint(constraint: Constraint, tokenizer: Tokenizer, continues: bool = False) -> TokenConstraint:
    """The constraint on a text, or on what `continues` one: the space before a word is then part of it.

    Raises UserError if the tokenizer cannot write any allowed text, or lacks the delimiters.
    """
    if constraint.delimiters:
        opening, closing = (delimiter_id(tokenizer, mark) for mark in constraint.delimiters)
        return TokenConstraint(delimiter_ids=(opening, closing))
    if constraint.literals:
        require_writable(constraint.literals, tokenizer, constraint.description)
    description, limits = constraint.description, (constraint.require_all, constraint.max_states)
    if continues:
        description += " after the prompt (the space before its first word is part of the text)"
    return TokenConstraint(build_token_dfa(constraint.automaton, tokenizer, description, *limits, continues))


@dataclass(frozen=True)
class ConstrainedSearch(Search):
    """A search whose answers keep to a constraint; an answer may be as long as the shortest allowed text."""

    constraint: TokenConstraint = TokenConstraint()

    def max_answer_tokens(self, source_tokens: Any) -> np.ndarray:
        """As in `Search`, but always enough tokens for the shortest allowed text."""
        return np.maximum(super().max_answer_tokens(source_tokens), self.constraint.shortest_length)


def constrain_search(search: Search, constraint: Constraint, tokenizer: Tokenizer) -> ConstrainedSearch:
    """The same search under a constraint."""
    return ConstrainedSearch(**vars(search), constraint=compile_constraint(constraint, tokenizer))

"""Constraints on generated text, compiled for a tokenizer, and the grammars of batches that they give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.copy_constraint import make_copy_constraint
from jaxlm.decode.grammar import TokenGrammar, batch_dfa, batch_source_rows
from jaxlm.grammar.constraint import Constraint, delimiter_id, require_writable
from jaxlm.grammar.source_dfa import SourceTemplate
from jaxlm.grammar.token_dfa import TokenDFA, build_token_dfa
from jaxlm.grammar.tree_automaton import start_state
from jaxlm.inference.translate import Search


@dataclass(frozen=True)
class TokenConstraint:
    """A constraint over the ids of a tokenizer: an automaton, one with words of the source, or two delimiters."""

    dfa: TokenDFA | None = None
    template: SourceTemplate | None = None
    delimiter_ids: tuple[int, int] | None = None

    @property
    def shortest_length(self) -> int:
        """Tokens of the shortest allowed text, EOS counted; 1 if it depends on the source."""
        return self.dfa.shortest_length if self.dfa else 1

    def grammar(self, source_BS: Any, valid_BS: Any, limit_B: Any, sources: Sequence[str]) -> TokenGrammar:
        """The grammar of rows with these sources, as ids and as texts; a row of limit 0 is a filler.

        Raises UserError if a limit is too short for any allowed text.
        """
        if self.template:
            return batch_source_rows(self.template, sources, limit_B)
        if self.dfa:
            return batch_dfa(self.dfa, limit_B)
        return make_copy_constraint(source_BS, valid_BS, *self.delimiter_ids)

    def limits(self, limit_B: Any, sources: Sequence[str]) -> Any:
        """The limits of rows with these sources, of the limits of the search."""
        return limit_B


@dataclass(frozen=True)
class TreeConstraint(TokenConstraint):
    """Well-formed trees (`jaxlm.grammar.tree_automaton`) over exactly the words of each source, within 4 n + 24 ids."""

    def grammar(self, source_BS: Any, valid_BS: Any, limit_B: Any, sources: Sequence[str]) -> TokenGrammar:
        return batch_dfa(self.dfa, limit_B, [start_state(len(source.split())) for source in sources])

    def limits(self, limit_B: Any, sources: Sequence[str]) -> Any:
        return np.minimum(limit_B, [4 * len(source.split()) + 24 for source in sources]).astype(np.int32)


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
    if words := constraint.source_words:
        template = SourceTemplate(constraint.automaton, words, tokenizer, description, constraint.max_states, continues)
        return TokenConstraint(template=template)
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

"""Grammars inside jit: the ids that may come next in each beam slot, and the state of the slot after a token.

A grammar is an object with three methods (`TokenGrammar`). Its state is a pytree whose leaves begin with the axes B and
K, which the searches reorder with the hypotheses. `BatchedDFA` is the grammar of regular expressions, choices and JSON
schemas. An id is allowed only if the rest of the row's limit suffices to complete the text, EOS counted, so every text
is complete within the limit. Shape letters, on top of those of `jaxlm.types`: Q states, C classes of ids.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.errors import UserError
from jaxlm.grammar.token_dfa import TokenDFA, stack_token_dfas
from jaxlm.types import Array


class TokenGrammar(Protocol):
    """The interface of a constraint that depends on all tokens generated so far."""

    def initial_state(self, slots: int) -> Any:
        """The state before the first token; its leaves are [B, K, ...]."""

    def allowed_tokens(self, state: Any, remaining_B: Array, size: int) -> Array:
        """True_BKV on the allowed ids (of `size`), if the row has `remaining_B` tokens left, this one included."""

    def advance(self, state: Any, token_BK: Array) -> Any:
        """The state after one more token in each slot."""


@struct.dataclass
class BatchedDFA:
    """One table of one or several automata, and the start state of each row: a `TokenGrammar` with state_BK.

    class_V: the class of each id. next_QC: the state after an id of that class, -1 if it is forbidden. distance_Q: the
    least number of ids to the end of a text, EOS counted.
    """

    class_V: Array
    next_QC: Array
    distance_Q: Array
    start_B: Array

    def initial_state(self, slots: int) -> Array:
        """Every slot is in the start state of its row: state_BK."""
        return jnp.broadcast_to(self.start_B[:, None], (self.start_B.shape[0], slots))

    def allowed_tokens(self, state_BK: Array, remaining_B: Array, size: int) -> Array:
        """True_BKV; ids beyond those of the tokenizer are forbidden. Raises UserError if the model has fewer ids."""
        known = self.class_V.shape[0]
        if known > size:
            raise UserError(
                f"the grammar was made for a tokenizer of {known} ids, but the model has {size}: use its own tokenizer"
            )
        next_BKC = jnp.take(self.next_QC, state_BK, axis=0, mode="clip")
        distance_BKC = jnp.take(self.distance_Q, next_BKC, mode="clip")
        fits_BKC = (next_BKC >= 0) & (distance_BKC < remaining_B[:, None, None])
        allowed_BKV = jnp.take(fits_BKC, self.class_V, axis=2, mode="clip")  # classes -> ids
        return jnp.pad(allowed_BKV, ((0, 0), (0, 0), (0, size - known)))

    def advance(self, state_BK: Array, token_BK: Array) -> Array:
        """The next state_BK; it is unchanged after a forbidden id, which no live hypothesis contains."""
        next_BK = self.next_QC.at[state_BK, jnp.take(self.class_V, token_BK, mode="clip")].get(mode="clip")
        return jnp.where(next_BK >= 0, next_BK, state_BK)


def batch_dfas(dfas: Sequence[TokenDFA], dfa_index_B: Any, limit_B: Any) -> BatchedDFA:
    """Return the grammar in which row b follows `dfas[dfa_index_B[b]]` within limit_B[b] tokens.

    Raises UserError if a limit is too small for any text. A row with limit 0 stays empty and needs no text.
    """
    table, starts = stack_token_dfas(dfas)
    for index, limit in zip(np.asarray(dfa_index_B), np.asarray(limit_B), strict=True):
        if limit > 0:
            dfas[index].require_reachable(int(limit))
    start_B = np.asarray(starts, np.int32)[np.asarray(dfa_index_B)]
    return BatchedDFA(*map(jnp.asarray, (table.class_V, table.next_QC, table.distance_Q, start_B)))


def apply_grammar(logprob_BKV: Array, grammar: TokenGrammar | None, state: Any, remaining_B: Array) -> Array:
    """Set the step scores of forbidden ids to -inf, without renormalization."""
    if grammar is None:
        return logprob_BKV
    return jnp.where(grammar.allowed_tokens(state, remaining_B, logprob_BKV.shape[-1]), logprob_BKV, -jnp.inf)


def advance_grammar(grammar: TokenGrammar | None, state: Any, parent_BK: Array, token_BK: Array) -> Any:
    """Return the state of each new hypothesis: the state of its parent, advanced by its token."""
    if grammar is None:
        return None
    rows_B1 = jnp.arange(parent_BK.shape[0])[:, None]
    of_parent = jax.tree.map(lambda leaf: leaf.at[rows_B1, parent_BK].get(mode="clip"), state)
    return grammar.advance(of_parent, token_BK)

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
from jaxlm.grammar.source_dfa import SourceRow, SourceTemplate
from jaxlm.grammar.token_dfa import TokenDFA
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
    """The table of an automaton, and the start state of each row: a `TokenGrammar` with state_BK.

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
        next_BKC = jnp.take(self.next_QC, state_BK, axis=0, mode="clip")
        distance_BKC = jnp.take(self.distance_Q, next_BKC, mode="clip")
        fits_BKC = (next_BKC >= 0) & (distance_BKC < remaining_B[:, None, None])
        return _pad_ids(jnp.take(fits_BKC, self.class_V, axis=2, mode="clip"), size)  # classes -> ids

    def advance(self, state_BK: Array, token_BK: Array) -> Array:
        """The next state_BK; it is unchanged after a forbidden id, which no live hypothesis contains."""
        next_BK = self.next_QC.at[state_BK, jnp.take(self.class_V, token_BK, mode="clip")].get(mode="clip")
        return jnp.where(next_BK >= 0, next_BK, state_BK)


@struct.dataclass
class SourceGrammar:
    """A `TokenGrammar` with words of each row's source: a table that rows share, one of each row, and distance_BQ.

    An id has a transition in at most one of them. Each row has its own classes of ids.
    """

    class_V: Array
    next_QC: Array
    row_state_Q: Array
    class_BV: Array
    next_BRC: Array
    distance_BQ: Array
    first_inside: int = struct.field(pytree_node=False)  # R of the first state after the shared ones

    def initial_state(self, slots: int) -> Array:
        """Every slot is at the beginning of a text: state_BK."""
        return jnp.zeros((self.class_BV.shape[0], slots), jnp.int32)

    def _row_state(self, state_BK: Array) -> Array:
        inside_BK = state_BK - self.row_state_Q.shape[0]
        shared_BK = jnp.take(self.row_state_Q, state_BK, mode="clip")
        return jnp.where(inside_BK >= 0, inside_BK + self.first_inside, shared_BK)

    def allowed_tokens(self, state_BK: Array, remaining_B: Array, size: int) -> Array:
        """True_BKV; ids beyond those of the tokenizer are forbidden. Raises UserError if the model has fewer ids."""
        row_B1 = jnp.arange(state_BK.shape[0])[:, None]

        def fits(next_BKC: Array) -> Array:
            distance_BKC = self.distance_BQ.at[row_B1[:, :, None], next_BKC].get(mode="clip")
            return (next_BKC >= 0) & (distance_BKC < remaining_B[:, None, None])

        shared_BKC = fits(jnp.take(self.next_QC, state_BK, axis=0, mode="clip"))  # a state of a row: that of the end
        own_BKC = fits(self.next_BRC.at[row_B1, self._row_state(state_BK)].get(mode="clip"))
        allowed_BKV = jnp.take(shared_BKC, self.class_V, axis=2, mode="clip")
        allowed_BKV |= jnp.take_along_axis(own_BKC, self.class_BV[:, None, :], axis=2, mode="clip")
        return _pad_ids(allowed_BKV, size)

    def advance(self, state_BK: Array, token_BK: Array) -> Array:
        """The next state_BK; it is unchanged after a forbidden id."""
        row_B1 = jnp.arange(state_BK.shape[0])[:, None]
        shared_class_BK = jnp.take(self.class_V, token_BK, mode="clip")
        own_class_BK = self.class_BV.at[row_B1, token_BK].get(mode="clip")
        shared_BK = self.next_QC.at[state_BK, shared_class_BK].get(mode="clip")
        own_BK = self.next_BRC.at[row_B1, self._row_state(state_BK), own_class_BK].get(mode="clip")
        next_BK = jnp.maximum(shared_BK, own_BK)
        return jnp.where(next_BK >= 0, next_BK, state_BK)


def _pad_ids(allowed_BKV: Array, size: int) -> Array:
    """False for ids beyond those of the tokenizer. Raises UserError if the model has fewer ids."""
    known = allowed_BKV.shape[-1]
    if known > size:
        raise UserError(
            f"the grammar was made for a tokenizer of {known} ids, but the model has {size}: use its own tokenizer"
        )
    return jnp.pad(allowed_BKV, ((0, 0), (0, 0), (0, size - known)))


def batch_source_rows(template: SourceTemplate, sources: Sequence[str], limit_B: Any) -> SourceGrammar:
    """Return the grammar of rows with these sources. The sizes of its tables are powers of two: few programs.

    Raises UserError if a limit is too small for any text. A row with limit 0 stays empty and needs no text.
    """
    nothing = SourceRow(np.zeros_like(template.class_V), np.full((1, 1), -1), np.full(template.end + 1, -1))
    row_of = {source: template.row(source) for source, limit in zip(sources, limit_B, strict=True) if limit > 0}
    rows = [row_of[source] if limit > 0 else nothing for source, limit in zip(sources, limit_B, strict=True)]
    _require_limits(template.description, [int(row.distance_Q[0]) for row in rows], limit_B)
    states, classes = (1 << (max(row.next_RC.shape[axis] for row in rows) - 1).bit_length() for axis in (0, 1))
    next_BRC = np.full((len(rows), states, classes), -1, np.int32)
    distance_BQ = np.full((len(rows), template.end + 1 + states), np.iinfo(np.int32).max, np.int32)
    for index, row in enumerate(rows):
        next_BRC[index, : row.next_RC.shape[0], : row.next_RC.shape[1]] = row.next_RC
        reaching = row.distance_Q >= 0
        distance_BQ[index, : len(reaching)][reaching] = row.distance_Q[reaching]
    return SourceGrammar(
        class_V=jnp.asarray(template.class_V),
        next_QC=jnp.asarray(template.next_QC),
        row_state_Q=jnp.asarray(template.row_state_Q),
        class_BV=jnp.asarray(np.stack([row.class_V for row in rows])),
        next_BRC=jnp.asarray(next_BRC),
        distance_BQ=jnp.asarray(distance_BQ),
        first_inside=1 + len(template.entering),
    )


def batch_dfa(dfa: TokenDFA, limit_B: Any, start_B: Any = 0) -> BatchedDFA:
    """Return the grammar in which row b follows `dfa` from state start_B[b] within limit_B[b] tokens.

    Raises UserError if a limit is too small for any text. A row with limit 0 stays empty and needs no text.
    """
    start_B = np.broadcast_to(np.asarray(start_B, np.int32), len(limit_B))
    _require_limits(dfa.description, dfa.distance_Q[start_B].tolist(), limit_B)
    return BatchedDFA(*map(jnp.asarray, (dfa.class_V, dfa.next_QC, dfa.distance_Q, start_B)))


def _require_limits(description: str, shortest_lengths: Sequence[int], limit_B: Any) -> None:
    """Raises UserError if a limit above 0 is less than the length of the row's shortest text."""
    for length, limit in zip(shortest_lengths, np.asarray(limit_B), strict=True):
        if 0 < limit < length:
            raise UserError(
                f"{description}: the shortest text that matches has {length} tokens (EOS counted), and the limit "
                f"is {limit}: allow {length} or more, as in --max-tokens {length}"
            )


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

"""An automaton over bytes as one over the ids of a tokenizer: which ids may come next, and how far the end is.

Shape letters, on top of those of `jaxlm.types`: Q states, C classes of ids that no state tells apart, X bytes.
The last state is the end, which EOS reaches from every state in which the text is complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.token_bytes import OptionalBytes, escape_bytes, get_token_bytes
from jaxlm.errors import UserError
from jaxlm.grammar.byte_dfa import START_STATE, ByteDFA

FORBIDDEN = -1

HASH_SEEDS = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)


@dataclass(frozen=True)
class TokenDFA:
    """class_V, next_QC (FORBIDDEN: no text goes on like this), distance_Q, the start state, what it was made of.

    distance_Q is the least number of ids that end a text from a state, EOS counted: 0 at the end, 1 where EOS may come.
    """

    class_V: np.ndarray
    next_QC: np.ndarray
    distance_Q: np.ndarray
    start: int
    description: str

    @property
    def shortest_length(self) -> int:
        """The ids of the shortest text, EOS counted."""
        return int(self.distance_Q[self.start])

    def require_reachable(self, max_tokens: int) -> None:
        """Raises UserError where a limit leaves no room for any text."""
        if max_tokens < self.shortest_length:
            raise UserError(
                f"{self.description}: the shortest text that matches has {self.shortest_length} tokens (EOS "
                "counted), and the limit is "
                f"{max_tokens}: allow {self.shortest_length} or more, as in --max-tokens {self.shortest_length}"
            )


def build_token_dfa(automaton: ByteDFA, tokenizer: Tokenizer, description: str = "the expression") -> TokenDFA:
    """What `tokenizer` can write of the texts of `automaton`; `description` names them in messages.

    Raises UserError where that is no text at all.
    """
    found = get_token_bytes(tokenizer)
    if found.decoder_unescapes:
        automaton = _exclude_word(automaton, escape_bytes())
    first, later = _TokenTable(found.initial), _TokenTable(found.rest)
    states, digest_V = _reachable_states(automaton, first, later, tokenizer.special.eos)
    _, one_C, class_V = np.unique(digest_V, axis=0, return_index=True, return_inverse=True)
    next_QC = _transition_table(automaton, first, later, states, one_C, class_V.reshape(-1)[tokenizer.special.eos])
    distance_Q = distances_to_end(next_QC)
    if distance_Q[0] < 0:
        raise UserError(
            f"{description}: no text that matches can be written by this tokenizer (one of {len(class_V):,} ids, "
            f"{type(tokenizer).__name__}): its characters or words are not among those that it was fitted on"
        )
    return _prune(class_V.reshape(-1).astype(np.int32), next_QC, distance_Q, description)


class _TokenTable:
    """The bytes of the ids that add some, padded to byte_IX; `id_I` are those ids."""

    def __init__(self, texts: Sequence[OptionalBytes]):
        self.size = len(texts)
        self.id_I = np.asarray([index for index, text in enumerate(texts) if text is not None], np.int64)
        known = [texts[index] or b"" for index in self.id_I]
        self.length_I = np.asarray([len(text) for text in known], np.int64)
        width = max(1, int(self.length_I.max(initial=0)))
        joined = b"".join(text.ljust(width, b"\0") for text in known)
        self.byte_IX = np.frombuffer(joined, np.uint8).reshape(len(known), width)

    def step(self, automaton: ByteDFA, state: int) -> np.ndarray:
        """The state_V after each id from `state`; FORBIDDEN where there is none."""
        next_V = np.full(self.size, FORBIDDEN, np.int32)
        alive, state_I = np.arange(len(self.id_I)), np.full(len(self.id_I), state, np.int32)
        for column in range(self.byte_IX.shape[1] + 1):
            over = self.length_I[alive] == column
            next_V[self.id_I[alive[over]]] = state_I[over]
            alive, state_I = alive[~over], state_I[~over]
            if not len(alive):
                break
            state_I = automaton.next_QX[state_I, self.byte_IX[alive, column]]
            alive, state_I = alive[state_I >= 0], state_I[state_I >= 0]
        return next_V


def _transition_rows(automaton: ByteDFA, first: _TokenTable, later: _TokenTable, states: list[int]) -> np.ndarray:
    """For state number k: the beginning (0), or the byte state states[k - 1]."""
    return np.stack([first.step(automaton, START_STATE), *(later.step(automaton, state) for state in states)])


def _reachable_states(
    automaton: ByteDFA, first: _TokenTable, later: _TokenTable, eos: int
) -> tuple[list[int], np.ndarray]:
    """The byte states that whole ids reach, and two 64-bit digests_V2 of each id's column of the table."""
    states: list[int] = []
    known = np.zeros(len(automaton.accepting_Q), bool)
    digest_V2 = np.zeros((first.size, 2), np.uint64)
    row_V, done = first.step(automaton, START_STATE), 0
    while True:
        new = np.unique(row_V[row_V >= 0])
        new = new[~known[new]]
        known[new] = True
        states += new.tolist()
        digest_V2 += _hash_states(row_V, done)
        if done == len(states):
            break
        row_V, done = later.step(automaton, states[done]), done + 1
    digest_V2[eos] = HASH_SEEDS  # a column of its own
    return states, digest_V2


def _hash_states(row_V: np.ndarray, number: int) -> np.ndarray:
    """Two hashes_V2 of (row number, state), 0 where an id is forbidden (the finalizer of splitmix64)."""
    value_V = (np.uint64(number) << np.uint64(32)) + (row_V.astype(np.int64) + 1).astype(np.uint64)
    found = []
    for seed in HASH_SEEDS:
        hash_V = value_V * np.uint64(seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            hash_V = (hash_V ^ (hash_V >> np.uint64(shift))) * np.uint64(factor)
        found.append(np.where(row_V >= 0, hash_V ^ (hash_V >> np.uint64(31)), np.uint64(0)))
    return np.stack(found, axis=1)


def _transition_table(
    automaton: ByteDFA,
    first: _TokenTable,
    later: _TokenTable,
    states: list[int],
    representative_C: np.ndarray,
    eos: int,
) -> np.ndarray:
    """next_QC from one id of each class; the beginning is state 0, and the end the last one."""
    byte_QC = _transition_rows(
        automaton, _select_tokens(first, representative_C), _select_tokens(later, representative_C), states
    )
    place = np.full(len(automaton.accepting_Q) + 1, FORBIDDEN, np.int32)
    place[states] = np.arange(1, len(states) + 1)
    next_QC = place[byte_QC]  # FORBIDDEN is the last place
    accepting_Q = automaton.accepting_Q[[START_STATE, *states]]
    next_QC[:, eos] = np.where(accepting_Q, len(next_QC), FORBIDDEN)
    return np.concatenate([next_QC, np.full((1, len(representative_C)), FORBIDDEN, np.int32)])


def _select_tokens(ids: _TokenTable, representative_C: np.ndarray) -> _TokenTable:
    """The same with classes for ids."""
    place = np.full(ids.size, FORBIDDEN, np.int64)
    place[ids.id_I] = np.arange(len(ids.id_I))
    texts: list[OptionalBytes] = [
        None if place[one] < 0 else ids.byte_IX[place[one], : ids.length_I[place[one]]].tobytes()
        for one in representative_C
    ]
    return _TokenTable(texts)


def distances_to_end(next_QC: np.ndarray) -> np.ndarray:
    """The steps_Q from each state to the last one; -1 where there is no way."""
    size = len(next_QC)
    from_E, column_E = np.nonzero(next_QC >= 0)
    edge_E = np.unique(from_E.astype(np.int64) * size + next_QC[from_E, column_E])
    from_E, to_E = edge_E // size, edge_E % size
    distance_Q = np.full(size, -1, np.int32)
    distance_Q[-1], steps = 0, 0
    while True:
        reached = np.unique(from_E[distance_Q[to_E] == steps])
        reached = reached[distance_Q[reached] < 0]
        if not len(reached):
            return distance_Q
        steps += 1
        distance_Q[reached] = steps


def _prune(class_V: np.ndarray, next_QC: np.ndarray, distance_Q: np.ndarray, description: str) -> TokenDFA:
    """Without the states that reach no end; classes that have become equal are one."""
    kept = np.flatnonzero(distance_Q >= 0)
    place = np.full(len(next_QC) + 1, FORBIDDEN, np.int32)
    place[kept] = np.arange(len(kept))
    column_CQ, class_C = np.unique(place[next_QC[kept]].T, axis=0, return_inverse=True)
    class_V = class_C.reshape(-1)[class_V].astype(np.int32)
    return TokenDFA(class_V, np.ascontiguousarray(column_CQ.T), distance_Q[kept], 0, description)


def stack_token_dfas(automata: Sequence[TokenDFA]) -> tuple[TokenDFA, list[int]]:
    """Several automata in one table, and the start state of each. Raises UserError unless they share a vocabulary."""
    sizes = sorted({len(each.class_V) for each in automata})
    if len(sizes) != 1:
        raise UserError(f"automata of {sizes} ids: expected one or more, made with one tokenizer")
    class_CA, class_V = np.unique(np.stack([each.class_V for each in automata], axis=1), axis=0, return_inverse=True)
    tables, starts, before = [], [], 0
    for number, each in enumerate(automata):
        table = each.next_QC[:, class_CA[:, number]]
        tables.append(np.where(table >= 0, table + before, FORBIDDEN).astype(np.int32))
        starts.append(before + each.start)
        before += len(table)
    distance_Q = np.concatenate([each.distance_Q for each in automata])
    what = " and ".join(dict.fromkeys(each.description for each in automata))
    return TokenDFA(class_V.reshape(-1).astype(np.int32), np.concatenate(tables), distance_Q, 0, what), starts


def _exclude_word(automaton: ByteDFA, word: bytes) -> ByteDFA:
    """The texts of an automaton in which a word of distinct first byte does not occur."""
    size, length = len(automaton.accepting_Q), len(word)
    # State s * length + m: the automaton is in s and the last m bytes are the first m of the word.
    next_QX = np.full((size * length, 256), FORBIDDEN, np.int32)
    for matched in range(length):
        after_QX = np.where(automaton.next_QX >= 0, automaton.next_QX * length, FORBIDDEN)
        for byte in {word[0], word[matched]}:
            further = matched + 1 if byte == word[matched] else 1
            if further == length:
                after_QX[:, byte] = FORBIDDEN
            else:
                after_QX[:, byte] += np.where(after_QX[:, byte] >= 0, further, 0)
        next_QX[matched::length] = after_QX
    return ByteDFA(next_QX, np.repeat(automaton.accepting_Q, length))

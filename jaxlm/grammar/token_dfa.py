"""Conversion of an automaton over bytes to one over the ids of a tokenizer.

The last state is the end; EOS leads to it from every state in which the text is complete. Ids with equal transitions in
all states form a class. Shape letters, on top of those of `jaxlm.types`: Q states, C classes of ids, I the ids that add
bytes to a text, X bytes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.sentencepiece import ESCAPE_CHAR
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.errors import UserError
from jaxlm.grammar.byte_dfa import MAX_STATES, START_STATE, ByteDFA

CELLS_PER_STATE = 4000
"""Bound of the entries of a table, states times classes of ids, in proportion to the states that are allowed."""

FORBIDDEN = -1
"""The next state after an id that no text continues with."""

HASH_SEEDS = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)  # odd multipliers of the two hashes of a column


@dataclass(frozen=True)
class TokenDFA:
    """The class of each id, the next state by class, and distances. The start is state 0.

    distance_Q is the least number of ids that complete a text from a state, EOS counted: 0 at the end, 1 if EOS is
    allowed. `description` names the constraint in messages.
    """

    class_V: np.ndarray
    next_QC: np.ndarray
    distance_Q: np.ndarray
    description: str

    @property
    def shortest_length(self) -> int:
        """The number of ids of the shortest text, EOS counted."""
        return int(self.distance_Q[START_STATE])


def build_token_dfa(
    automaton: ByteDFA, tokenizer: Tokenizer, description: str = "the expression", require_all: bool = False,
    max_states: int = MAX_STATES, continues: bool = False,
) -> TokenDFA:  # fmt: skip
    """Return the automaton of the texts of `automaton` that the tokenizer can write, at the beginning or after a text.

    Raises UserError if there are none, with `require_all`, for a tree, if one of them is lacking, and if the table has
    more than CELLS_PER_STATE * `max_states` entries; `description` names the constraint in messages.
    """
    token_bytes = get_token_bytes(tokenizer)
    tree = automaton
    if token_bytes.decoder_unescapes:
        automaton = exclude_word(automaton, ESCAPE_CHAR.encode())
    copies = len(automaton.accepting_Q) // len(tree.accepting_Q)
    later = TokenTable(token_bytes.rest)
    first = later if continues else TokenTable(token_bytes.initial)
    states, digest_V2 = _reachable_states(automaton, first, later, tokenizer.special.eos)
    if require_all:
        tree.require_reached({START_STATE, *(state // copies for state in states)}, description)
    _, id_C, class_V = np.unique(digest_V2, axis=0, return_index=True, return_inverse=True)
    first, later = first.select(id_C), later.select(id_C)
    shape = len(states) + 2, len(id_C)
    check_size(shape, description, max_states)
    number = np.full(len(automaton.accepting_Q), FORBIDDEN, np.int32)
    number[states] = np.arange(1, len(states) + 1)
    next_QC = np.full(shape, FORBIDDEN, np.int32)  # row 0 is the beginning of a text, the last one the end, after EOS
    for row, state in enumerate([START_STATE, *states]):
        ids, reached = (later if row else first).step(automaton, state)
        next_QC[row, ids] = number[reached]
    accepting_Q = automaton.accepting_Q[[START_STATE, *states]]
    next_QC[:-1, class_V.reshape(-1)[tokenizer.special.eos]] = np.where(accepting_Q, len(next_QC) - 1, FORBIDDEN)
    from_E, column_E = np.nonzero(next_QC >= 0)
    distance_Q = shortest_distances(from_E, next_QC[from_E, column_E], len(next_QC), len(next_QC) - 1)
    if distance_Q[0] < 0:
        raise UserError(
            f"{description}: no text that matches can be written by this tokenizer ({type(tokenizer).__name__}, "
            f"{len(class_V):,} ids): its characters or words are not among those that it was fitted on"
        )
    return _prune(class_V.reshape(-1).astype(np.int32), next_QC, distance_Q, description)


def check_size(shape: tuple[int, ...], description: str, max_states: int) -> None:
    """Raises UserError for a table with more than CELLS_PER_STATE * `max_states` entries."""
    if shape[0] * shape[1] > CELLS_PER_STATE * max_states:
        raise UserError(
            f"{description}: a table of {shape[0]:,} states and {shape[1]:,} classes of ids is too large (at most "
            f"{CELLS_PER_STATE * max_states:,} entries): use a simpler constraint, or raise the limit (--max-states)"
        )


class TokenTable:
    """The bytes that each id adds to a text, padded to byte_IX; `id_I`: the ids that have such bytes, by the first."""

    def __init__(self, texts: Sequence[bytes | None]):
        self.texts, self.size = texts, len(texts)
        self.empty_ids = np.asarray([index for index, text in enumerate(texts) if text == b""], np.int64)
        named = [(text[:1], index) for index, text in enumerate(texts) if text]
        self.id_I = np.asarray([index for _, index in sorted(named)], np.int64)
        known = [texts[index] or b"" for index in self.id_I]
        self.length_I = np.asarray([len(text) for text in known], np.int64)
        width = max(1, int(self.length_I.max(initial=0)))
        joined = b"".join(text.ljust(width, b"\0") for text in known)
        self.byte_IX = np.frombuffer(joined, np.uint8).reshape(len(known), width)
        self.begin_X = np.searchsorted(self.byte_IX[:, 0], np.arange(257)).tolist()

    def select(self, ids: np.ndarray) -> "TokenTable":
        """Return the table of some ids."""
        return TokenTable([self.texts[index] for index in ids])

    def step(self, automaton: ByteDFA, state: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids that a text may continue with at `state`, and the state after each."""
        ids, states = [self.empty_ids], [np.full(len(self.empty_ids), state, np.int32)]
        cuts = np.flatnonzero(np.diff(automaton.next_QX[state] >= 0, prepend=False, append=False)).tolist()
        runs = [
            np.arange(self.begin_X[low], self.begin_X[high]) for low, high in zip(cuts[::2], cuts[1::2], strict=True)
        ]
        alive = np.concatenate([np.arange(0), *runs])
        state_I = automaton.next_QX[state, self.byte_IX[alive, 0]]
        for column in range(1, self.byte_IX.shape[1] + 1):
            complete = self.length_I[alive] == column
            ids.append(self.id_I[alive[complete]])
            states.append(state_I[complete])
            alive, state_I = alive[~complete], state_I[~complete]
            if not len(alive):
                break
            state_I = automaton.next_QX[state_I, self.byte_IX[alive, column]]
            alive, state_I = alive[state_I >= 0], state_I[state_I >= 0]
        return np.concatenate(ids), np.concatenate(states)


def _reachable_states(
    automaton: ByteDFA, first: TokenTable, later: TokenTable, eos: int
) -> tuple[list[int], np.ndarray]:
    """The byte states that whole ids reach, and two digests_V2 of each id's column: the table may not fit in memory."""
    states: list[int] = []
    known = np.zeros(len(automaton.accepting_Q), bool)
    digest_V2 = np.zeros((first.size, 2), np.uint64)
    for number, state in enumerate(itertools.chain([START_STATE], states)):  # `states` grows as it is read
        ids, reached = (later if number else first).step(automaton, state)
        new = np.unique(reached)
        new = new[~known[new]]
        known[new] = True
        states += new.tolist()
        digest_V2[ids] += hash_states(reached, number)
    digest_V2[eos] = HASH_SEEDS  # EOS is a class of its own
    return states, digest_V2


def hash_states(state_I: np.ndarray, number: int) -> np.ndarray:
    """Return two hashes_I2 of (row number, state) (the finalizer of splitmix64)."""
    value_I = (np.uint64(number) << np.uint64(32)) + (state_I.astype(np.int64) + 1).astype(np.uint64)
    hashes = []
    for seed in HASH_SEEDS:
        hash_I = value_I * np.uint64(seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            hash_I = (hash_I ^ (hash_I >> np.uint64(shift))) * np.uint64(factor)
        hashes.append(hash_I ^ (hash_I >> np.uint64(31)))
    return np.stack(hashes, axis=1)


def shortest_distances(from_E: np.ndarray, to_E: np.ndarray, size: int, end: int) -> np.ndarray:
    """Return the number of edges_Q from each of `size` nodes to `end` (breadth-first search); -1 if none lead there."""
    edge_E = np.unique(from_E.astype(np.int64) * size + to_E)
    from_E, to_E = edge_E // size, edge_E % size
    distance_Q = np.full(size, -1, np.int32)
    distance_Q[end], steps = 0, 0
    while True:
        reached = np.unique(from_E[distance_Q[to_E] == steps])
        reached = reached[distance_Q[reached] < 0]
        if not len(reached):
            return distance_Q
        steps += 1
        distance_Q[reached] = steps


def _prune(class_V: np.ndarray, next_QC: np.ndarray, distance_Q: np.ndarray, description: str) -> TokenDFA:
    """Remove the states that do not reach the end, and merge classes that have become equal."""
    kept = np.flatnonzero(distance_Q >= 0)
    if len(kept) == len(next_QC):
        return TokenDFA(class_V, next_QC, distance_Q, description)
    number = np.full(len(next_QC) + 1, FORBIDDEN, np.int32)  # FORBIDDEN, -1, reads the last entry
    number[kept] = np.arange(len(kept))
    next_QC = number[next_QC[kept]]
    digest_C2 = np.zeros((next_QC.shape[1], 2), np.uint64)
    for row, next_C in enumerate(next_QC):
        classes = np.flatnonzero(next_C >= 0)
        digest_C2[classes] += hash_states(next_C[classes], row)
    _, column_C, class_C = np.unique(digest_C2, axis=0, return_index=True, return_inverse=True)
    class_V = class_C.reshape(-1)[class_V].astype(np.int32)
    return TokenDFA(class_V, np.ascontiguousarray(next_QC[:, column_C]), distance_Q[kept], description)


def exclude_word(automaton: ByteDFA, word: bytes) -> ByteDFA:
    """Return the automaton of the texts without a word, whose first byte occurs in the word only once."""
    if (automaton.next_QX[:, word[0]] < 0).all():
        return automaton
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

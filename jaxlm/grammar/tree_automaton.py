"""The automaton of well-formed trees with a given number of words, as the table of `jaxlm.grammar.token_dfa`.

A state is (words that are left, depth of open brackets, 1 if the open one has a child or the tree is complete), so one
table serves sentences of all lengths, and only the start differs. All closing brackets are alike: the label of a
constituent is that of its opening, and no stack is needed. The last state is the end.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from jaxlm.data.tokenizers.base import NUM_SPECIALS
from jaxlm.grammar.token_dfa import FORBIDDEN, TokenDFA

MAX_WORDS, MAX_TREE_DEPTH = 512, 40
OPEN, CLOSE, LEAF, END = 1, 2, 3, 4
"""Classes of ids; 0 is that of all other ids."""


@lru_cache(maxsize=4)
def tree_automaton(symbols: Sequence[str], eos: int) -> TokenDFA:
    """The automaton over these symbols, whose ids follow the special ids. See `start_state`."""
    class_V = np.zeros(NUM_SPECIALS + len(symbols), np.int32)
    class_V[eos] = END
    class_V[NUM_SPECIALS:] = [{"(": OPEN, ")": CLOSE}.get(symbol[0], LEAF) for symbol in symbols]
    shape = MAX_WORDS + 1, MAX_TREE_DEPTH + 1, 2
    state_WDC = np.arange(np.prod(shape)).reshape(shape)
    end = state_WDC.size
    words, depth, child = (index.reshape(-1) for index in np.indices(shape))
    next_QC = np.full((end + 1, 5), FORBIDDEN, np.int32)

    def allow(kind: int, where: np.ndarray, *to: np.ndarray | int) -> None:
        states = np.flatnonzero(where)
        target = (np.broadcast_to(index, where.shape)[states] for index in to)
        next_QC[states, kind] = state_WDC[tuple(target)]

    allow(OPEN, (words > 0) & (depth < MAX_TREE_DEPTH) & ((depth > 0) | (child == 0)), words, depth + 1, 0)
    allow(LEAF, (words > 0) & (depth > 0), words - 1, depth, 1)
    allow(CLOSE, (child == 1) & ((depth > 1) | ((depth == 1) & (words == 0))), words, depth - 1, 1)
    next_QC[:end, END] = np.where((words == 0) & (depth == 0) & (child == 1), end, FORBIDDEN)
    distance_Q = np.append(words + depth + 1 + 2 * ((depth == 0) & (child == 0)), 0).astype(np.int32)
    return TokenDFA(class_V, next_QC, distance_Q, "a tree")


def start_state(words: int) -> int:
    """The state before a tree of this many words, up to MAX_WORDS."""
    return words * (MAX_TREE_DEPTH + 1) * 2

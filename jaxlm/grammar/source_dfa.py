"""Automata whose texts hold words of each row's own source: the shared part is compiled once, the words for each row.

In a byte automaton the byte HOLE, which UTF-8 never has, marks a JSON string of consecutive words of the source.
`SourceTemplate` holds the ids that stay outside of such strings; `SourceTemplate.row` adds, for one source, the ids
that enter one or are inside. Shape letters, on top of those of `jaxlm.grammar.token_dfa`: R states with ids of the row,
E edges between states.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.sentencepiece import ESCAPE_CHAR
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.errors import UserError
from jaxlm.grammar.byte_dfa import MAX_STATES, START_STATE, ByteDFA, strings_to_dfa
from jaxlm.grammar.token_dfa import FORBIDDEN, TokenTable, check_size, exclude_word, hash_states, shortest_distances

HOLE, QUOTE = 0xFF, ord('"')

Transitions = tuple[np.ndarray, np.ndarray]
"""Ids, and the state after each."""

NO_TRANSITIONS = np.zeros(0, np.int64), np.zeros(0, np.int64)
NO_TEXT = ByteDFA(np.full((1, 256), FORBIDDEN), np.zeros(1, bool))


def source_spans(source: str, words: int) -> list[str]:
    """All spans of at most `words` consecutive words, as they are in the source, each once."""
    places = [match.span() for match in re.finditer(r"\S+", source)]
    spans = (source[begin:end] for first, (begin, _) in enumerate(places) for _, end in places[first : first + words])
    return list(dict.fromkeys(spans))


@dataclass(frozen=True)
class SourceRow:
    """The ids of one source: class_V, next_RC, and distance_Q over the states of the template and those of the row."""

    class_V: np.ndarray
    next_RC: np.ndarray
    distance_Q: np.ndarray


class SourceTemplate:
    """The part of an automaton over ids that all sources share: class_V and next_QC.

    State 0 begins a text, s + 1 is byte state s, `end` follows EOS, and the states of a row follow `end`. `row_state_Q`
    is the index R of a shared state, 0 if no id leads from it into a string of the source.
    """

    def __init__(self, automaton: ByteDFA, words: int, tokenizer: Tokenizer, description: str = "the constraint",
                 max_states: int = MAX_STATES, continues: bool = False):  # fmt: skip
        token_bytes = get_token_bytes(tokenizer)
        if token_bytes.decoder_unescapes:
            automaton = exclude_word(automaton, ESCAPE_CHAR.encode())
        self.automaton, self.words, self.description, self.max_states = automaton, words, description, max_states
        self.later = TokenTable(token_bytes.rest)
        self.size = len(automaton.accepting_Q)
        self.end = self.size + 1
        self.entering: list[tuple[np.ndarray, TokenTable, int]] = []
        """Of each shared state with index R > 0: the ids that enter a string of the source, their bytes, byte state."""
        self.row_state_Q = np.zeros(self.end + 1, np.int32)
        first = self.later if continues else TokenTable(token_bytes.initial)
        shared = self._shared_transitions(first, tokenizer.special.eos)
        self.class_V, self.next_QC = self._classes([*shared, NO_TRANSITIONS])
        self.edge_2E = np.unique(_edges(shared, range(self.end)), axis=1)

    def _shared_transitions(self, first: TokenTable, eos: int) -> list[Transitions]:
        """The ids of each state that stay outside of strings of the source; fills `entering`."""
        entered_QX = np.vstack([self.automaton.next_QX, np.full((1, 256), self.size, np.int32)])
        entered_QX[entered_QX[:, HOLE] >= 0, QUOTE] = self.size  # a state that all bytes from here on lead to
        entered_QX[:, HOLE] = FORBIDDEN
        entered, shared = ByteDFA(entered_QX, self.automaton.accepting_Q), []
        starts = [(first, START_STATE), *((self.later, state) for state in range(self.size))]
        for number, (table, state) in enumerate(starts):
            ids, reached = table.step(entered, state)
            inside = reached == self.size
            ends = [eos] if self.automaton.accepting_Q[state] else []
            shared.append((np.append(ids[~inside], ends).astype(np.int64),
                           np.append(reached[~inside] + 1, [self.end for _ in ends]).astype(np.int64)))  # fmt: skip
            if inside.any():
                self.entering.append((ids[inside], table.select(ids[inside]), state))
                self.row_state_Q[number] = len(self.entering)
        return shared

    def row(self, source: str) -> SourceRow:
        """The ids of one source. Raises UserError if no text can be written with its words."""
        glued = self._fill_holes(source)
        inner = len(glued.accepting_Q) - self.size
        rows: list[Transitions] = [NO_TRANSITIONS]
        for ids, table, state in self.entering:
            index, reached = table.step(glued, state)
            rows.append((ids[index], reached))
        inside: dict[int, Transitions] = {}
        waiting = [reached for _, reached in rows]
        while waiting:
            for state in set(waiting.pop().tolist()) - inside.keys():
                if state >= self.size:
                    inside[state] = self.later.step(glued, state)
                    waiting.append(inside[state][1])
        rows += [inside.get(self.size + index, NO_TRANSITIONS) for index in range(inner)]
        rows = [(ids, reached + 1 + (reached >= self.size)) for ids, reached in rows]
        owners = [*np.flatnonzero(self.row_state_Q).tolist(), *range(self.end + 1, self.end + 1 + inner)]
        edge_2E = np.concatenate([self.edge_2E, _edges(rows[1:], owners)], axis=1)
        distance_Q = shortest_distances(edge_2E[0], edge_2E[1], self.end + 1 + inner, self.end)
        if distance_Q[START_STATE] < 0:
            raise UserError(f"{self.description}: no text can be written with the words of the source {source[:60]!r}")
        return SourceRow(*self._classes(rows), distance_Q)

    def _fill_holes(self, source: str) -> ByteDFA:
        """The byte automaton with the tree of the source's spans in the place of each edge HOLE."""
        texts = [json.dumps(span, ensure_ascii=False) for span in source_spans(source, self.words)]
        texts = [text for text in texts if not re.search(f"[\ud800-\udfff{ESCAPE_CHAR}]", text)]
        tree = strings_to_dfa(texts, self.max_states) if texts else NO_TEXT
        after_Q = self.automaton.next_QX[:, HOLE]
        parts = [self.automaton.next_QX.copy()]
        parts[0][:, HOLE] = FORBIDDEN
        for number, state in enumerate(np.flatnonzero(after_Q >= 0).tolist()):
            number_Q = np.arange(len(tree.accepting_Q), dtype=np.int32) + self.size + number * len(tree.accepting_Q)
            number_Q[tree.accepting_Q] = after_Q[state]  # the closing quote leads out of the string
            parts.append(np.where(tree.next_QX >= 0, number_Q[tree.next_QX], FORBIDDEN).astype(np.int32))
            parts[0][state, QUOTE] = parts[-1][START_STATE, QUOTE]
        accepting_Q = np.zeros(sum(map(len, parts)), bool)
        accepting_Q[: self.size] = self.automaton.accepting_Q
        return ByteDFA(np.concatenate(parts), accepting_Q)

    def _classes(self, rows: Sequence[Transitions]) -> tuple[np.ndarray, np.ndarray]:
        """The class of each id and the table of states by class; class 0 are the ids without transitions."""
        digest_V2 = np.zeros((self.later.size, 2), np.uint64)
        for row, (ids, after) in enumerate(rows):
            digest_V2[ids] += hash_states(after, row)
        used = np.unique(np.concatenate([ids for ids, _ in rows]))
        _, class_I = np.unique(digest_V2[used], axis=0, return_inverse=True)
        class_V = np.zeros(self.later.size, np.int32)
        class_V[used] = class_I.reshape(-1) + 1
        shape = len(rows), int(class_V.max()) + 1
        check_size(shape, self.description, self.max_states)
        next_RC = np.full(shape, FORBIDDEN, np.int32)
        for row, (ids, after) in enumerate(rows):
            next_RC[row, class_V[ids]] = after
        return class_V, next_RC


def _edges(rows: Sequence[Transitions], owners: Sequence[int]) -> np.ndarray:
    """All pairs (state, state after an id), as two rows."""
    begins = [np.full(len(after), owner) for owner, (_, after) in zip(owners, rows, strict=True)]
    return np.stack([np.concatenate(begins), np.concatenate([after for _, after in rows])]).astype(np.int64)

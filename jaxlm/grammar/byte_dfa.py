"""Finite automata that read bytes: of a set of strings, or of a graph of byte ranges made deterministic.

Shape letters here: Q states, X the 256 bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from jaxlm.errors import UserError
from jaxlm.grammar.utf8 import Range

START_STATE = 0

MAX_STATES = 20_000
"""States of a byte automaton: enough for `.{0,2000}`; `\\w{0,200}` has more, since letters of all scripts count."""

SIZE_HINT = "use smaller repeat counts, or sets such as [a-z] where \\w means the letters of all scripts"

ALWAYS, AT_BEGIN, AT_END = 0, 1, 2
"""When an edge without a byte may be taken: at any place, before the first byte, after the last."""


@dataclass(frozen=True)
class ByteDFA:
    """next_QX (int32; -1: no text goes on like this) and accepting_Q. The start is state 0."""

    next_QX: np.ndarray
    accepting_Q: np.ndarray

    def accepts(self, text: bytes) -> bool:
        """True if the whole text is one that the automaton describes."""
        state = START_STATE
        for byte in text:
            state = int(self.next_QX[state, byte])
            if state < 0:
                return False
        return bool(self.accepting_Q[state])


def strings_to_dfa(texts: Iterable[str]) -> ByteDFA:
    """The trie of some texts (half surrogates, which UTF-8 has not, never match). Raises UserError without one."""
    rows, accepting = [np.full(256, -1, np.int32)], [False]
    for text in texts:
        state = START_STATE
        for byte in text.encode(errors="surrogatepass"):
            if rows[state][byte] < 0:
                rows[state][byte] = len(rows)
                rows.append(np.full(256, -1, np.int32))
                accepting.append(False)
            state = int(rows[state][byte])
        accepting[state] = True
    if not any(accepting):
        raise UserError("there is no choice: expected at least one text to choose from")
    return ByteDFA(np.stack(rows), np.asarray(accepting))


@dataclass
class NFA:
    """A nondeterministic automaton under construction: edges with a byte range, and edges without a byte."""

    byte_edges: list[list[tuple[int, int, int]]] = field(default_factory=list)
    epsilon_edges: list[list[tuple[int, int]]] = field(default_factory=list)

    def add_node(self) -> int:
        """A new node. Raises UserError if there are too many."""
        if len(self.byte_edges) >= 10 * MAX_STATES:
            raise UserError(f"the expression is too large (over {len(self.byte_edges):,} nodes): {SIZE_HINT}")
        self.byte_edges.append([])
        self.epsilon_edges.append([])
        return len(self.byte_edges) - 1

    def add_epsilon_edge(self, start: int, end: int, condition: int = ALWAYS) -> None:
        """An edge that reads nothing."""
        self.epsilon_edges[start].append((condition, end))

    def add_sequences(self, start: int, end: int, sequences: Iterable[tuple[Range, ...]]) -> None:
        """Edges for sequences of byte ranges; those that end alike share their last nodes."""
        inner: dict[tuple[Range, ...], int] = {(): end}
        for whole in sequences:
            here = start
            for at, (low, high) in enumerate(whole, start=1):
                rest = whole[at:]
                known = rest in inner
                there = inner[rest] if known else inner.setdefault(rest, self.add_node())
                if (low, high, there) not in self.byte_edges[here]:
                    self.byte_edges[here].append((low, high, there))
                here = there
                if known:
                    break

    def epsilon_closure(self, nodes: Iterable[int], condition: int) -> frozenset[int]:
        """All nodes that can be reached without a byte, by edges of kind ALWAYS or `condition`."""
        found, waiting = set(nodes), list(nodes)
        while waiting:
            for kind, node in self.epsilon_edges[waiting.pop()]:
                if kind in (ALWAYS, condition) and node not in found:
                    found.add(node)
                    waiting.append(node)
        return frozenset(found)


def determinize(nfa: NFA, start: int, end: int) -> ByteDFA:
    """The subset construction. Raises UserError where it takes more than MOST_STATES states."""
    first = nfa.epsilon_closure([start], AT_BEGIN)
    number, waiting, rows = {first: START_STATE}, [first], []
    closures: dict[frozenset[int], frozenset[int]] = {}
    for nodes in waiting:
        row = np.full(256, -1, np.int32)
        for low, high, reached in _partition_bytes(nfa, nodes):
            if reached not in closures:
                closures[reached] = nfa.epsilon_closure(reached, ALWAYS)
            closed = closures[reached]
            if closed not in number:
                number[closed] = len(number)
                waiting.append(closed)
            row[low:high] = number[closed]
        rows.append(row)
        if len(number) > MAX_STATES:
            raise UserError(f"the expression is too large (over {MAX_STATES:,} states): {SIZE_HINT}")
    whole = nfa.epsilon_closure([start], AT_BEGIN) | {node for n in first for node in nfa.epsilon_closure([n], AT_END)}
    accepting = [end in nfa.epsilon_closure(nodes, AT_END) for nodes in number]
    accepting[START_STATE] = accepting[START_STATE] or end in whole
    return ByteDFA(np.stack(rows), np.asarray(accepting))


def _partition_bytes(nfa: NFA, nodes: frozenset[int]) -> Iterable[tuple[int, int, frozenset[int]]]:
    """(first byte, last byte + 1, nodes reached by any byte between), for the bytes that lead anywhere."""
    edges = [edge for node in nodes for edge in nfa.byte_edges[node]]
    cuts = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
    entering: dict[int, list[int]] = {}
    leaving: dict[int, list[int]] = {}
    for low, high, node in edges:
        entering.setdefault(low, []).append(node)
        leaving.setdefault(high + 1, []).append(node)
    count: dict[int, int] = {}
    for low, high in zip(cuts, cuts[1:], strict=False):
        for node in entering.get(low, ()):
            count[node] = count.get(node, 0) + 1
        for node in leaving.get(low, ()):
            count[node] -= 1
            if not count[node]:
                del count[node]
        if count:
            yield low, high, frozenset(count)

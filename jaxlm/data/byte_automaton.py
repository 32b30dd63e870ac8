"""Finite automata that read bytes: of a set of strings, or of a graph of byte ranges made deterministic.

Shape letters here: Q states, X the 256 bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from jaxlm.data.utf8 import Range
from jaxlm.errors import UserError

START = 0
MOST_STATES = 20_000
"""States of a byte automaton: enough for `.{0,2000}`; `\\w{0,200}` has more, since letters of all scripts count."""
SMALLER = "use smaller repeat counts, or sets such as [a-z] where \\w means the letters of all scripts"
ALWAYS, AT_BEGIN, AT_END = 0, 1, 2
"""When an edge without a byte may be taken: at any place, before the first byte, after the last."""


@dataclass(frozen=True)
class ByteAutomaton:
    """next_QX (int32; -1: no text goes on like this) and accepting_Q. The start is state 0."""

    next_QX: np.ndarray
    accepting_Q: np.ndarray

    def accepts(self, text: bytes) -> bool:
        """True if the whole text is one that the automaton describes."""
        state = START
        for byte in text:
            state = int(self.next_QX[state, byte])
            if state < 0:
                return False
        return bool(self.accepting_Q[state])


def automaton_of_strings(texts: Iterable[str]) -> ByteAutomaton:
    """The trie of some texts (half surrogates, which UTF-8 has not, never match). Raises UserError without one."""
    rows, accepting = [np.full(256, -1, np.int32)], [False]
    for text in texts:
        state = START
        for byte in text.encode(errors="surrogatepass"):
            if rows[state][byte] < 0:
                rows[state][byte] = len(rows)
                rows.append(np.full(256, -1, np.int32))
                accepting.append(False)
            state = int(rows[state][byte])
        accepting[state] = True
    if not any(accepting):
        raise UserError("there is no choice: expected at least one text to choose from")
    return ByteAutomaton(np.stack(rows), np.asarray(accepting))


@dataclass
class Graph:
    """A nondeterministic automaton under construction: edges with a byte range, and edges without a byte."""

    read: list[list[tuple[int, int, int]]] = field(default_factory=list)
    free: list[list[tuple[int, int]]] = field(default_factory=list)

    def node(self) -> int:
        """A new node. Raises UserError if there are too many."""
        if len(self.read) >= 10 * MOST_STATES:
            raise UserError(f"the expression is too large (over {len(self.read):,} nodes): {SMALLER}")
        self.read.append([])
        self.free.append([])
        return len(self.read) - 1

    def skip(self, start: int, end: int, when: int = ALWAYS) -> None:
        """An edge that reads nothing."""
        self.free[start].append((when, end))

    def sequences(self, start: int, end: int, sequences: Iterable[tuple[Range, ...]]) -> None:
        """Edges for sequences of byte ranges; those that end alike share their last nodes."""
        inner: dict[tuple[Range, ...], int] = {(): end}
        for whole in sequences:
            here = start
            for at, (low, high) in enumerate(whole, start=1):
                rest = whole[at:]
                known = rest in inner
                there = inner[rest] if known else inner.setdefault(rest, self.node())
                if (low, high, there) not in self.read[here]:
                    self.read[here].append((low, high, there))
                here = there
                if known:
                    break

    def closure(self, nodes: Iterable[int], when: int) -> frozenset[int]:
        """All nodes that can be reached without a byte, by edges of kind ALWAYS or `when`."""
        found, waiting = set(nodes), list(nodes)
        while waiting:
            for kind, node in self.free[waiting.pop()]:
                if kind in (ALWAYS, when) and node not in found:
                    found.add(node)
                    waiting.append(node)
        return frozenset(found)


def deterministic(graph: Graph, start: int, end: int) -> ByteAutomaton:
    """The subset construction. Raises UserError where it takes more than MOST_STATES states."""
    first = graph.closure([start], AT_BEGIN)
    number, waiting, rows = {first: START}, [first], []
    closures: dict[frozenset[int], frozenset[int]] = {}
    for nodes in waiting:
        row = np.full(256, -1, np.int32)
        for low, high, reached in _parts(graph, nodes):
            if reached not in closures:
                closures[reached] = graph.closure(reached, ALWAYS)
            closed = closures[reached]
            if closed not in number:
                number[closed] = len(number)
                waiting.append(closed)
            row[low:high] = number[closed]
        rows.append(row)
        if len(number) > MOST_STATES:
            raise UserError(f"the expression is too large (over {MOST_STATES:,} states): {SMALLER}")
    whole = graph.closure([start], AT_BEGIN) | {node for n in first for node in graph.closure([n], AT_END)}
    accepting = [end in graph.closure(nodes, AT_END) for nodes in number]
    accepting[START] = accepting[START] or end in whole
    return ByteAutomaton(np.stack(rows), np.asarray(accepting))


def _parts(graph: Graph, nodes: frozenset[int]) -> Iterable[tuple[int, int, frozenset[int]]]:
    """(first byte, last byte + 1, nodes reached by any byte between), for the bytes that lead anywhere."""
    edges = [edge for node in nodes for edge in graph.read[node]]
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

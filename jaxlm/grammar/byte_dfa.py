"""Deterministic finite automata over bytes, from a set of strings or from a nondeterministic automaton.

Shape letters here: Q states, X the 256 bytes.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from jaxlm.errors import UserError

Range = tuple[int, int]
"""First and last, both included: of code points, or of bytes."""

MAX_CODE_POINT = 0x10FFFF
SURROGATES: Range = (0xD800, 0xDFFF)
LAST_CASED = 0x1FFFF  # no character above has an uppercase or a lowercase form

UTF8_LENGTH_RANGES: tuple[Range, ...] = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, MAX_CODE_POINT))
"""The code points that UTF-8 encodes in 1, 2, 3 and 4 bytes."""


def normalize_ranges(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Return the same set as sorted ranges that neither overlap nor touch."""
    joined: list[Range] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        elif low <= high:
            joined.append((low, high))
    return tuple(joined)


def complement_ranges(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Return all other code points."""
    gaps, after = [], 0
    for low, high in normalize_ranges(ranges):
        gaps.append((after, low - 1))
        after = high + 1
    return normalize_ranges([*gaps, (after, MAX_CODE_POINT)])


@functools.cache
def category_ranges(escape: str, ascii_only: bool = False) -> tuple[Range, ...]:
    r"""Return the characters that `\d`, `\w` or `\s` match in Python's `re`."""
    characters = np.arange(MAX_CODE_POINT + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    matches = re.finditer(rf"{escape}+", characters, re.ASCII if ascii_only else 0)
    return normalize_ranges((match.start(), match.end() - 1) for match in matches)


@functools.lru_cache
def ignore_case(low: int, high: int) -> tuple[Range, ...]:
    """Return the range with the uppercase and the lowercase form of each of its characters."""
    more = [(low, high)]
    for point in range(low, min(high, LAST_CASED) + 1):
        text = chr(point)
        forms = {text.lower(), text.upper(), text.upper().lower(), text.lower().upper()} - {text}
        more += [(ord(form), ord(form)) for form in forms if len(form) == 1]
    return normalize_ranges(more)


@functools.lru_cache
def utf8_graph(ranges: tuple[Range, ...]) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Return the edges (first byte, last byte, node) of each node of a graph from node 0 to 1 that reads the UTF-8.

    Sequences of bytes with a common suffix share its nodes.
    """
    edges: list[dict[tuple[int, int, int], None]] = [{}, {}]
    node_of_suffix: dict[tuple[Range, ...], int] = {(): 1}
    for sequence in utf8_byte_sequences(ranges):
        node = 0
        for index, (low, high) in enumerate(sequence, start=1):
            if sequence[index:] not in node_of_suffix:
                node_of_suffix[sequence[index:]] = len(edges)
                edges.append({})
            target = node_of_suffix[sequence[index:]]
            edges[node][low, high, target] = None
            node = target
    return tuple(map(tuple, edges))


def utf8_byte_sequences(ranges: Iterable[Range]) -> Iterator[tuple[Range, ...]]:
    """Yield sequences of byte ranges that match exactly the UTF-8 of the set; half surrogates have no encoding."""
    for low, high in normalize_ranges(ranges):
        for part in ((low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)):
            for size, (least, most) in enumerate(UTF8_LENGTH_RANGES, start=1):
                first, last = max(part[0], least), min(part[1], most)
                if first <= last:
                    yield from _split_range(first, last, size)


def _split_range(low: int, high: int, size: int) -> Iterator[tuple[Range, ...]]:
    """Split a range of code points of one encoded length so that in each part every byte has its own range."""
    for position in range(1, size):
        mask = (1 << (6 * position)) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from _split_range(low, low | mask, size)
                yield from _split_range((low | mask) + 1, high, size)
                return
            if high & mask != mask:
                yield from _split_range(low, (high & ~mask) - 1, size)
                yield from _split_range(high & ~mask, high, size)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


START_STATE = 0

MAX_STATES = 20_000
"""States of an automaton by default: enough for `.{0,2000}`, not for `\\w{0,200}` with the letters of all scripts."""

NODES_PER_STATE, MEMBERS_PER_STATE = 15, 50
"""Bounds in proportion to the states: nodes and edges of the nondeterministic automaton, members of all subsets."""

SIZE_HINT = (
    "use smaller repeat counts, or sets such as [a-z] instead of \\w (the letters of all scripts), or raise the limit "
    "(--max-states)"
)

ALWAYS, AT_BEGIN, AT_END = 0, 1, 2
"""Conditions of an epsilon edge: at any place, before the first byte, after the last."""


@dataclass(frozen=True)
class ByteDFA:
    """next_QX (int32; -1 if no text continues with this byte) and accepting_Q. The start is state 0."""

    next_QX: np.ndarray
    accepting_Q: np.ndarray

    def accepts(self, text: bytes) -> bool:
        """Return whether the automaton accepts the whole text."""
        state = START_STATE
        for byte in text:
            state = int(self.next_QX[state, byte])
            if state < 0:
                return False
        return bool(self.accepting_Q[state])

    def require_reached(self, states: set[int], description: str) -> None:
        """Raises UserError if an accepting state of this tree is not among those that a tokenizer reaches."""
        for state in np.flatnonzero(self.accepting_Q).tolist():
            if state not in states:
                text = bytearray()
                while state != START_STATE:
                    state, byte = np.argwhere(self.next_QX == state)[0].tolist()
                    text.append(byte)
                raise UserError(
                    f"{description}: {text[::-1].decode()!r} cannot be written by this tokenizer, which lacks some of "
                    "its characters or words: remove it, or train with a tokenizer that has them"
                )


def strings_to_dfa(texts: Iterable[str], max_states: int = MAX_STATES) -> ByteDFA:
    """Return the trie of some texts. Raises UserError if there are none, one is not UTF-8, or it is too large."""
    rows, accepting = [np.full(256, -1, np.int32)], [False]
    for text in texts:
        state = START_STATE
        try:
            encoded = text.encode()
        except UnicodeEncodeError:  # half surrogates, as of bytes that were not UTF-8
            raise UserError(
                f"the choice {text[:80]!r} is not UTF-8, and cannot be written: correct or remove it"
            ) from None
        for byte in encoded:
            if rows[state][byte] < 0:
                if len(rows) >= max_states:
                    raise UserError(
                        f"the choices are too long or too many: over {max_states:,} states, one for each beginning of "
                        "a choice: give fewer choices, or allow more states (--max-states)"
                    )
                rows[state][byte] = len(rows)
                rows.append(np.full(256, -1, np.int32))
                accepting.append(False)
            state = int(rows[state][byte])
        accepting[state] = True
    if not any(accepting):
        raise UserError("no choice: expected at least one text to choose from")
    return ByteDFA(np.stack(rows), np.asarray(accepting))


@dataclass
class NFA:
    """A nondeterministic automaton under construction: edges that read a byte of a range, and epsilon edges."""

    max_states: int = MAX_STATES
    byte_edges: list[list[tuple[int, int, int]]] = field(default_factory=list)
    epsilon_edges: list[list[tuple[int, int]]] = field(default_factory=list)
    size: int = 0  # nodes and edges

    def _grow(self, elements: int = 1) -> None:
        self.size += elements
        if self.size > NODES_PER_STATE * self.max_states:
            raise self.too_large("over", "nodes and edges", NODES_PER_STATE)

    def too_large(self, measure: str, what: str, per_state: int) -> UserError:
        """The error of a bound in proportion to the states."""
        return UserError(f"the expression is too large ({measure} {per_state * self.max_states:,} {what}, {per_state} "
                         f"for each of {self.max_states:,} states): {SIZE_HINT}")  # fmt: skip

    def add_node(self) -> int:
        """Add a node and return its number. Raises UserError if there are too many."""
        self._grow()
        self.byte_edges.append([])
        self.epsilon_edges.append([])
        return len(self.byte_edges) - 1

    def add_epsilon_edge(self, start: int, end: int, condition: int = ALWAYS) -> None:
        """Add an edge that reads no byte."""
        self._grow()
        self.epsilon_edges[start].append((condition, end))

    def add_text(self, start: int, end: int, text: str) -> None:
        """Add a path that reads the UTF-8 of a text."""
        for byte in text.encode():
            after = self.add_node()
            self._grow()
            self.byte_edges[start].append((byte, byte, after))
            start = after
        self.add_epsilon_edge(start, end)

    def add_characters(self, start: int, end: int, ranges: tuple[Range, ...]) -> None:
        """Add the UTF-8 of a set of characters."""
        graph = utf8_graph(ranges)
        self._grow(sum(map(len, graph)) + len(graph) - 2)
        base = len(self.byte_edges) - 2
        for number, edges in enumerate(graph):
            copied = [(low, high, end if target == 1 else base + target) for low, high, target in edges]
            if number == 0:
                self.byte_edges[start] += copied
            elif number > 1:
                self.byte_edges.append(copied)
                self.epsilon_edges.append([])

    def epsilon_closure(self, nodes: Iterable[int], condition: int) -> frozenset[int]:
        """Return all nodes that epsilon edges of kind ALWAYS or `condition` reach."""
        closure, waiting = set(nodes), list(nodes)
        while waiting:
            for kind, node in self.epsilon_edges[waiting.pop()]:
                if kind in (ALWAYS, condition) and node not in closure:
                    closure.add(node)
                    waiting.append(node)
        return frozenset(closure)


def determinize(nfa: NFA, start: int, end: int) -> ByteDFA:
    """The subset construction. Raises UserError if it needs more than `nfa.max_states` states, or too many members."""
    first = nfa.epsilon_closure([start], AT_BEGIN)
    number, waiting, rows = {first: START_STATE}, [first], []
    closures: dict[frozenset[int], frozenset[int]] = {}
    members = len(first)
    for nodes in waiting:
        row = np.full(256, -1, np.int32)
        for low, high, reached in _partition_bytes(nfa, nodes):
            if reached not in closures:
                closures[reached] = nfa.epsilon_closure(reached, ALWAYS)
                members += len(reached) + len(closures[reached])
            subset = closures[reached]
            if members > MEMBERS_PER_STATE * nfa.max_states:
                raise nfa.too_large("sets of over", "nodes", MEMBERS_PER_STATE)
            if subset not in number:
                number[subset] = len(number)
                waiting.append(subset)
            row[low:high] = number[subset]
        rows.append(row)
        if len(number) > nfa.max_states:
            raise UserError(f"the expression is too large (over {nfa.max_states:,} states): {SIZE_HINT}")
    accepting = [end in nfa.epsilon_closure(nodes, AT_END) for nodes in number]
    # the empty text is at its beginning and at its end, so the start state may take edges of both kinds
    accepting[START_STATE] |= end in first or any(end in nfa.epsilon_closure([node], AT_END) for node in first)
    return ByteDFA(np.stack(rows), np.asarray(accepting))


def _partition_bytes(nfa: NFA, nodes: frozenset[int]) -> Iterable[tuple[int, int, frozenset[int]]]:
    """Yield (first byte, last byte + 1, the nodes that these bytes reach) for all bytes that reach a node."""
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

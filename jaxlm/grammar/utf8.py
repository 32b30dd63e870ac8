"""Sets of characters as ranges of code points, and their UTF-8 encoding as sequences of byte ranges."""

import functools
import re
from collections.abc import Iterable, Iterator

import numpy as np

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

r"""Regular expressions as automata over UTF-8 bytes: the syntax of Python's `re`, the meaning of `re.fullmatch`.

Constructs that no finite automaton has (look-around, \b, back-references) are refused. Greedy and lazy repeats describe
the same set of texts. Python's own parser reads the expression, so that errors have a position.
"""

import re
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from jaxlm.errors import UserError
from jaxlm.grammar import utf8
from jaxlm.grammar.byte_dfa import AT_BEGIN, AT_END, NFA, ByteDFA, determinize
from jaxlm.grammar.utf8 import MAX_CODE_POINT, Range

CATEGORY_ESCAPES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
BEGIN_ANCHORS, END_ANCHORS = ("AT_BEGINNING", "AT_BEGINNING_STRING"), ("AT_END", "AT_END_STRING")

UNSUPPORTED = {
    "ASSERT": "look-ahead and look-behind",
    "ASSERT_NOT": "look-ahead and look-behind",
    "GROUPREF": "back-references",
    "GROUPREF_EXISTS": "conditions on a group",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
}


def regex_to_dfa(pattern: str) -> ByteDFA:
    """Return the automaton of the full matches. Raises UserError if the pattern is invalid or not supported."""
    try:
        parsed = _parser.parse(pattern)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        raise UserError(f"the expression {pattern!r} is wrong{place}: {error.msg}") from error
    except (OverflowError, RecursionError) as error:
        message = f"the expression {_shorten(pattern)} is too large: use smaller counts, fewer brackets"
        raise UserError(message) from error
    graph = NFA()
    start, end = graph.add_node(), graph.add_node()
    try:
        _NFABuilder(graph, pattern).add_sequence(parsed, start, end, parsed.state.flags)
    except RecursionError as error:
        raise UserError(f"the expression {_shorten(pattern)} is nested too deeply: use fewer brackets") from error
    return determinize(graph, start, end)


def _shorten(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


class _NFABuilder:
    """Adds the edges of a parsed expression to an automaton (Thompson's construction)."""

    def __init__(self, nfa: NFA, pattern: str):
        self.nfa, self.pattern = nfa, pattern

    def add_sequence(self, items: Any, start: int, end: int, flags: int) -> None:
        """Add the items of a sequence between two nodes."""
        for item in list(items):
            after = self.nfa.add_node()
            self.add_item(item, start, after, flags)
            start = after
        self.nfa.add_epsilon_edge(start, end)

    def add_item(self, item: tuple[Any, Any], start: int, end: int, flags: int) -> None:
        """Add one item of the expression between two nodes."""
        name, value = str(item[0]), item[1]
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            self.nfa.add_sequences(start, end, utf8.utf8_byte_sequences(self.character_ranges(name, value, flags)))
        elif name == "BRANCH":
            for branch in value[1]:
                self.add_sequence(branch, start, end, flags)
        elif name == "SUBPATTERN":
            self.add_sequence(value[3], start, end, (flags | value[1]) & ~value[2])
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            self.add_repeat(value, start, end, flags)
        elif name == "AT" and str(value) in BEGIN_ANCHORS + END_ANCHORS and not flags & re.MULTILINE:
            self.nfa.add_epsilon_edge(start, end, AT_BEGIN if str(value) in BEGIN_ANCHORS else AT_END)
        else:
            construct = UNSUPPORTED.get(name, r"\b, \B and (?m)" if name == "AT" else name)
            raise UserError(
                f"the expression {_shorten(self.pattern)} uses {construct}, which an automaton cannot follow: "
                "write it with literals, sets, groups, | and repeats"
            )

    def add_repeat(self, value: tuple[int, Any, Any], start: int, end: int, flags: int) -> None:
        """Add (least, most, item): `least` copies of an item, then up to `most` optional ones, or a loop."""
        least, most, inner = value
        for _ in range(least):
            after = self.nfa.add_node()
            self.add_sequence(inner, start, after, flags)
            start = after
        if str(most) == "MAXREPEAT":
            loop = self.nfa.add_node()
            self.nfa.add_epsilon_edge(start, loop)
            self.add_sequence(inner, loop, loop, flags)
            start = loop
        else:
            for _ in range(int(most) - least):
                self.nfa.add_epsilon_edge(start, end)
                after = self.nfa.add_node()
                self.add_sequence(inner, start, after, flags)
                start = after
        self.nfa.add_epsilon_edge(start, end)

    def character_ranges(self, name: str, value: Any, flags: int) -> tuple[Range, ...]:
        """Return the character set of an item that reads one character."""
        if name == "ANY":
            return ((0, MAX_CODE_POINT),) if flags & re.DOTALL else utf8.complement_ranges([(10, 10)])
        items = value if name == "IN" else [(_parser.LITERAL, value)]
        negated, ranges = name == "NOT_LITERAL", list[Range]()
        for kind, content in items:
            if str(kind) == "NEGATE":
                negated = True
            elif str(kind) == "CATEGORY":
                ranges += _category_ranges(str(content), flags)
            else:
                pair = content if str(kind) == "RANGE" else (content, content)
                ranges += utf8.ignore_case([pair]) if flags & re.IGNORECASE else [pair]
        return utf8.complement_ranges(ranges) if negated else utf8.normalize_ranges(ranges)


def _category_ranges(name: str, flags: int) -> tuple[Range, ...]:
    word = name.removeprefix("CATEGORY_").removeprefix("NOT_")
    ranges = utf8.category_ranges(CATEGORY_ESCAPES[word], bool(flags & re.ASCII))
    return utf8.complement_ranges(ranges) if "NOT_" in name else ranges

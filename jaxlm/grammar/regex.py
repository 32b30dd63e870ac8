r"""Regular expressions as automata over UTF-8 bytes: the syntax of Python's `re`, the meaning of `re.fullmatch`.

Constructs that no finite automaton has (look-around, \b, back-references) are refused. Greedy and lazy repeats describe
the same set of texts. Python's own parser reads the expression, so that errors have a position.
"""

import functools
import re
import warnings
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from jaxlm.errors import UserError
from jaxlm.grammar.byte_dfa import (
    AT_BEGIN,
    AT_END,
    MAX_CODE_POINT,
    MAX_STATES,
    NFA,
    ByteDFA,
    Range,
    category_ranges,
    complement_ranges,
    determinize,
    ignore_case,
    normalize_ranges,
)

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


MAX_LENGTH = 200_000
"""Characters of an expression."""


def regex_to_dfa(pattern: str, max_states: int = MAX_STATES) -> ByteDFA:
    """Return the automaton of the full matches. Raises UserError if the pattern is wrong, too large or unsupported."""
    nfa = NFA(max_states)
    start, end = nfa.add_node(), nfa.add_node()
    RegexBuilder(nfa).add_pattern(pattern, start, end)
    return determinize(nfa, start, end)


@functools.lru_cache
def _parse(pattern: str) -> Any:
    if len(pattern) > MAX_LENGTH:
        raise UserError(f"the expression {_shorten(pattern)} has {len(pattern):,} characters, at most {MAX_LENGTH:,}")
    if re.search("[\ud800-\udfff]", pattern):
        raise UserError(f"the expression {_shorten(pattern)} is not UTF-8, and cannot be matched: correct it")
    try:
        with warnings.catch_warnings(action="ignore"):  # about sets whose meaning may change
            return _parser.parse(pattern)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        raise UserError(f"the expression {_shorten(pattern)} is wrong{place}: {error.msg}") from error
    except (OverflowError, RecursionError, ValueError) as error:
        message = f"the expression {_shorten(pattern)} is too large: use smaller counts, fewer brackets"
        raise UserError(message) from error


def _shorten(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


class RegexBuilder:
    """Adds the edges of expressions to an automaton (Thompson's construction)."""

    def __init__(self, nfa: NFA):
        self.nfa, self.pattern = nfa, ""

    def add_pattern(self, pattern: str, start: int, end: int) -> None:
        """Add an expression between two nodes. Raises UserError if it is invalid, too large or unsupported."""
        self.pattern = pattern
        parsed = _parse(pattern)
        try:
            self.add_sequence(parsed, start, end, parsed.state.flags)
        except RecursionError as error:
            raise UserError(f"the expression {_shorten(pattern)} is nested too deeply: use fewer brackets") from error

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
            self.nfa.add_characters(start, end, self.character_ranges(name, value, flags))
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
        least, most, inner = _flatten_repeat(value)
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
            return ((0, MAX_CODE_POINT),) if flags & re.DOTALL else complement_ranges([(10, 10)])
        items = value if name == "IN" else [(_parser.LITERAL, value)]
        negated, ranges = name == "NOT_LITERAL", list[Range]()
        for kind, content in items:
            if str(kind) == "NEGATE":
                negated = True
            elif str(kind) == "CATEGORY":
                word = str(content).removeprefix("CATEGORY_")
                matched = category_ranges(CATEGORY_ESCAPES[word.removeprefix("NOT_")], bool(flags & re.ASCII))
                ranges += complement_ranges(matched) if word.startswith("NOT_") else matched
            else:
                pair = content if str(kind) == "RANGE" else (content, content)
                ranges += ignore_case(*pair) if flags & re.IGNORECASE else [pair]
        return complement_ranges(ranges) if negated else normalize_ranges(ranges)


def _flatten_repeat(repeat: tuple[int, Any, Any]) -> tuple[int, Any, Any]:
    """Return (x{0,k}){m,n} as x{0,kn}: of optional copies, all would be in one subset of nodes."""
    items = repeat[2]
    while len(items) == 1:
        name, value = str(items[0][0]), items[0][1]
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, item = _flatten_repeat(value)
            unbounded = most and repeat[1] and _parser.MAXREPEAT in (most, repeat[1])
            return (0, _parser.MAXREPEAT if unbounded else most * repeat[1], item) if least == 0 else repeat
        if name != "SUBPATTERN" or value[1] or value[2]:  # flags
            break
        items = value[3]
    return repeat

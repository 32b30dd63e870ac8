r"""Regular expressions as automata over UTF-8 bytes: the syntax of Python's `re`, the meaning of `re.fullmatch`.

What no finite automaton can do (look-around, \b, back-references) is refused. Greedy or lazy makes no difference: it is
the same set of texts. Python's own parser reads the expression, so that its errors have a position.
"""

import re
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from jaxlm.data.byte_automaton import AT_BEGIN, AT_END, ByteAutomaton, Graph, deterministic
from jaxlm.data.utf8 import LAST, Range, any_case, byte_sequences, category, complement, normalised
from jaxlm.errors import UserError

CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
BEGINS, ENDS = ("AT_BEGINNING", "AT_BEGINNING_STRING"), ("AT_END", "AT_END_STRING")
CANNOT = {
    "ASSERT": "look-ahead and look-behind",
    "ASSERT_NOT": "look-ahead and look-behind",
    "GROUPREF": "back-references",
    "GROUPREF_EXISTS": "conditions on a group",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
}


def automaton_of_expression(pattern: str) -> ByteAutomaton:
    """The texts that match as a whole. Raises UserError with the place of a mistake, or on what is not supported."""
    try:
        parsed = _parser.parse(pattern)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        raise UserError(f"the expression {pattern!r} is wrong{place}: {error.msg}") from error
    except (OverflowError, RecursionError) as error:
        raise UserError(f"the expression {_short(pattern)} is too large: use smaller counts, fewer brackets") from error
    graph = Graph()
    start, end = graph.node(), graph.node()
    try:
        _Builder(graph, pattern).sequence(parsed, start, end, parsed.state.flags)
    except RecursionError as error:
        raise UserError(f"the expression {_short(pattern)} is nested too deeply: use fewer brackets") from error
    return deterministic(graph, start, end)


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


class _Builder:
    """Adds the edges of a parsed expression to a graph."""

    def __init__(self, graph: Graph, pattern: str):
        self.graph, self.pattern = graph, pattern

    def sequence(self, items: Any, start: int, end: int, flags: int) -> None:
        """One item after the other."""
        for item in list(items):
            after = self.graph.node()
            self.item(item, start, after, flags)
            start = after
        self.graph.skip(start, end)

    def item(self, item: tuple[Any, Any], start: int, end: int, flags: int) -> None:
        """One item of the expression between two nodes."""
        name, value = str(item[0]), item[1]
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            self.graph.sequences(start, end, byte_sequences(self.characters(name, value, flags)))
        elif name == "BRANCH":
            for branch in value[1]:
                self.sequence(branch, start, end, flags)
        elif name == "SUBPATTERN":
            self.sequence(value[3], start, end, (flags | value[1]) & ~value[2])
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            self.repeat(value, start, end, flags)
        elif name == "AT" and str(value) in BEGINS + ENDS and not flags & re.MULTILINE:
            self.graph.skip(start, end, AT_BEGIN if str(value) in BEGINS else AT_END)
        else:
            what = CANNOT.get(name, r"\b, \B and (?m)" if name == "AT" else name)
            raise UserError(
                f"the expression {_short(self.pattern)} uses {what}, which an automaton cannot follow: "
                "write it with literals, sets, groups, | and repeats"
            )

    def repeat(self, value: tuple[int, Any, Any], start: int, end: int, flags: int) -> None:
        """(least, most, what): at least `least` times, then up to `most`, which may be without end."""
        least, most, inner = value
        for _ in range(least):
            after = self.graph.node()
            self.sequence(inner, start, after, flags)
            start = after
        if str(most) == "MAXREPEAT":
            loop = self.graph.node()
            self.graph.skip(start, loop)
            self.sequence(inner, loop, loop, flags)
            start = loop
        else:
            for _ in range(int(most) - least):
                self.graph.skip(start, end)
                after = self.graph.node()
                self.sequence(inner, start, after, flags)
                start = after
        self.graph.skip(start, end)

    def characters(self, name: str, value: Any, flags: int) -> tuple[Range, ...]:
        """The set of an item that reads one character."""
        if name == "ANY":
            return ((0, LAST),) if flags & re.DOTALL else complement([(10, 10)])
        items = value if name == "IN" else [(_parser.LITERAL, value)]
        negated, found = name == "NOT_LITERAL", list[Range]()
        for kind, content in items:
            if str(kind) == "NEGATE":
                negated = True
            elif str(kind) == "CATEGORY":
                found += _category(str(content), flags)
            else:
                pair = content if str(kind) == "RANGE" else (content, content)
                found += any_case([pair]) if flags & re.IGNORECASE else [pair]
        return complement(found) if negated else normalised(found)


def _category(name: str, flags: int) -> tuple[Range, ...]:
    word = name.removeprefix("CATEGORY_").removeprefix("NOT_")
    ranges = category(CATEGORIES[word], bool(flags & re.ASCII))
    return complement(ranges) if "NOT_" in name else ranges

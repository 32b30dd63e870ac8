r"""Conversion of a JSON schema to an automaton: every text that it accepts is JSON that the schema admits.

Not all such JSON is accepted: objects have their properties in the schema's order and after them those of an
`additionalProperties` schema, white space is at most one space after a comma or a colon, numbers have at most 15 digits
before and after the point and an exponent of at most two digits, and control characters in strings are short escapes
(no \u). A keyword is followed or refused by name; annotations have no effect.
"""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from jaxlm.grammar.byte_dfa import NFA, complement_ranges, normalize_ranges
from jaxlm.grammar.regex import RegexBuilder
from jaxlm.grammar.schema_values import SchemaPlace, json_types, read_bounds, shorten_json, write_json
from jaxlm.grammar.source_dfa import HOLE

MAX_LEVELS = 100
"""Levels of a schema; a reference is a level."""

STRING_CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])'
SHORT_ESCAPES = dict(zip('"\\/\b\f\n\r\t', '"\\/bfnrt', strict=True))
NOT_IN_STRINGS = ((0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\")))

INTEGER_PATTERN = r"-?(?:0|[1-9][0-9]{0,14})"
NUMBER_PATTERN = rf"{INTEGER_PATTERN}(?:\.[0-9]{{1,15}})?(?:[eE][+-]?[0-9]{{1,2}})?"
SCALAR_PATTERNS = {"integer": INTEGER_PATTERN, "number": NUMBER_PATTERN, "boolean": "(?:true|false)", "null": "null"}
ANNOTATION_KEYWORDS = {"$schema", "$comment", "$defs", "definitions", "title", "description", "default"}
ANNOTATION_KEYWORDS |= {"examples", "deprecated", "readOnly", "writeOnly"}

SOURCE_WORDS = "x-source-words"
"""Keyword of jaxlm: the string is one of at most that number of consecutive words of the source."""

TYPE_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", SOURCE_WORDS},
    **dict.fromkeys(SCALAR_PATTERNS, set()),
}


class SchemaBuilder:
    """Adds the parts of a schema to an automaton, each between two nodes; `root` resolves references.

    Raises UserError for what is not supported, with its place as in #/properties/age. `literals`: the values of enum
    and const and the names; `source_words`: the most words of a string from the source, which is an edge `HOLE`.
    """

    def __init__(self, nfa: NFA, root: Any):
        self.nfa, self.root, self.literals = nfa, root, set[str]()
        self.source_words = set[int]()
        self.add_pattern = RegexBuilder(nfa).add_pattern

    def add_value(self, schema: Any, start: int, end: int, place: SchemaPlace) -> None:
        """Add one (sub)schema."""
        if place.level > MAX_LEVELS:
            raise place.error(f"the schema has over {MAX_LEVELS} levels: write it with fewer")
        if not isinstance(schema, dict):
            raise place.error(f"found {shorten_json(schema)}, expected an object such as {{'type': 'string'}}")
        keywords = set(schema) - ANNOTATION_KEYWORDS - ({"$id"} if place.pointer == "#" else set())
        kinds: list[Any] = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
        for given in kinds if "type" in schema else ():
            if not isinstance(given, str) or given not in TYPE_KEYWORDS:
                raise place.error(f"type {shorten_json(given)}, expected one of {', '.join(TYPE_KEYWORDS)}")
        if "$ref" in keywords:
            place.reject_unknown(keywords, {"$ref"})
            target, there = self.resolve(schema["$ref"], place)
            self.add_value(target, start, end, there)
        elif "const" in keywords or "enum" in keywords:
            keyword = "const" if "const" in keywords else "enum"
            place.reject_unknown(keywords, {keyword, "type"})
            self.add_literals([schema["const"]] if keyword == "const" else schema["enum"], start, end, kinds, place)
        elif "anyOf" in keywords:
            place.reject_unknown(keywords, {"anyOf"})
            if not isinstance(schema["anyOf"], list) or not schema["anyOf"]:
                raise place.error("anyOf must be a list of one schema or more")
            for number, part in enumerate(schema["anyOf"]):
                self.add_value(part, start, end, place.below("anyOf", number))
        else:
            place.reject_unknown(keywords, {"$ref", "anyOf", "const", "enum", "type"}.union(*TYPE_KEYWORDS.values()))
            if not schema.get("type"):
                raise place.error(f"no type: add one of {', '.join(TYPE_KEYWORDS)}")
            place.reject_unknown(keywords, {"type"}.union(*(TYPE_KEYWORDS[kind] for kind in kinds)))
            for kind in kinds:
                self.add_type(kind, schema, start, end, place)

    def add_type(self, kind: str, schema: dict[str, Any], start: int, end: int, place: SchemaPlace) -> None:
        """Add a schema of one type."""
        if kind in ("object", "array"):
            (self.add_object if kind == "object" else self.add_array)(schema, start, end, place)
        elif kind == "string" and SOURCE_WORDS in schema:
            place.reject_unknown(set(schema) & TYPE_KEYWORDS["string"], {SOURCE_WORDS})
            words = schema[SOURCE_WORDS]
            if type(words) is not int or words < 1:
                raise place.error(f"{SOURCE_WORDS} {shorten_json(words)}, expected a whole number of 1 or more")
            self.source_words.add(words)
            self.nfa.byte_edges[start].append((HOLE, HOLE, end))
        elif kind == "string":
            least, most = read_bounds(schema, "minLength", "maxLength", place)
            self.add_pattern(f'"{STRING_CHARACTER}{{{least},{"" if most is None else most}}}"', start, end)
        else:
            self.add_pattern(SCALAR_PATTERNS[kind], start, end)

    def add_literals(self, values: Any, start: int, end: int, kinds: Sequence[Any], place: SchemaPlace) -> None:
        """Add some values; those that have none of the types `kinds` are left out."""
        if not isinstance(values, list) or not values:
            raise place.error("enum must be a list of one value or more")
        kept = [value for value in values if kinds == [None] or not json_types(value).isdisjoint(kinds)]
        if not kept:
            raise place.error(f"no value of enum or const is of type {' or '.join(kinds)}")
        for value in kept:
            try:
                texts = {write_json(value)}
            except ValueError:
                raise place.error(f"the value {shorten_json(value)} has a number that JSON cannot write") from None
            if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
                texts.add(str(int(value)))
            self.literals |= texts
            for text in sorted(texts):
                self.nfa.add_text(start, end, text)

    def resolve(self, name: Any, place: SchemaPlace) -> tuple[Any, SchemaPlace]:
        """Return the schema that a reference names and its place; a recursive reference is an error."""
        if name in place.references:
            raise place.error(f"{name[:80]} refers to itself, which no automaton can follow: write out its levels")
        target: Any = self.root if isinstance(name, str) and re.fullmatch("#(/.*)?", name, re.DOTALL) else None
        for part in str(name).split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list):
                target = target[int(key)] if re.fullmatch("0|[1-9][0-9]{0,8}", key) and int(key) < len(target) else None
            else:
                target = target.get(key) if isinstance(target, dict) else None
        if target is None:
            raise place.error(f"$ref {shorten_json(name)} leads nowhere in this schema: expected #/$defs/NAME")
        return target, SchemaPlace(name, (*place.references, name), place.level + 1)

    def add_array(self, schema: dict[str, Any], start: int, end: int, place: SchemaPlace) -> None:
        """Add `[`, the items with commas between, `]`; `prefixItems` are the schemas of the first ones."""
        least, most = read_bounds(schema, "minItems", "maxItems", place)
        first, others = schema.get("prefixItems", []), schema.get("items")
        if not isinstance(first, list):
            raise place.error(f"prefixItems {shorten_json(first)}, expected a list of schemas")
        if others is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and most < least:
            raise place.error(f"minItems {least} is above the {most} items that prefixItems and items allow")
        node = self.nfa.add_node()
        self.nfa.add_text(start, node, "[")
        if not least:
            self.nfa.add_text(node, end, "]")
        if most == 0:
            return
        if others in (None, True) and (most is None or most > len(first)):
            raise place.error("an array without items: add their schema, as in {'items': {'type': 'string'}}")
        for number in range(1, (most or max(least, len(first) + 1)) + 1):
            begin, after = self.nfa.add_node(), self.nfa.add_node()
            self.connect(node if number == 1 else -1, node if number > 1 else -1, begin)
            if number <= len(first):
                self.add_value(first[number - 1], begin, after, place.below("prefixItems", number - 1))
            else:
                self.add_value(others, begin, after, place.below("items"))
            if number >= least:
                self.nfa.add_text(after, end, "]")
            node = after
        if most is None:
            self.connect(-1, node, begin)

    def add_object(self, schema: dict[str, Any], start: int, end: int, place: SchemaPlace) -> None:
        """Add `{`, the properties in the order of the schema, then any others that it has a schema for, `}`."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise place.error("expected properties to be an object and required to be a list")
        if not isinstance(others, bool | dict):
            raise place.error(f"additionalProperties {shorten_json(others)}, expected true, false or a schema")
        parts = {name: (part, place.below("properties", name)) for name, part in properties.items()}
        for name in required:
            if not isinstance(name, str) or name not in parts and not isinstance(others, dict):
                raise place.error(f"required names {str(name)[:80]!r}, which is not among the properties")
            parts.setdefault(name, (others, place.below("additionalProperties")))
        if not parts and others is True:
            raise place.error("an object without properties: add them, or additionalProperties with the schema of all "
                              "members, or with false for {}")  # fmt: skip
        names = set(required)
        members: list[tuple[str | None, Any, SchemaPlace, bool]] = [(n, *part, n in names) for n, part in parts.items()]
        if isinstance(others, dict):
            members.append((None, others, place.below("additionalProperties"), False))
        self.add_members(members, start, end)

    def add_members(self, members: Sequence[tuple[str | None, Any, SchemaPlace, bool]], start: int, end: int) -> None:
        """Add members in order, each with its name, schema, place and whether it is required; name None: all others."""
        first, after = self.nfa.add_node(), -1  # the nodes before any member and after one; -1: none
        self.nfa.add_text(start, first, "{")
        for name, schema, place, required in members:
            begin, key_end, value, done = (self.nfa.add_node() for _ in range(4))
            self.connect(first, after, begin)
            if name is None:
                self.add_other_key([other for other, *_ in members if other is not None], begin, key_end)
                self.connect(-1, done, begin)
            else:
                self.literals.add(write_json(name))
                self.nfa.add_text(begin, key_end, write_json(name))
            self.add_separator(":", key_end, value)
            self.add_value(schema, value, done, place)
            if required:
                first = -1
            elif after >= 0:
                self.nfa.add_epsilon_edge(after, done)
            after = done
        for node in (first, after):
            if node >= 0:
                self.nfa.add_text(node, end, "}")

    def add_other_key(self, names: Sequence[str], start: int, end: int) -> None:
        """Add a string that is none of the names, also if its characters are escaped: a trie of the names."""
        free, close = self.nfa.add_node(), self.nfa.add_node()
        self.add_characters("", free, free, others=True)
        self.nfa.add_text(free, close, '"')
        self.nfa.add_epsilon_edge(close, end)
        root, complete = self.nfa.add_node(), set[int]()
        self.nfa.add_text(start, root, '"')
        children: dict[int, dict[str, int]] = {root: {}}  # of each node of the trie
        for name in names:
            node = root
            for character in name:
                if character not in children[node]:
                    children[node][character] = after = self.nfa.add_node()
                    children[after] = {}
                node = children[node][character]
            complete.add(node)
        for node, after_character in children.items():
            for character, after in after_character.items():
                self.add_characters(character, node, after, others=False)
            self.add_characters("".join(after_character), node, free, others=True)
            if node not in complete:
                self.nfa.add_text(node, close, '"')

    def add_characters(self, characters: str, start: int, end: int, others: bool) -> None:
        """Add a character of a string, as it is or as a short escape: one of those given, or one of all others."""
        escaped = [character for character in SHORT_ESCAPES if (character in characters) != others]
        for character in escaped:
            self.nfa.add_text(start, end, "\\" + SHORT_ESCAPES[character])
        ranges = normalize_ranges((ord(character), ord(character)) for character in characters)
        excluded = ranges if others else complement_ranges(ranges)
        self.nfa.add_characters(start, end, complement_ranges([*excluded, *NOT_IN_STRINGS]))

    def add_separator(self, text: str, start: int, end: int) -> None:
        """Add a comma or a colon, and at most one space."""
        middle = self.nfa.add_node()
        self.nfa.add_text(start, middle, text)
        self.nfa.add_epsilon_edge(middle, end)
        self.nfa.add_text(middle, end, " ")

    def connect(self, first: int, after: int, begin: int) -> None:
        """Lead to an item or a member from before the first one, and by a comma from after another one; -1: none."""
        if first >= 0:
            self.nfa.add_epsilon_edge(first, begin)
        if after >= 0:
            self.add_separator(",", after, begin)

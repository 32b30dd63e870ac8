r"""A JSON schema as a regular expression: every text that matches is JSON that the schema admits.

Not all that the schema admits is written: objects have their properties in the schema's order and no others, white
space is at most one space after a comma or a colon, numbers have at most 15 digits before and after the point and an
exponent of at most two, and strings write control characters by their short escapes alone (no \u).
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from jaxlm.errors import UserError

CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])'
INTEGER = r"-?(?:0|[1-9][0-9]{0,14})"
NUMBER = rf"{INTEGER}(?:\.[0-9]{{1,15}})?(?:[eE][+-]?[0-9]{{1,2}})?"
SCALARS = {"integer": INTEGER, "number": NUMBER, "boolean": "(?:true|false)", "null": "null"}
COMMA, COLON = ", ?", ": ?"

KIND_OF = {
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    str: "string",
    list: "array",
    dict: "object",
}

NOTES = {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
NOTES |= {"deprecated", "readOnly", "writeOnly"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    **dict.fromkeys(SCALARS, set()),
}


def schema_expression(schema: Any) -> str:
    """The expression, in the syntax of Python's `re`.

    Raises UserError with the place of what cannot be kept (the place is a JSON pointer such as #/properties/age).
    """
    return _Schema(schema).value(schema, "#", ())


class _Schema:
    def __init__(self, root: Any):
        self.root = root

    def value(self, schema: Any, place: str, within: tuple[str, ...]) -> str:
        """The expression of one (sub)schema; `within` are the references that led here."""
        if not isinstance(schema, dict):
            raise _error(place, f"found {json.dumps(schema)}, expected an object such as {{'type': 'string'}}")
        asked = set(schema) - NOTES
        if "$ref" in asked:
            _only(asked, {"$ref"}, place)
            return self.reference(schema["$ref"], place, within)
        for word in ("const", "enum"):
            if word in asked:
                _only(asked, {word, "type"}, place)
                return _constants([schema["const"]] if word == "const" else schema["enum"], schema.get("type"), place)
        if "anyOf" in asked:
            _only(asked, {"anyOf"}, place)
            return _either(
                self.value(each, f"{place}/anyOf/{k}", within) for k, each in enumerate(_list(schema, "anyOf", place))
            )
        _only(asked, {"$ref", "anyOf", "const", "enum", "type"}.union(*KEYWORDS.values()), place)
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        for kind in kinds:
            if not isinstance(kind, str) or kind not in KEYWORDS:
                raise _error(place, f"type {json.dumps(kind)}, expected one of {', '.join(KEYWORDS)}")
        _only(asked, {"type"}.union(*(KEYWORDS[kind] for kind in kinds)), place)
        return _either([self.typed(kind, schema, place, within) for kind in kinds])

    def typed(self, kind: str, schema: dict[str, Any], place: str, within: tuple[str, ...]) -> str:
        """A value of one type."""
        if kind == "object":
            return self.object(schema, place, within)
        if kind == "array":
            return self.array(schema, place, within)
        if kind == "string":
            return f'"{CHARACTER}{_counts(schema, "minLength", "maxLength", place)}"'
        return SCALARS[kind]

    def reference(self, name: Any, place: str, within: tuple[str, ...]) -> str:
        """What a reference into this schema stands for; one that leads to itself has no end."""
        if name in within:
            raise _error(
                place, f"{name} refers to itself, which an automaton cannot follow: write out the depth needed"
            )
        found: Any = self.root
        for part in str(name).removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if not str(name).startswith("#") or found is None:
            raise _error(place, f"$ref {json.dumps(name)} leads nowhere in this schema: expected #/$defs/NAME")
        return self.value(found, str(name), (*within, name))

    def array(self, schema: dict[str, Any], place: str, within: tuple[str, ...]) -> str:
        """`[`, items after each other, `]`."""
        least, most = _bounds(schema, "minItems", "maxItems", place)
        if most == 0:
            return r"\[\]"
        if "items" not in schema:
            raise _error(place, "an array without items: say what they are, as in {'items': {'type': 'string'}}")
        item = self.value(schema["items"], f"{place}/items", within)
        more = f"(?:{COMMA}{item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        return rf"\[{item}{more}\]" if least else rf"\[(?:{item}{more})?\]"

    def object(self, schema: dict[str, Any], place: str, within: tuple[str, ...]) -> str:
        """`{`, the properties in their order, `}`; those that are not required may be left out."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _error(place, "expected properties to be an object and required to be a list")
        if missing := [name for name in required if name not in properties]:
            raise _error(place, f"required names {missing[0]!r}, which is not among the properties")
        members = [
            (_text(name) + COLON + self.value(each, f"{place}/properties/{name}", within), name in required)
            for name, each in properties.items()
        ]
        return rf"\{{{_members(members)}\}}"


def _members(members: Sequence[tuple[str, bool]]) -> str:
    """All ways to take members in order, each required one among them, with commas between."""
    later = ""  # what may follow a member; `first` is what a list that begins here may be, None if it may not be empty
    first = ""
    for text, required in reversed(members):
        first = f"(?:{text}{later}|{first})" if not required else f"(?:{text}{later})"
        later = f"{COMMA}{text}{later}" if required else f"(?:{COMMA}{text})?{later}"
    return first


def _constants(values: Any, kind: Any, place: str) -> str:
    """One of some values, as JSON writes them; those of another type than the one that stands beside them cannot be."""
    if not isinstance(values, list) or not values:
        raise _error(place, "enum must be a list of one value or more")
    kinds = kind if isinstance(kind, list) else [kind]
    kept = [value for value in values if kind is None or any(KIND_OF.get(type(value)) == each for each in kinds)]
    if not kept:
        raise _error(place, f"no value of enum or const is of type {json.dumps(kind)}")
    return _either(_text(value) for value in kept)


def _text(value: Any) -> str:
    return re.escape(json.dumps(value, ensure_ascii=False))


def _either(parts: Any) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _counts(schema: dict[str, Any], low: str, high: str, place: str) -> str:
    least, most = _bounds(schema, low, high, place)
    return "*" if not least and most is None else f"{{{least},{'' if most is None else most}}}"


def _bounds(schema: dict[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise _error(place, f"{name} {json.dumps(value)}, expected a whole number of 0 or more")
    if most is not None and most < least:
        raise _error(place, f"{low} {least} is above {high} {most}")
    return least, most


def _list(schema: dict[str, Any], name: str, place: str) -> list[Any]:
    if not isinstance(schema[name], list) or not schema[name]:
        raise _error(place, f"{name} must be a list of one schema or more")
    return schema[name]


def _only(asked: set[str], known: set[str], place: str) -> None:
    if unknown := sorted(asked - known):
        raise _error(place, f"{unknown[0]!r} is not supported here (supported: {', '.join(sorted(known))})")


def _error(place: str, what: str) -> UserError:
    return UserError(f"JSON schema, {place}: {what}")

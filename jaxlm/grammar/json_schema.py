r"""Conversion of a JSON schema to a regular expression: every text that matches is JSON that the schema admits.

Not all such JSON matches: objects have their properties in the schema's order and no others, white space is at most one
space after a comma or a colon, numbers have at most 15 digits before and after the point and an exponent of at most two
digits, and control characters in strings are short escapes (no \u).
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from jaxlm.errors import UserError

STRING_CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])'

INTEGER_PATTERN = r"-?(?:0|[1-9][0-9]{0,14})"
NUMBER_PATTERN = rf"{INTEGER_PATTERN}(?:\.[0-9]{{1,15}})?(?:[eE][+-]?[0-9]{{1,2}})?"
SCALAR_PATTERNS = {"integer": INTEGER_PATTERN, "number": NUMBER_PATTERN, "boolean": "(?:true|false)", "null": "null"}

COMMA, COLON = ", ?", ": ?"

JSON_TYPES = {int: "integer", float: "number", bool: "boolean", type(None): "null"}
JSON_TYPES |= {str: "string", list: "array", dict: "object"}

ANNOTATION_KEYWORDS = {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"}
ANNOTATION_KEYWORDS |= {"examples", "deprecated", "readOnly", "writeOnly"}

TYPE_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    **dict.fromkeys(SCALAR_PATTERNS, set()),
}


def schema_to_regex(schema: Any) -> str:
    """Return the expression, in the syntax of Python's `re`.

    Raises UserError for anything not supported, with its place as a JSON pointer such as #/properties/age.
    """
    return _SchemaCompiler(schema).value_regex(schema, "#", ())


class _SchemaCompiler:
    """Converts the parts of a schema; `root` resolves references."""

    def __init__(self, root: Any):
        self.root = root

    def value_regex(self, schema: Any, pointer: str, references: tuple[str, ...]) -> str:
        """Convert one (sub)schema; `references`: the chain of references that led to it."""
        if not isinstance(schema, dict):
            raise _error(pointer, f"found {json.dumps(schema)}, expected an object such as {{'type': 'string'}}")
        keywords = set(schema) - ANNOTATION_KEYWORDS
        if "$ref" in keywords:
            _reject_unknown(keywords, {"$ref"}, pointer)
            return self.reference_regex(schema["$ref"], pointer, references)
        for keyword in ("const", "enum"):
            if keyword in keywords:
                _reject_unknown(keywords, {keyword, "type"}, pointer)
                values = [schema["const"]] if keyword == "const" else schema["enum"]
                return _enum_regex(values, schema.get("type"), pointer)
        if "anyOf" in keywords:
            _reject_unknown(keywords, {"anyOf"}, pointer)
            parts = schema["anyOf"]
            if not isinstance(parts, list) or not parts:
                raise _error(pointer, "anyOf must be a list of one schema or more")
            branches = enumerate(parts)
            return _alternation(self.value_regex(part, f"{pointer}/anyOf/{k}", references) for k, part in branches)
        _reject_unknown(keywords, {"$ref", "anyOf", "const", "enum", "type"}.union(*TYPE_KEYWORDS.values()), pointer)
        kinds = _as_list(schema.get("type"))
        for kind in kinds:
            if not isinstance(kind, str) or kind not in TYPE_KEYWORDS:
                raise _error(pointer, f"type {json.dumps(kind)}, expected one of {', '.join(TYPE_KEYWORDS)}")
        _reject_unknown(keywords, {"type"}.union(*(TYPE_KEYWORDS[kind] for kind in kinds)), pointer)
        return _alternation([self.typed_regex(kind, schema, pointer, references) for kind in kinds])

    def typed_regex(self, kind: str, schema: dict[str, Any], pointer: str, references: tuple[str, ...]) -> str:
        """Convert a schema of one type."""
        if kind == "object":
            return self.object_regex(schema, pointer, references)
        if kind == "array":
            return self.array_regex(schema, pointer, references)
        if kind == "string":
            least, most = _bounds(schema, "minLength", "maxLength", pointer)
            return f'"{STRING_CHARACTER}{{{least},{"" if most is None else most}}}"'
        return SCALAR_PATTERNS[kind]

    def reference_regex(self, name: Any, pointer: str, references: tuple[str, ...]) -> str:
        """Convert the schema that a reference names; a recursive reference is an error."""
        if name in references:
            message = f"{name} refers to itself, which an automaton cannot follow: write out the depth needed"
            raise _error(pointer, message)
        target: Any = self.root
        for part in str(name).removeprefix("#").split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        if not str(name).startswith("#") or target is None:
            raise _error(pointer, f"$ref {json.dumps(name)} leads nowhere in this schema: expected #/$defs/NAME")
        return self.value_regex(target, str(name), (*references, name))

    def array_regex(self, schema: dict[str, Any], pointer: str, references: tuple[str, ...]) -> str:
        """`[`, the items with commas between, `]`."""
        least, most = _bounds(schema, "minItems", "maxItems", pointer)
        if most == 0:
            return r"\[\]"
        if "items" not in schema:
            raise _error(pointer, "an array without items: add their schema, as in {'items': {'type': 'string'}}")
        item = self.value_regex(schema["items"], f"{pointer}/items", references)
        more = f"(?:{COMMA}{item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        return rf"\[{item}{more}\]" if least else rf"\[(?:{item}{more})?\]"

    def object_regex(self, schema: dict[str, Any], pointer: str, references: tuple[str, ...]) -> str:
        """`{`, the properties in the order of the schema, `}`; those that are not required are optional."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _error(pointer, "expected properties to be an object and required to be a list")
        if missing := [name for name in required if name not in properties]:
            raise _error(pointer, f"required names {missing[0]!r}, which is not among the properties")
        members = []
        for name, property_schema in properties.items():
            value = self.value_regex(property_schema, f"{pointer}/properties/{name}", references)
            members.append((_literal_regex(name) + COLON + value, name in required))
        return rf"\{{{_members_regex(members)}\}}"


def _members_regex(members: Sequence[tuple[str, bool]]) -> str:
    """Return the expression of all lists of members in order that contain each required one, with commas between."""
    after_member = ""  # the rest of a list, after a member
    at_start = ""  # the rest of a list, before its first member
    for text, required in reversed(members):
        at_start = f"(?:{text}{after_member})" if required else f"(?:{text}{after_member}|{at_start})"
        after_member = f"{COMMA}{text}{after_member}" if required else f"(?:{COMMA}{text})?{after_member}"
    return at_start


def _enum_regex(values: Any, kind: Any, pointer: str) -> str:
    """Return the alternation of some values as JSON; those that do not have the type `kind` are left out."""
    if not isinstance(values, list) or not values:
        raise _error(pointer, "enum must be a list of one value or more")
    kept = [value for value in values if kind is None or JSON_TYPES.get(type(value)) in _as_list(kind)]
    if not kept:
        raise _error(pointer, f"no value of enum or const is of type {json.dumps(kind)}")
    return _alternation(_literal_regex(value) for value in kept)


def _as_list(kind: Any) -> list[Any]:
    return kind if isinstance(kind, list) else [kind]


def _literal_regex(value: Any) -> str:
    return re.escape(json.dumps(value, ensure_ascii=False))


def _alternation(parts: Any) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _bounds(schema: dict[str, Any], low: str, high: str, pointer: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise _error(pointer, f"{name} {json.dumps(value)}, expected a whole number of 0 or more")
    if most is not None and most < least:
        raise _error(pointer, f"{low} {least} is above {high} {most}")
    return least, most


def _reject_unknown(keywords: set[str], supported: set[str], pointer: str) -> None:
    if unknown := sorted(keywords - supported):
        raise _error(pointer, f"{unknown[0]!r} is not supported here (supported: {', '.join(sorted(supported))})")


def _error(pointer: str, message: str) -> UserError:
    return UserError(f"JSON schema, {pointer}: {message}")

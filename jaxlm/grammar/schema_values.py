"""Places in a JSON schema for messages, and the types and the text of JSON values."""

import json
import re
from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError

JSON_TYPES = {bool: "boolean", type(None): "null", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True)
class SchemaPlace:
    """The place of a part in a schema: its JSON pointer, the references that led to it, and its level."""

    pointer: str = "#"
    references: tuple[str, ...] = ()
    level: int = 1

    def below(self, *names: Any) -> "SchemaPlace":
        parts = (str(name).replace("~", "~0").replace("/", "~1") for name in names)
        return SchemaPlace("/".join([self.pointer, *parts]), self.references, self.level + 1)

    def error(self, message: str) -> UserError:
        return UserError(f"JSON schema, {self.pointer[:200]}: {message}")

    def reject_unknown(self, keywords: set[str], supported: set[str]) -> None:
        if unknown := sorted(keywords - supported):
            raise self.error(f"{unknown[0][:80]!r} is not supported here (supported: {', '.join(sorted(supported))})")


def json_types(value: Any) -> set[str]:
    """Return the types of a JSON value: integers are numbers, and so is 1.0 an integer."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"number", "integer"} if value == value // 1 else {"number"}
    return {JSON_TYPES[type(value)]}


def write_json(value: Any) -> str:
    """Return a value as JSON, with escapes for half surrogates. Raises ValueError if a number is infinite."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def shorten_json(value: Any) -> str:
    """Return a value as JSON of at most 80 characters, for messages."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_bounds(schema: dict[str, Any], low: str, high: str, place: SchemaPlace) -> tuple[int, int | None]:
    """Return the least and the most (None: any) of two keywords. Raises UserError for other values."""
    values: list[int | None] = []
    for name in (low, high):
        value: Any = schema.get(name)
        if name in schema and ("integer" not in json_types(value) or value < 0):
            raise place.error(f"{name} {shorten_json(value)}, expected a whole number of 0 or more")
        values.append(None if value is None else int(value))
    least, most = values[0] or 0, values[1]
    if most is not None and most < least:
        raise place.error(f"{low} {least} is above {high} {most}")
    return least, most

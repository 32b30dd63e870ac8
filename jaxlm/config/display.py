"""Configs as text: the differences between two of them, and a listing of all fields."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.config.serialization import DTYPE_MODULES, SPECIAL_TYPES, to_json

MISSING = object()


def differences(left: Any, right: Any, right_name: str = "there") -> list[str]:
    """A line for each value that differs between two configs: `model.layers: 4 here, 6 in D/experiment.json`.

    Both may be objects or their JSON; `right_name` is the name of `right` in the lines.
    """
    place = right_name if right_name == "there" else f"in {right_name}"
    rows = differing_fields([left, right]).items()
    return [f"{path or 'config'}: {here} here, {there} {place}" for path, (here, there) in rows]


def differing_fields(configs: Sequence[Any]) -> dict[str, list[str]]:
    """The fields that are not the same in all configs: path -> the value in each config, as text."""
    return {path: [*map(_format_inline, row)] for path, row in _differing_values([*map(_as_json, configs)], "")}


def format_config(obj: Any) -> str:
    """A config as indented text, one line per field, with all defaults."""
    data = _as_json(obj)
    if not _is_multiline(data):
        return _format_inline(data)
    head = [data["type"]] if "type" in data else []
    return "\n".join([*head, *_format_lines(data, "  " * len(head))])


def _as_json(value: Any) -> Any:
    return value if isinstance(value, dict) else to_json(value)


def _entries(data: Any) -> dict[str, Any]:
    """The fields of a JSON object, or the items of a list, by their last name in a path."""
    if isinstance(data, list):
        return {f"[{i}]": item for i, item in enumerate(data)}
    return {key: item for key, item in data.items() if key != "type"}


def _differing_values(values: Sequence[Any], path: str) -> Iterator[tuple[str, Sequence[Any]]]:
    first, *others = values
    if all(value == first for value in others):
        return
    if not all(_is_comparable(first, value) for value in others):
        yield path, values
        return
    entries = [_entries(value) for value in values]
    for name in dict.fromkeys(name for fields in entries for name in fields):
        full_path = path + name if isinstance(first, list) else f"{path}.{name}".lstrip(".")
        yield from _differing_values([fields.get(name, MISSING) for fields in entries], full_path)


def _is_comparable(left: Any, right: Any) -> bool:
    """True if two JSON values are compared entry by entry."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right)
    if not isinstance(left, dict) or not isinstance(right, dict):
        return False
    return left.get("type") == right.get("type") and left.get("type") not in SPECIAL_TYPES


def _format_inline(data: Any) -> str:
    """A JSON value on one line, in the form of Python."""
    if data is MISSING:
        return "absent"
    if isinstance(data, list):
        return "(" + ", ".join(map(_format_inline, data)) + ("," if len(data) == 1 else "") + ")"
    if not isinstance(data, dict):
        return repr(data)
    name = data.get("type")
    if name is None:
        return "{" + ", ".join(f"{key!r}: {_format_inline(item)}" for key, item in data.items()) + "}"
    if name == "dict":
        return "{" + ", ".join(f"{_format_inline(key)}: {_format_inline(item)}" for key, item in data["items"]) + "}"
    if name in ("float", "pathlib.Path", "numpy.dtype"):
        return data["value"] if name == "float" else f"{name.rpartition('.')[2]}({data['value']!r})"
    if _is_dtype_json(data):
        return name
    return f"{name}(" + ", ".join(f"{key}={_format_inline(item)}" for key, item in data.items() if key != "type") + ")"


def _is_dtype_json(data: dict) -> bool:
    return len(data) == 1 and str(data.get("type")).rpartition(".")[0] in DTYPE_MODULES


def _is_multiline(data: Any) -> bool:
    """True if a value has lines of its own: a dataclass, a dict with entries, or a tuple that holds one of them."""
    if isinstance(data, list):
        return any(map(_is_multiline, data))
    if not isinstance(data, dict) or not data or _is_dtype_json(data):
        return False
    return data.get("type") not in SPECIAL_TYPES


def _format_lines(data: Any, indent: str) -> Iterator[str]:
    for name, item in _entries(data).items():
        if not _is_multiline(item):
            yield f"{indent}{name}: {_format_inline(item)}"
            continue
        has_type = isinstance(item, dict) and "type" in item
        yield f"{indent}{name}: {item['type']}" if has_type else f"{indent}{name}:"
        yield from _format_lines(item, indent + "  ")

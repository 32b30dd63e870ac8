"""JSON, read within limits and checked against a type: each mistake is a UserError with its place and its cure.

Python's own reader takes more than JSON (NaN, a name twice in an object, half a surrogate pair), and ends in other
errors for deep nesting, long numbers and other encodings.
"""

import json
import math
import re
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxlm.errors import UserError
from jaxlm.filesystem import format_bytes, read_bounded

MAX_JSON_BYTES = 1 << 26
"""Twice the largest published vocabulary."""

MAX_JSON_DEPTH = 100

RESTORE = "restore it from a copy"

TYPE_TEXTS: dict[Any, str] = {
    Any: "any value", None: "null", types.NoneType: "None", bool: "true or false", int: "an integer",
    float: "a number", str: "a string", dict: "an object", list: "a list", tuple: "a list",
}  # fmt: skip


def read_json(path: Path, annotation: Any = dict, cure: str = RESTORE, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file, which must have the type of `annotation`. Raises UserError that ends with the cure."""
    return parse_json(read_bounded(path, max_bytes), str(path), annotation, cure, max_bytes)


def parse_json(
    text: bytes | str, place: str, annotation: Any = dict, cure: str = RESTORE, max_bytes: int = MAX_JSON_BYTES
) -> Any:
    """The value of a JSON text. Raises UserError, which begins with the place, if it is not JSON, if it has more than
    `max_bytes` or `MAX_JSON_DEPTH` levels, a name twice in one object, a number beyond floating point or half a
    surrogate pair, or if `check_type` refuses it."""
    try:
        if len(text) > max_bytes:
            raise ValueError(f"{format_bytes(len(text))}, expected at most {format_bytes(max_bytes)}")
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        value = json.loads(
            text, object_pairs_hook=unique_names, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded
        )
        if (depth := _depth(value)) > MAX_JSON_DEPTH:
            raise ValueError(f"{depth} levels, expected at most {MAX_JSON_DEPTH}")
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{place}, {line}: not JSON ({error.msg}): {cure}") from None
    except RecursionError:
        raise UserError(f"{place}: more than {MAX_JSON_DEPTH} levels of JSON, the limit: {cure}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 at byte {error.start}: {cure}") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{place}: half of a surrogate pair (\\ud800 to \\udfff), which encodes no character: {cure}"
        ) from None
    except ValueError as error:
        raise UserError(f"{place}: {error}: {cure}") from None
    check_type(value, annotation, place, cure)
    return value


def check_type(value: Any, annotation: Any, place: str, cure: str = RESTORE) -> None:
    """Raises UserError, which begins with the place of the wrong part, if the value does not have the type.

    An annotation is a class, Any, a Literal, a union, a TypedDict, or list, tuple, dict, Sequence or Mapping of others;
    an integer is a number, a truth value is not; a tuple is a list. Other annotations admit every value.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if typing.is_typeddict(annotation):
        _check_record(value, annotation, place, cure)
    elif origin in (typing.Union, types.UnionType):
        _check_union(value, annotation, place, cure)
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        for key, item in value.items():
            check_type(key, arguments[0], f"{place}: the name {key!r:.40}", cure)
            check_type(item, arguments[1], f"{place}.{key!s:.40}", cure)
    elif origin is tuple and arguments[-1:] != (...,) and isinstance(value, tuple | list):
        if len(value) != len(arguments):
            raise UserError(f"{place}: expected {len(arguments)} values, found {len(value)}: {cure}")
        for index, (item, of_item) in enumerate(zip(value, arguments, strict=True)):
            check_type(item, of_item, f"{place}[{index}]", cure)
    elif origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_type(item, arguments[0], f"{place}[{index}]", cure)
    elif not _is_instance(value, annotation, origin, arguments):
        raise UserError(f"{place}: expected {describe_type(annotation)}, found {value!r:.60}: {cure}")


def json_safe(value: Any) -> Any:
    """The value with the numbers that JSON lacks as the strings "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def describe_type(annotation: Any) -> str:
    """The type in words: `an integer`, `None or a string`, `one of "pre", "post"`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe_type, arguments))
    if typing.is_typeddict(annotation):
        return "an object"
    plain: Any = {Mapping: dict, Sequence: list}.get(origin, origin or annotation)
    return TYPE_TEXTS.get(plain) or str(getattr(plain, "__name__", plain))


def _is_instance(value: Any, annotation: Any, origin: Any, arguments: tuple) -> bool:
    """True if a value has a type without parts, or at least the outer class of one with parts."""
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation in (int, float):
        kinds: Any = (int, float) if annotation is float else int
        value = value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value
        return isinstance(value, kinds) and not isinstance(value, bool)
    plain = types.NoneType if annotation is None else origin or annotation
    if plain in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    admits_all = plain is Any or not isinstance(plain, type) or getattr(plain, "_is_protocol", False)
    return admits_all or isinstance(value, plain)


def _check_union(value: Any, annotation: Any, place: str, cure: str) -> None:
    errors = []
    for member in typing.get_args(annotation):
        try:
            return check_type(value, member, place, cure)
        except UserError as error:
            errors.append(str(error))
    inner = [error for error in errors if not error.startswith(f"{place}: expected")]  # of the member that it nearly is
    raise UserError(
        inner[0] if inner else f"{place}: expected {describe_type(annotation)}, found {value!r:.60}: {cure}"
    )


def _check_record(value: Any, annotation: Any, place: str, cure: str) -> None:
    """Every required name is there; the values of known names have their types; other names are let through."""
    if not isinstance(value, Mapping):
        raise UserError(f"{place}: expected an object, found {value!r:.60}: {cure}")
    if missing := sorted(annotation.__required_keys__ - value.keys()):
        raise UserError(f"{place}: it has no {', '.join(missing)}: {cure}")
    for name, of_item in typing.get_type_hints(annotation).items():
        if name in value:
            check_type(value[name], of_item, f"{place}.{name}", cure)


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these members, for Python's reader of JSON. Raises ValueError for a name that is there twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r:.60} is in an object twice")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text:.20} is beyond floating point (1.8e308)")
    return value


def _bounded(text: str) -> int:
    if len(text) > 308:
        raise ValueError(f"the number {text:.20}..., of {len(text)} digits, is beyond floating point (1.8e308)")
    return int(text)


def _depth(value: Any) -> int:
    """Levels of nesting, found level by level: a recursive function would end where the nesting is too deep."""
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)]
        depth += 1
    return depth

"""The object is the config: frozen dataclasses and Linen modules to JSON and back, compared, and printed.

A config value is None, a bool, a number, a string, a `Path`, a NumPy or JAX dtype, or a tuple, a dict or a dataclass
of config values. In JSON a dataclass is `{"type": "package.module.Class", field: value, ...}`, a tuple is a list
(a frozen config holds no lists), and the few values that JSON lacks are objects with a `type` too. Of a Linen module
only the hyper-parameters are kept: `parent` and `name` belong to the tree that it is used in.

    from_json(json.loads(json.dumps(to_json(x)))) == x
"""

import dataclasses
import importlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError

LINEN_FIELDS = ("parent", "name")

DTYPE_MODULES = ("numpy", "jax.numpy")

SPECIAL_TYPES = ("float", "pathlib.Path", "numpy.dtype", "dict")

MISSING = object()


def to_json(value: Any, path: str = "config") -> Any:
    """`value` as what `json.dumps` takes. `where` is the dotted path of `value`, for the message.

    Raises UserError on what a config may not hold: functions, lists, sets, arrays, classes defined inside functions.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, np.generic):
        return to_json(value.item(), path)
    if type(value) is float:
        return value if math.isfinite(value) else {"type": "float", "value": str(value)}
    if isinstance(value, Path):
        return {"type": "pathlib.Path", "value": str(value)}
    if type(value) is tuple:
        return [to_json(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _mapping_to_json(value, path)
    if isinstance(value, np.dtype):
        return {"type": "numpy.dtype", "value": value.name}
    if _is_dtype_class(value):
        return {"type": f"{value.__module__}.{value.__name__}"}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: to_json(getattr(value, name), f"{path}.{name}") for name in field_names(type(value))}
        return {"type": type_name(type(value), path), **fields}
    raise UserError(
        f"{path} is a {type(value).__name__} ({value!r:.80}), which a config cannot hold: "
        "use None, a number, a string, a Path, a dtype, a tuple, a dict or a frozen dataclass"
    )


def from_json(data: Any, path: str = "config") -> Any:
    """The object that `to_json` wrote. Fields that are not in `data` take their defaults.

    Raises UserError on a type that cannot be imported or is no dataclass, and on a field that the dataclass lacks.
    """
    if isinstance(data, list):
        return tuple(from_json(item, f"{path}[{i}]") for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if name is None:
        return {key: from_json(item, f"{path}.{key}") for key, item in data.items()}
    if name == "float":
        return float(data["value"])
    if name == "pathlib.Path":
        return Path(data["value"])
    if name == "dict":
        return {from_json(key, path): from_json(item, f"{path}[{key!r}]") for key, item in data["items"]}
    if name == "numpy.dtype":
        return _parse_dtype(data["value"], path)
    module, _, attribute = str(name).rpartition(".")
    if module in DTYPE_MODULES and len(data) == 1:
        _parse_dtype(attribute, path)
        return getattr(importlib.import_module(module), attribute)
    return _build_dataclass(_import_dataclass(name, path), data, path)


def field_names(cls: type) -> list[str]:
    """The names of the hyper-parameters of a dataclass, in order."""
    linen = any(base.__module__ == "flax.linen.module" and base.__name__ == "Module" for base in cls.__mro__)
    skipped = LINEN_FIELDS if linen else ()
    names = [field.name for field in dataclasses.fields(cls) if field.init and field.name not in skipped]
    if "type" in names:
        raise UserError(
            f"{cls.__module__}.{cls.__qualname__} has a field `type`, which in JSON is the class: rename it"
        )
    return names


def type_name(cls: type, path: str = "config") -> str:
    """`module.Class` by which another process can import `cls`. Raises UserError where there is no such name."""
    module = cls.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is None:
            raise UserError(
                f"{path} is a {cls.__qualname__} of the script being run, which no other program can import: "
                "put the class into a module of its own, or run the script as `python -m package.module`"
            )
        module = spec.name
    if "<locals>" in cls.__qualname__:
        raise UserError(f"{path}: {module}.{cls.__qualname__} is defined inside a function; move it to the top level")
    return f"{module}.{cls.__qualname__}"


def differences(left: Any, right: Any, right_name: str = "there") -> list[str]:
    """What differs between two configs, a line each: `model.layers: 4 here, 6 in D/experiment.json`.

    Both may be objects or what `to_json` made of them; `where` says in the lines what `there` is.
    """
    found: list[str] = []
    _collect_differences(
        _as_json(left), _as_json(right), "", right_name if right_name == "there" else f"in {right_name}", found
    )
    return found


def format_config(obj: Any) -> str:
    """The resolved config as indented text, a field a line, every default spelled out."""
    return "\n".join(_format_lines(_as_json(obj), ""))


def _mapping_to_json(value: Mapping, path: str) -> dict:
    if "type" not in value and all(type(key) is str for key in value):
        return {key: to_json(item, f"{path}.{key}") for key, item in value.items()}
    return {"type": "dict", "items": [[to_json(key, path), to_json(value[key], f"{path}[{key!r}]")] for key in value]}


def _is_dtype_class(value: Any) -> bool:
    """np.float32 (a class) and jnp.float32 (an object that behaves as one) both name their module and the dtype."""
    if getattr(value, "__module__", None) not in DTYPE_MODULES:
        return False
    try:
        return np.dtype(value).name == value.__name__
    except (TypeError, AttributeError):
        return False


def _parse_dtype(name: str, path: str) -> np.dtype:
    try:
        import ml_dtypes  # noqa: F401  teaches NumPy the names bfloat16, float8_e4m3fn, ...

        return np.dtype(name)
    except (ImportError, TypeError) as error:
        raise UserError(f"{path}: {name!r} is no dtype that NumPy or JAX knows here ({error})") from error


def _import_dataclass(name: str, path: str) -> type:
    parts = str(name).split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"{path}: {name!r} is no dataclass: expected a name such as package.module.Class")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
                continue
            raise UserError(f"{path}: {name} needs the module {error.name}, which is not installed here") from error
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
        raise UserError(f"{path}: {name} is no dataclass of module {module} (a config of another version?)")
    raise UserError(
        f"{path}: the module of {name} cannot be imported: "
        "install the package or run in the folder that holds it, or mend the name"
    )


def _build_dataclass(cls: type, data: dict, path: str) -> Any:
    known = field_names(cls)
    unknown = [key for key in data if key != "type" and key not in known]
    if unknown:
        raise UserError(
            f"{path}: {data['type']} has no field {', '.join(unknown)} "
            f"(it has {', '.join(known) or 'none'}): the config is of another version or misspelt"
        )
    values = {key: from_json(item, f"{path}.{key}") for key, item in data.items() if key != "type"}
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{path}: {data['type']} cannot be built from {sorted(values)}: {error}") from error


def _as_json(value: Any) -> Any:
    return value if isinstance(value, dict) else to_json(value)


def _collect_differences(left: Any, right: Any, path: str, right_name: str, lines: list[str]) -> None:
    if left == right:
        return
    if isinstance(left, dict) and isinstance(right, dict) and _is_comparable(left, right):
        for key in [*left, *(key for key in right if key not in left)]:
            _collect_differences(
                left.get(key, MISSING), right.get(key, MISSING), f"{path}.{key}".lstrip("."), right_name, lines
            )
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for i, (one, other) in enumerate(zip(left, right, strict=True)):
            _collect_differences(one, other, f"{path}[{i}]", right_name, lines)
    else:
        lines.append(f"{path or 'config'}: {_format_inline(left)} here, {_format_inline(right)} {right_name}")


def _is_comparable(left: dict, right: dict) -> bool:
    """Whether two JSON objects are to be compared field by field."""
    return left.get("type") == right.get("type") and left.get("type") not in SPECIAL_TYPES


def _format_inline(data: Any) -> str:
    """A JSON value on one line, as it would be typed in Python."""
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
    """Whether a value takes lines of its own: a dataclass, a dict with entries, or a tuple that holds one of them."""
    if isinstance(data, list):
        return any(map(_is_multiline, data))
    if not isinstance(data, dict) or not data or _is_dtype_json(data):
        return False
    return data.get("type") not in SPECIAL_TYPES


def _format_lines(data: Any, indent: str) -> list[str]:
    if not _is_multiline(data):
        return [indent + _format_inline(data)]
    if isinstance(data, list):
        entries = [(f"[{i}]", item) for i, item in enumerate(data)]
        lines = []
    else:
        entries = [(key, item) for key, item in data.items() if key != "type"]
        lines = [indent + data["type"]] if not indent and "type" in data else []
        indent = indent or ("  " if lines else "")
    for key, item in entries:
        if _is_multiline(item):
            head = f": {item['type']}" if isinstance(item, dict) and "type" in item else ":"
            lines += [f"{indent}{key}{head}", *_format_lines(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {_format_inline(item)}")
    return lines

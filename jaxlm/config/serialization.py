"""Configs: frozen dataclasses and Linen modules, written as JSON and read back.

A config value is None, a bool, a number, a string, a `Path`, a NumPy or JAX dtype, or a tuple, a dict or a dataclass
of config values. In JSON a dataclass is `{"type": "package.module.Class", field: value, ...}`, a tuple is a list
(a frozen config holds no lists), and the few values that JSON lacks are objects with a `type` too. A Linen module is
stored without `parent` and `name`, which belong to the module tree around it.

    from_json(json.loads(json.dumps(to_json(x)))) == x
"""

import dataclasses
import importlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.checks import check_fields
from jaxlm.config.trust import UntrustedModule, may_import
from jaxlm.errors import UserError
from jaxlm.json_files import RESTORE

LINEN_FIELDS = ("parent", "name")

DTYPE_MODULES = ("numpy", "jax.numpy")

SPECIAL_TYPES = ("float", "pathlib.Path", "numpy.dtype", "dict")


def to_json(value: Any, path: str = "config") -> Any:
    """The JSON of a config value. `path` is its dotted path, for messages.

    Raises UserError for values that a config cannot hold: functions, lists, sets, arrays, local classes.
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
    if isinstance(value, Mapping) and "type" not in value and all(type(key) is str for key in value):
        return {key: to_json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, Mapping):
        items = [[to_json(key, path), to_json(item, f"{path}[{key!r}]")] for key, item in value.items()]
        return {"type": "dict", "items": items}
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
    """The inverse of `to_json`. Fields that are not in `data` get their defaults.

    Raises UserError for a type that cannot be imported or is not a dataclass, for an unknown field, and for a value
    whose type or range is not that of its field; UntrustedModule for a type whose module must not be imported.
    """
    if isinstance(data, list):
        return tuple(from_json(item, f"{path}[{i}]") for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if name is None:
        return {key: from_json(item, f"{path}.{key}") for key, item in data.items()}
    if name in SPECIAL_TYPES:
        return _special_value(name, data, path)
    module, _, attribute = str(name).rpartition(".")
    if module in DTYPE_MODULES and len(data) == 1:
        _parse_dtype(attribute, path)
        return getattr(importlib.import_module(module), attribute)
    return _build_dataclass(_import_dataclass(name, path), data, path)


def _special_value(name: str, data: dict, path: str) -> Any:
    """The value of an object that represents one that JSON lacks."""
    try:
        if name == "dict":
            return {from_json(key, path): from_json(item, f"{path}[{key!r}]") for key, item in data["items"]}
        if not isinstance(text := data["value"], str):
            raise TypeError(f"its value is {text!r:.40}, expected a string")
        return float(text) if name == "float" else Path(text) if name == "pathlib.Path" else _parse_dtype(text, path)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a value of the type {name!r} ({error!r:.80}): {RESTORE}") from None


def check_config(value: Any, path: str = "config", cure: str = "set another value") -> None:
    """Raises UserError, with its path, for a value in a config whose type or range is not that of its field."""
    for place, part in iter_dataclasses(value, path):
        check_fields(type(part), {name: getattr(part, name) for name in field_names(type(part))}, place, cure)


def iter_dataclasses(value: Any, path: str = "config") -> Iterator[tuple[str, Any]]:
    """Every dataclass in a config with its dotted path, a dataclass before those in its fields."""
    entries: Mapping[str, Any] = {}
    if isinstance(value, tuple):
        entries = {f"[{index}]": item for index, item in enumerate(value)}
    elif isinstance(value, Mapping):
        entries = {f".{key}": item for key, item in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield path, value
        entries = {f".{name}": getattr(value, name) for name in field_names(type(value))}
    for name, item in entries.items():
        yield from iter_dataclasses(item, path + name)


def field_names(cls: type) -> list[str]:
    """The names of the hyper-parameters of a dataclass, in order."""
    linen = any(base.__module__ == "flax.linen.module" and base.__name__ == "Module" for base in cls.__mro__)
    skipped = LINEN_FIELDS if linen else ()
    names = [field.name for field in dataclasses.fields(cls) if field.init and field.name not in skipped]
    if "type" in names:
        name = f"{cls.__module__}.{cls.__qualname__}"
        raise UserError(f"{name} has a field `type`, which in JSON is the class: rename it")
    return names


def type_name(cls: type, path: str = "config") -> str:
    """The name `module.Class` by which another process imports `cls`. Raises UserError if it cannot be imported."""
    module = cls.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is None:
            raise UserError(
                f"{path} is a {cls.__qualname__} of the script being run, which other programs cannot import: "
                "put the class into a module of its own, or run the script as `python -m package.module`"
            )
        module = spec.name
    if "<locals>" in cls.__qualname__:
        raise UserError(f"{path}: {module}.{cls.__qualname__} is defined inside a function; move it to the top level")
    return f"{module}.{cls.__qualname__}"


def _is_dtype_class(value: Any) -> bool:
    """True for np.float32 (a class), jnp.float32 (an object like a class), or another such dtype."""
    if getattr(value, "__module__", None) not in DTYPE_MODULES:
        return False
    try:
        return np.dtype(value).name == value.__name__
    except (TypeError, AttributeError):
        return False


def _parse_dtype(name: str, path: str) -> np.dtype:
    try:
        import ml_dtypes  # noqa: F401  registers the names bfloat16, float8_e4m3fn, ... with NumPy

        return np.dtype(name)
    except (ImportError, TypeError) as error:
        raise UserError(f"{path}: {name!r} is not a dtype of NumPy or JAX ({error})") from error


def _import_dataclass(name: str, path: str) -> type:
    parts = str(name).split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"{path}: {name!r} is not a dataclass: expected a name such as package.module.Class")
    modules = [".".join(parts[:cut]) for cut in range(len(parts) - 1, 0, -1)]
    if modules and not any(map(may_import, modules)):
        raise UntrustedModule(path, name)
    for cut, module in zip(range(len(parts) - 1, 0, -1), modules, strict=True):
        if not may_import(module):
            continue
        try:
            value: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
                continue
            raise UserError(f"{path}: {name} needs the module {error.name}, which is not installed here") from error
        for part in parts[cut:]:
            value = getattr(value, part, None)
        if isinstance(value, type) and dataclasses.is_dataclass(value):
            return value
        if not may_import(modules[0]):
            raise UntrustedModule(path, name)
        raise UserError(f"{path}: {name} is not a dataclass of module {module} (a config of another version?)")
    raise UserError(
        f"{path}: the module of {name} cannot be imported: install the package, run in its folder, or fix the name"
    )


def _build_dataclass(cls: type, data: dict, path: str) -> Any:
    known = field_names(cls)
    unknown = [key for key in data if key != "type" and key not in known]
    if unknown:
        raise UserError(
            f"{path}: {data['type']} has no field {', '.join(unknown)} "
            f"(it has {', '.join(known) or 'none'}): the config is of another version or misspelled"
        )
    values = {key: from_json(item, f"{path}.{key}") for key, item in data.items() if key != "type"}
    check_fields(cls, values, path, "fix the value, or restore the file from a copy")
    try:
        return cls(**values)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: {data['type']} cannot be built from {sorted(values)}: {error}") from error

"""The modules that a config may import: reading a file must not run code that its author put there.

These are jaxlm's own modules and the experiments in its wheel, those that this process has loaded, those that the user
named (`--trust MODULE`), and files that this user has trained with on this machine, at the same place and with the same
content.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypedDict

from jaxlm.errors import UserError
from jaxlm.filesystem import read_bounded, write_atomic

MAX_SOURCE_BYTES = 1 << 24
MAX_REMEMBERED_BYTES = 1 << 20
# The root of the library's experiments in a wheel; absent in a clone, where they are next to `jaxlm`.
SHIPPED = Path(__file__).resolve().parents[1] / "shipped"

_named: set[str] = set()


class ModuleOrigin(TypedDict):
    """The origin of a module: its file, and the digest of its content."""

    file: str
    sha256: str


class UntrustedModule(UserError):
    """A config names a class of a module that must not be imported unasked."""

    def __init__(self, path: str, name: str):
        self.name, self.module = name, name.rpartition(".")[0]
        super().__init__(
            f"{path} is a {name}, which is not a class of jaxlm: to read it runs the code of {self.module}"
        )


def trust_modules(names: Iterable[str], folder: Path) -> None:
    """Let configs import these modules, and those inside them; the folder is searched after all others."""
    _named.update(names)
    if str(folder.absolute()) not in sys.path:
        sys.path.append(str(folder.absolute()))


def may_import(module: str) -> bool:
    """True if a config may have a class of this module."""
    parents = [module[:end] for end, letter in enumerate(module) if letter == "."]
    if SHIPPED.joinpath(*module.split(".")).with_suffix(".py").is_file():
        trust_modules([module], SHIPPED)
    return parents[:1] == ["jaxlm"] or module in sys.modules or bool(_named.intersection([*parents, module]))


def module_origins(classes: Iterable[type]) -> dict[str, ModuleOrigin]:
    """The origins of the classes that are neither jaxlm's nor of an installed package."""
    origins: dict[str, ModuleOrigin] = {}
    for cls in classes:
        module = sys.modules[cls.__module__]
        name = module.__spec__.name if module.__name__ == "__main__" and module.__spec__ else module.__name__
        file = Path(getattr(module, "__file__", None) or "")
        if name.partition(".")[0] != "jaxlm" and file.is_file() and "site-packages" not in file.parts:
            origins[name] = {"file": str(file.resolve()), "sha256": _digest(file)}
    return origins


def copy_sources(origins: Mapping[str, ModuleOrigin], folder: Path) -> None:
    """Copy the files of the modules into the folder, from which they can be imported again."""
    for name, origin in origins.items():
        copy = folder.joinpath(*name.split(".")).with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, read_bounded(origin["file"], MAX_SOURCE_BYTES))


def remember(origins: Mapping[str, ModuleOrigin]) -> None:
    """Note files that the user trains with on this machine, so that later commands may import them unasked."""
    lines = {f"{origin['sha256']}  {origin['file']}" for origin in origins.values()}
    if lines - _remembered() and (file := _memory_file()):
        with contextlib.suppress(OSError, UserError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, "\n".join(sorted(lines | _remembered())) + "\n")


def import_trusted(origins: Mapping[str, ModuleOrigin], copies: Path) -> None:
    """Import the modules whose files the user has trained with and that have not changed since; let those that the user
    named be found in the folder `copies`, after all others."""
    if copies.is_dir() and any(may_import(name) for name in origins):
        trust_modules((), copies)
    for name, origin in origins.items():
        file = Path(origin["file"])
        known = f"{origin['sha256']}  {file}" in _remembered() and file.is_file() and _digest(file) == origin["sha256"]
        words, parts = name.split("."), file.with_suffix("").parts
        parts = parts[:-1] if parts[-1:] == ("__init__",) else parts
        if known and name not in sys.modules and list(parts[-len(words) :]) == words:
            root = str(Path(*parts[: -len(words)]))
            sys.path.insert(0, root)
            try:
                importlib.import_module(name)
            except Exception as error:  # a module may raise anything
                raise UserError(f"{file}, whose classes the experiment uses, cannot be imported: {error!r}") from error
            finally:
                sys.path.remove(root)
                sys.path.append(root)  # for what the module imports later


def _digest(file: Path) -> str:
    return hashlib.sha256(read_bounded(file, MAX_SOURCE_BYTES)).hexdigest()


def _memory_file() -> Path | None:
    """The list of remembered files; None without a home."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "jaxlm" / "trained_files"
    return None


def _remembered() -> set[str]:
    if file := _memory_file():
        with contextlib.suppress(OSError, UserError, UnicodeDecodeError):
            return set(read_bounded(file, MAX_REMEMBERED_BYTES).decode().splitlines())
    return set()


def import_module_or_file(path_or_name: str) -> ModuleType:
    """The module of `package.module` or `path/to/file.py`. Raises UserError if there is none."""
    if path_or_name.endswith(".py") or "/" in path_or_name:
        file = Path(path_or_name)
        if not file.is_file() or file.suffix != ".py":
            raise UserError(f"cannot find the experiment file {path_or_name}: `jaxlm list` shows the experiments")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None  # it ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(file.stem, module)
        spec.loader.exec_module(module)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(path_or_name)
    except ModuleNotFoundError as error:
        if error.name and (path_or_name == error.name or path_or_name.startswith(error.name + ".")):
            raise UserError(
                f"cannot find the experiment {path_or_name!r}: `jaxlm list` shows the experiments"
            ) from None
        raise

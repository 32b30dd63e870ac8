"""The experiments that exist, found by reading their files: nothing is imported, so nothing waits for JAX.

They are the modules of the package `experiments`, in the current folder and beside the library. In a module, a
variant is a function annotated to return an Experiment.
"""

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jaxlm
from jaxlm.cli.usage import Usage, meant

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment

PACKAGE, DEFAULT = "experiments", "experiment"


@dataclass(frozen=True)
class Entry:
    """A variant of an experiment, by the name that the verbs take, and the first line of its docstring."""

    name: str
    summary: str


def entries() -> list[Entry]:
    """Every variant of every experiment, in the order of module names and of the functions in them."""
    found = []
    for module, file in modules().items():
        try:
            tree = _tree(file)
        except Usage as error:
            found.append(Entry(module, str(error)))
            continue
        for variant, function in _makers(tree).items():
            name = module if variant == DEFAULT else f"{module}:{variant}"
            text = ast.get_docstring(function) or ast.get_docstring(tree) or ""
            found.append(Entry(name, text.partition("\n")[0]))
    return found


def modules() -> dict[str, Path]:
    """Dotted name -> file. A module of the current folder hides one of the same name beside the library."""
    found: dict[str, Path] = {}
    for folder in reversed(_folders()):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if not any(part.startswith(("_", ".")) for part in parts):
                found[".".join((PACKAGE, *parts))] = file
    return dict(sorted(found.items()))


def resolve(name: str) -> str:
    """`module[:variant]` or `file.py[:variant]`, checked without importing it; a known file becomes its module.

    Raises Usage where there is no such module, file or variant, with the nearest that exists.
    """
    where, colon, variant = name.partition(":")
    known = modules()
    if where.endswith(".py") or "/" in where:
        file = Path(where)
        if not file.is_file():
            beside = [*map(str, file.parent.glob("*.py")), *known]
            raise Usage(f"no experiment file {where}{meant(where, beside)} (`jaxlm list` shows the experiments)")
        where = next((module for module, path in known.items() if path.resolve() == file.resolve()), where)
    else:
        file = known[where] if where in known else _importable(where, known)
    tree = _tree(file)
    if variant and variant not in _bound(tree):
        there = list(_makers(tree))
        raise Usage(f"{where} has no variant {variant!r}{meant(variant, there)} (it has {', '.join(there) or 'none'})")
    return where + colon * bool(variant) + variant


def load(name: str) -> "Experiment":
    """The experiment that a name from `resolve` stands for; this imports Flax."""
    _join_folders()
    from jaxlm import experiment

    return experiment.load(name)


def _folders() -> list[Path]:
    candidates = (Path.cwd() / PACKAGE, Path(jaxlm.__file__).resolve().parents[1] / PACKAGE)
    return [folder for folder in dict.fromkeys(path.resolve() for path in candidates) if folder.is_dir()]


def _join_folders() -> None:
    """Let `import experiments.x` look into all folders: Python alone would take the package from one of them."""
    try:
        package = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        return
    old = [str(Path(path).resolve()) for path in package.__path__]
    package.__path__ = list(dict.fromkeys([*map(str, _folders()), *old]))


def _importable(where: str, known: dict[str, Path]) -> Path:
    """The file of a module that is no part of `experiments`."""
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError, AttributeError):  # no such parent, or an empty name
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise Usage(f"no experiment {where!r}{meant(where, known)} (`jaxlm list` shows the experiments)")
    return Path(spec.origin)


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise Usage(f"{file} is no Python: {error}") from None


def _makers(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """The functions that are annotated to return an Experiment."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.returns is not None]
    public = [node for node in functions if not node.name.startswith("_")]
    return {node.name: node for node in public if _last_name(node.returns) == "Experiment"}


def _last_name(node: ast.expr | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant):
        return str(node.value).rpartition(".")[2]
    return node.id if isinstance(node, ast.Name) else ""


def _bound(tree: ast.Module) -> set[str]:
    """The names that a module may bind at its top level: a variant may be imported or made there."""
    names = {getattr(node, "name", "") for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names

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

from jaxlm.cli.parser import UsageError, did_you_mean

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment

EXPERIMENTS_PACKAGE, DEFAULT_VARIANT = "experiments", "experiment"


@dataclass(frozen=True)
class ExperimentEntry:
    """A variant of an experiment, by the name that the verbs take, and the first line of its docstring."""

    name: str
    summary: str


def list_experiments() -> list[ExperimentEntry]:
    """Every variant of every experiment, in the order of module names and of the functions in them."""
    found = []
    for module, file in experiment_modules().items():
        try:
            tree = _parse_file(file)
        except UsageError as error:
            found.append(ExperimentEntry(module, str(error)))
            continue
        for variant, function in _variant_functions(tree).items():
            name = module if variant == DEFAULT_VARIANT else f"{module}:{variant}"
            text = ast.get_docstring(function) or ast.get_docstring(tree) or ""
            found.append(ExperimentEntry(name, text.partition("\n")[0]))
    return found


def experiment_modules() -> dict[str, Path]:
    """Dotted name -> file. A module of the current folder hides one of the same name beside the library."""
    found: dict[str, Path] = {}
    for folder in reversed(_experiment_folders()):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if not any(part.startswith(("_", ".")) for part in parts):
                found[".".join((EXPERIMENTS_PACKAGE, *parts))] = file
    return dict(sorted(found.items()))


def resolve_experiment(name: str) -> str:
    """`module[:variant]` or `file.py[:variant]`, checked without importing it; a known file becomes its module.

    Raises Usage where there is no such module, file or variant, with the nearest that exists.
    """
    where, colon, variant = name.partition(":")
    known = experiment_modules()
    if where.endswith(".py") or "/" in where:
        file = Path(where)
        if not file.is_file():
            beside = [*map(str, file.parent.glob("*.py")), *known]
            raise UsageError(
                f"no experiment file {where}{did_you_mean(where, beside)} (`jaxlm list` shows the experiments)"
            )
        where = next((module for module, path in known.items() if path.resolve() == file.resolve()), where)
    else:
        file = known[where] if where in known else _module_file(where, known)
    tree = _parse_file(file)
    if variant and variant not in _bound_names(tree):
        there = list(_variant_functions(tree))
        raise UsageError(
            f"{where} has no variant {variant!r}{did_you_mean(variant, there)} (it has {', '.join(there) or 'none'})"
        )
    return where + colon * bool(variant) + variant


def import_experiment(name: str) -> "Experiment":
    """The experiment that a name from `resolve` stands for; this imports Flax."""
    _merge_experiment_folders()
    from jaxlm import experiment

    return experiment.load_experiment(name)


def _experiment_folders() -> list[Path]:
    candidates = (Path.cwd() / EXPERIMENTS_PACKAGE, Path(__file__).resolve().parents[2] / EXPERIMENTS_PACKAGE)
    return [folder for folder in dict.fromkeys(path.resolve() for path in candidates) if folder.is_dir()]


def _merge_experiment_folders() -> None:
    """Let `import experiments.x` look into all folders: Python alone would take the package from one of them."""
    try:
        package = importlib.import_module(EXPERIMENTS_PACKAGE)
    except ModuleNotFoundError:
        return
    old = [str(Path(path).resolve()) for path in package.__path__]
    package.__path__ = list(dict.fromkeys([*map(str, _experiment_folders()), *old]))


def _module_file(module: str, known_modules: dict[str, Path]) -> Path:
    """The file of a module that is no part of `experiments`."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):  # no such parent, or an empty name
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UsageError(
            f"no experiment {module!r}{did_you_mean(module, known_modules)} (`jaxlm list` shows the experiments)"
        )
    return Path(spec.origin)


def _parse_file(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file} is no Python: {error}") from None


def _variant_functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
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


def _bound_names(tree: ast.Module) -> set[str]:
    """The names that a module may bind at its top level: a variant may be imported or made there."""
    names = {getattr(node, "name", "") for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names

"""The list of experiments, read from the syntax trees of their files without importing them or JAX.

Experiments are the modules of the package `experiments`, in the current folder and next to the library. A variant is a
function of such a module that is annotated to return an Experiment.
"""

import ast
import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jaxlm.cli.parser import UsageError, did_you_mean
from jaxlm.config.trust import MAX_SOURCE_BYTES, SHIPPED, import_module_or_file
from jaxlm.errors import UserError
from jaxlm.filesystem import read_bounded

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment

Config = TypeVar("Config")
EXPERIMENTS_PACKAGE, DEFAULT_VARIANT = "experiments", "experiment"


def list_experiments() -> dict[str, str]:
    """Every variant of every experiment, by module and by place in the file: name on the command line -> summary."""
    summaries = {}
    for module, file in experiment_modules().items():
        try:
            tree = _parse_file(file)
        except UsageError as error:
            summaries[module] = str(error)
            continue
        for variant, function in _variant_functions(tree).items():
            name = module if variant == DEFAULT_VARIANT else f"{module}:{variant}"
            text = ast.get_docstring(function) or ast.get_docstring(tree) or ""
            summaries[name] = text.partition("\n")[0]
    return summaries


def experiment_modules() -> dict[str, Path]:
    """Dotted name -> file. A module of the current folder hides the library's module of the same name."""
    modules: dict[str, Path] = {}
    for folder in reversed(_experiment_folders()):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if not any(part.startswith(("_", ".")) for part in parts):
                modules[".".join((EXPERIMENTS_PACKAGE, *parts))] = file
    return dict(sorted(modules.items()))


def resolve_experiment(name: str) -> str:
    """`module[:variant]` or `file.py[:variant]`, checked without importing it; a known file becomes its module.

    Raises UsageError if the module, file or variant does not exist, with the nearest one that does.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # only a command that names an experiment imports from the current folder
    module, _, variant = name.partition(":")
    known = experiment_modules()
    if module.endswith(".py") or "/" in module:
        file = Path(module)
        if not file.is_file():
            near = did_you_mean(module, [*map(str, file.parent.glob("*.py")), *known])
            raise UsageError(f"no experiment file {module}{near} (`jaxlm list` shows the experiments)")
        module = next((known_name for known_name, path in known.items() if path.resolve() == file.resolve()), module)
    else:
        file = known[module] if module in known else _module_file(module, known)
    tree = _parse_file(file)
    if variant and variant not in _bound_names(tree):
        variants = list(_variant_functions(tree))
        near = did_you_mean(variant, variants)
        raise UsageError(f"{module} has no variant {variant!r}{near} (it has {', '.join(variants) or 'none'})")
    return f"{module}:{variant}" if variant else module


def import_experiment(name: str) -> "Experiment":
    """The experiment of a name from `resolve_experiment`; imports Flax."""
    _search_all_folders()
    from jaxlm import experiment

    return experiment.load_experiment(name)


def load_object(name: str, kind: type[Config]) -> Config:
    """The object `module:name`, such as a Corpus or a function, or what it returns. Raises UserError without one."""
    where, _, variant = resolve_experiment(name).partition(":")
    _search_all_folders()
    value = getattr(import_module_or_file(where), variant, None)
    value = value() if callable(value) and not isinstance(value, kind) else value
    if not isinstance(value, kind):
        expected = f"expected MODULE:NAME, a function that returns a jaxlm.{kind.__name__}"
        raise UserError(f"{name} is a {type(value).__name__}, {expected}")
    return value


def _search_all_folders() -> None:
    """Let `import experiments.x` search all folders; by default Python takes a package from one of them."""
    sys.path.extend(root for folder in _experiment_folders() if (root := str(folder.parent)) not in sys.path)
    with contextlib.suppress(ModuleNotFoundError):
        package = importlib.import_module(EXPERIMENTS_PACKAGE)
        old_paths = [str(Path(path).resolve()) for path in package.__path__]
        package.__path__ = list(dict.fromkeys([*map(str, _experiment_folders()), *old_paths]))


def _experiment_folders() -> list[Path]:
    """The folder of the user, then that of the library: in a clone next to `jaxlm`, in a wheel inside it."""
    clone = Path(__file__).resolve().parents[2]
    candidates = [root / EXPERIMENTS_PACKAGE for root in (Path.cwd(), clone, SHIPPED)]
    return [folder for folder in dict.fromkeys(path.resolve() for path in candidates) if folder.is_dir()]


def _module_file(module: str, known_modules: dict[str, Path]) -> Path:
    """The file of a module outside `experiments`."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):  # no such parent package, or an empty name
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        near = did_you_mean(module, known_modules)
        raise UsageError(f"no experiment {module!r}{near} (`jaxlm list` shows the experiments)")
    return Path(spec.origin)


def _parse_file(file: Path) -> ast.Module:
    try:
        source = read_bounded(file, MAX_SOURCE_BYTES)
    except (UserError, OSError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{file} is not valid Python: {error}") from None


def _variant_functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """The functions that are annotated to return an Experiment."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    types = {node: ast.unparse(node.returns).strip("'").rpartition(".")[2] for node in functions if node.returns}
    return {node.name: node for node in types if types[node] == "Experiment" and not node.name.startswith("_")}


def _bound_names(tree: ast.Module) -> set[str]:
    """The names that a module may bind at its top level; a variant may be imported or assigned there."""
    names = {getattr(node, "name", "") for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names

"""The house rules, checked: which way imports point, how long things may be, their names, what an import costs."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxlm.cli.tools.doctor import CORE_PACKAGES

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "jaxlm").rglob("*.py"))
SOURCES = [*MODULES, *(path for top in ("experiments", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py"))]
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("*.sh"), *ROOT.glob("launch/*"), *(ROOT / "docs").rglob("*.md")]
TEXTS += [*SOURCES, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci/run"]

FILE_LINES, FUNCTION_LINES, PARAMETERS, DEPENDENCIES, FOLDER_FILES, ROOT_MODULES = 300, 45, 7, 12, 15, 12
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "base_utils", "lib", "core", "stuff", "new", "tmp"}

FLOORS = """
jaxlm.errors jaxlm.types jaxlm.filesystem jaxlm.json_files jaxlm.config jaxlm.runtime jaxlm.pytree jaxlm.perf.chips
jaxlm.data.catalog jaxlm.data.download jaxlm.data.files jaxlm.data.ragged jaxlm.data.tokenizers jaxlm.data.storage
jaxlm.data.sources jaxlm.data.chat jaxlm.data.batching jaxlm.data.pretraining jaxlm.data.minilang jaxlm.corpora
jaxlm.trees jaxlm.ngram jaxlm.grammar jaxlm.metrics
jaxlm.distributed
jaxlm.nn.weights jaxlm.nn.layers jaxlm.nn.attention jaxlm.nn.rnn jaxlm.nn.transformer
jaxlm.losses jaxlm.models jaxlm.decode jaxlm.optim jaxlm.finetuning jaxlm.objectives
jaxlm.inference jaxlm.tasks jaxlm.experiment
jaxlm.checkpoint jaxlm.workdir jaxlm.perf jaxlm.training jaxlm.huggingface jaxlm.planner jaxlm.pipeline jaxlm.report
jaxlm.serving jaxlm.scaling jaxlm.cli jaxlm jaxlm.__main__
""".split()
"""The packages and root modules from the ground floor up: a module imports only from its own floor or from a lower one.

`jaxlm` itself is the public face, `jaxlm/__init__.py`.
"""
SEPARATE = {("jaxlm.decode", "jaxlm.models")}
"""Decoding knows models by their contract alone."""
ONE_HOME_EXCEPTIONS = {"State", "main"}
"""Names that every module of a kind defines: the decoding state of a model, the entry point of a command."""


def _name(path: Path) -> str:
    """`jaxlm/nn/layers/linear.py` -> `jaxlm.nn.layers.linear`; a package is named by its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _floor(module: str) -> str | None:
    """The entry of FLOORS that a module belongs to: the longest that it starts with. `jaxlm` stands for
    itself alone.
    """
    floors = [floor for floor in FLOORS if module == floor or (module.startswith(f"{floor}.") and floor != "jaxlm")]
    return max(floors, key=len, default=None)


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path), str(path))


def _place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of every import in a file, those inside functions too."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, f"{_place(path, node.lineno)}: write imports in full"
            # `from jaxlm import losses` imports the module jaxlm.losses, `from jaxlm.losses import x` no module x
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}" if is_package else node.module


def test_every_module_has_a_floor():
    homeless = [_name(path) for path in MODULES if _floor(_name(path)) is None and _text(path)]
    assert not homeless, f"add these to FLOORS: {homeless}"


def test_imports_point_down():
    wrong = []
    for path in MODULES:
        here = _floor(_name(path)) or "jaxlm"
        for line, name in _imports(path):
            if name.split(".")[0] not in {"jaxlm", "experiments"} or name == "jaxlm.__version__":
                continue
            there = _floor(name)
            if there is None or FLOORS.index(there) > FLOORS.index(here) or (here, there) in SEPARATE:
                wrong.append(f"{_place(path, line)}: {here} imports {name} ({there or 'on no floor'})")
    assert not wrong, "\n".join(wrong)


def test_folders_are_small():
    for folder in {path.parent for path in MODULES}:
        files = [path for path in folder.iterdir() if path.suffix in (".py", ".c", ".h") and path.name != "__init__.py"]
        bound = ROOT_MODULES if folder == ROOT / "jaxlm" else FOLDER_FILES
        assert len(files) <= bound, f"{folder.relative_to(ROOT)}: {len(files)} files, at most {bound}"


def test_a_public_name_has_one_home():
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in _tree(path).body:
            names = [node.name] if isinstance(node, (*FUNCTION, ast.ClassDef)) else []
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_") and name not in ONE_HOME_EXCEPTIONS:
                    homes.setdefault(name, []).append(_place(path, node.lineno))
    several = {name: places for name, places in homes.items() if len(places) > 1}
    assert not several, several


def test_files_and_functions_are_short():
    long = []
    for path in SOURCES:
        lines = len(_text(path).splitlines())
        if lines > FILE_LINES:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {FILE_LINES}")
        for node in ast.walk(_tree(path)):
            if isinstance(node, FUNCTION):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{_place(path, node.lineno)}: {node.name}: {lines} lines, at most {FUNCTION_LINES}")
    assert not long, "\n".join(long)


def test_functions_have_few_parameters():
    """Bundles that travel together get a name. Frozen configurations are classes, and not counted."""
    many = []
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, FUNCTION):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                if count > PARAMETERS:
                    many.append(
                        f"{_place(path, node.lineno)}: {node.name} has {count} parameters, at most {PARAMETERS}"
                    )
    assert not many, "\n".join(many)


def test_no_module_has_a_vague_name():
    names = [path.relative_to(ROOT).with_suffix("") for path in SOURCES]
    vague = [str(name) for name in names if VAGUE & set(name.parts)]
    assert not vague, f"name the file for its idea: {vague}"


def test_everything_public_has_a_docstring():
    bare = []
    for path in MODULES:
        tree = _tree(path)
        public = [n for n in tree.body if isinstance(n, (*FUNCTION, ast.ClassDef)) and not n.name.startswith("_")]
        bare += [f"{_place(path, node.lineno)}: {node.name}" for node in public if not ast.get_docstring(node)]
        if tree.body and not ast.get_docstring(tree):
            bare.append(f"{_place(path, 1)}: the module")
    assert not bare, "no docstring:\n" + "\n".join(bare)


def test_the_core_has_few_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(project["dependencies"]) <= DEPENDENCIES
    assert [re.split("[<>=~]", wanted)[0] for wanted in project["dependencies"]] == list(CORE_PACKAGES)


def test_files_speak_of_the_project_alone():
    """No path of one machine and no package registry: either makes a clone fail elsewhere."""
    pattern = re.compile(r"(?<![\w.-])/(work|root|opt)/|(pypi|pythonhosted)\.org|registry\.npmjs", re.IGNORECASE)
    found = []
    for path in TEXTS:
        lines = enumerate(_text(path).splitlines(), 1) if path != Path(__file__).resolve() else ()
        found += [f"{_place(path, number)}: {line.strip()}" for number, line in lines if pattern.search(line)]
    assert not found, "\n".join(found)


LIGHT = [
    "jaxlm",
    "jaxlm.errors",
    "jaxlm.json_files",
    "jaxlm.config.display",
    "jaxlm.data.files",
    "jaxlm.data.tokenizers.loading",
    "jaxlm.data.minilang",
    "jaxlm.corpora.filters",
    "jaxlm.scaling.fit",
]
LIGHT += ["jaxlm.cli.main"]
HEAVY = [
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "tensorflow_datasets",
    "sacrebleu",
    "matplotlib",
    "tensorboardX",
    "torch",
]


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str):
    """What a `--help` or a look at a text file needs does not wait for JAX."""
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.split(), f"import {module} also imports {result.stdout.strip()}"

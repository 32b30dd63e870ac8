"""The house rules, checked: which way imports point, how long things may be, their names, what an import costs."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxlm.cli.doctor import CORE

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "jaxlm").rglob("*.py"))
SOURCES = [*MODULES, *(path for top in ("experiments", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py"))]
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("*.sh"), *ROOT.glob("launch/*"), *(ROOT / "docs").rglob("*.md")]
TEXTS += [*SOURCES, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci/run"]

FILE_LINES, FUNCTION_LINES, DEPENDENCIES = 300, 45, 12
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}

# A name belongs to the longest entry that it starts with. A module imports from its own layer or from a lower one, and
# the two halves of layer 2 do not know each other.
LAYERS = {
    "jaxlm": 0,
    "jaxlm.types": 0,
    "jaxlm.errors": 0,
    "jaxlm.config": 0,
    "jaxlm.nn": 1,
    "jaxlm.data": 1,
    "jaxlm.losses": 1,
    "jaxlm.label_loss": 1,
    "jaxlm.optim": 1,
    "jaxlm.tuning": 1,
    "jaxlm.checkpoint": 1,
    "jaxlm.checksum": 1,
    "jaxlm.disk": 1,
    "jaxlm.leaves": 1,
    "jaxlm.stored_step": 1,
    "jaxlm.axes": 0,
    "jaxlm.parallel": 1,
    "jaxlm.placing": 1,
    "jaxlm.hosts": 1,
    "jaxlm.collectives": 1,
    "jaxlm.chips": 0,
    "jaxlm.flops": 1,
    "jaxlm.metrics": 1,
    "jaxlm.spans": 1,
    "jaxlm.agreement": 1,
    "jaxlm.log": 1,
    "jaxlm.progress": 1,
    "jaxlm.runtime": 1,
    "jaxlm.streams": 1,
    "jaxlm.models": 2,
    "jaxlm.decode": 2,
    "jaxlm.tasks": 3,
    "jaxlm.experiment": 3,
    "jaxlm.workdir": 3,
    "jaxlm.evaluate": 3,
    "jaxlm.flow": 3,
    "jaxlm.flow_figure": 3,
    "jaxlm.train": 3,
    "jaxlm.plan": 3,
    "jaxlm.report": 3,
    "jaxlm.interop": 3,
    "jaxlm.cli": 4,
    "jaxlm.__main__": 4,
    "experiments": 5,
}
STRANGERS = {("jaxlm.models", "jaxlm.decode"), ("jaxlm.decode", "jaxlm.models")}


def _name(path: Path) -> str:
    """`jaxlm/nn/linear.py` -> `jaxlm.nn.linear`; a package is named by its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _entry(module: str) -> str | None:
    """The entry of LAYERS that a module belongs to, or None. `jaxlm` itself stands for no module below it."""
    names = [entry for entry in LAYERS if module == entry or (module.startswith(f"{entry}.") and entry != "jaxlm")]
    return max(names, key=len, default=None)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


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


def test_every_module_has_a_layer():
    homeless = [_name(path) for path in MODULES if _entry(_name(path)) is None]
    assert not homeless, f"add these to LAYERS: {homeless}"


def test_imports_point_down():
    wrong = []
    for path in MODULES:
        here = _entry(_name(path)) or "jaxlm"
        for line, name in _imports(path):
            if name.split(".")[0] in {"jaxlm", "experiments"}:
                there = _entry(name) or "jaxlm"
                if LAYERS[there] > LAYERS[here] or (here, there) in STRANGERS:
                    wrong.append(f"{_place(path, line)}: {here} ({LAYERS[here]}) imports {name} ({LAYERS[there]})")
    assert not wrong, "\n".join(wrong)


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
    assert [re.split("[<>=~]", wanted)[0] for wanted in project["dependencies"]] == list(CORE)


def test_files_speak_of_the_project_alone():
    """No path of one machine and no package registry: either makes a clone fail elsewhere."""
    pattern = re.compile(r"(?<![\w.-])/(work|root|opt)/|(pypi|pythonhosted)\.org|registry\.npmjs", re.IGNORECASE)
    found = []
    for path in TEXTS:
        lines = enumerate(_text(path).splitlines(), 1) if path != Path(__file__).resolve() else ()
        found += [f"{_place(path, number)}: {line.strip()}" for number, line in lines if pattern.search(line)]
    assert not found, "\n".join(found)


LIGHT = ["jaxlm", "jaxlm.errors", "jaxlm.config", "jaxlm.data.text", "jaxlm.data.tokenizer", "jaxlm.data.minilang"]
LIGHT += ["jaxlm.cli.main"]
HEAVY = ["jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "sacrebleu", "matplotlib", "tensorboardX"]


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str):
    """What a `--help` or a look at a text file needs does not wait for JAX."""
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.split(), f"import {module} also imports {result.stdout.strip()}"

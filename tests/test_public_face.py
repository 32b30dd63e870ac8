"""`import jaxlm`: light, complete, and all that an experiment needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.cli_runs import environment

import jaxlm

ROOT = Path(__file__).parents[1]
IMPORT_SECONDS = 0.3


def test_importing_it_imports_no_library():
    program = "import time; began = time.perf_counter(); import jaxlm; print(time.perf_counter() - began)\n"
    program += "import sys; print({'jax', 'flax', 'numpy', 'optax'} & set(sys.modules))\n"
    run = [sys.executable, "-c", program]
    outcomes = [
        subprocess.run(run, env=environment(), capture_output=True, text=True, check=True).stdout.splitlines()
        for _ in range(3)
    ]
    assert [libraries for _, libraries in outcomes] == ["set()"] * 3
    assert min(float(seconds) for seconds, _ in outcomes) < IMPORT_SECONDS


def test_every_name_has_a_home_and_is_listed():
    for name in jaxlm.__all__:
        value = getattr(jaxlm, name)
        home = getattr(value, "__module__", "jaxlm")
        assert home.startswith(("jaxlm", "typing")), (name, home)
    assert set(jaxlm.__all__) <= set(dir(jaxlm)) and "__version__" in dir(jaxlm)
    assert jaxlm.train.__name__ == "train", "no module may take the name of a function"
    with pytest.raises(AttributeError, match="no attribute 'Decodr'"):
        jaxlm.Decodr  # noqa: B018


def test_experiments_import_from_the_face_only():
    for path in sorted((ROOT / "experiments").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            deep = [module for module in modules if str(module).startswith("jaxlm.")]
            assert not deep, f"{path.name}, line {node.lineno}: import from jaxlm, not from {deep[0]}"

"""Docstrings name what exists: fields and parameters in their sections, identifiers in backquotes."""

import ast
import builtins
import keyword
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fixtures.documents import ROOT

TOPS = ("jaxlm", "experiments", "benchmarks", "tests")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
EXTERNAL = {"cantamos", "hugging_face", "SequenceGenerator", "input_ids", "target_prefix"}
"""Words in backquotes that are not identifiers of this project."""


@cache
def _trees() -> dict[Path, ast.Module]:
    files = sorted(file for top in TOPS for file in (ROOT / top).rglob("*.py"))
    return {file.relative_to(ROOT): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def _nodes(top: str = "") -> Iterator[tuple[Path, ast.AST]]:
    for file, tree in _trees().items():
        if file.parts[0].startswith(top):
            yield from ((file, node) for node in ast.walk(tree))


@cache
def _classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for _, node in _nodes("jaxlm") if isinstance(node, ast.ClassDef)}


def _members(node: ast.ClassDef) -> set[str]:
    """Fields, attributes and methods of a class and of its bases in jaxlm."""
    names = {
        word
        for part in ast.walk(node)
        for word in (
            [part.id] if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            else [part.attr] if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
            else [part.name] if isinstance(part, ast.FunctionDef)
            else [part.arg] if isinstance(part, ast.arg)
            else []
        )
    }  # fmt: skip
    bases = [_classes()[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in _classes()]
    return names.union(*map(_members, bases))


def _section(docstring: str, title: str) -> Iterator[str]:
    """The names that an `Attributes:` or `Args:` section explains: `  first, second: text`."""
    section = re.search(rf"^{title}:\n((?:  .*(?:\n|$)|\n)*)", docstring, re.MULTILINE)
    for names in re.findall(r"^  (\w[\w, *]*):", section.group(1) if section else "", re.MULTILINE):
        yield from (name.strip(" *") for name in names.split(","))


def test_sections_explain_fields_and_parameters_that_exist():
    wrong = []
    for file, node in _nodes("jaxlm"):
        if isinstance(node, ast.ClassDef):
            named, known = _section(ast.get_docstring(node) or "", "Attributes"), _members(node)
        elif isinstance(node, ast.FunctionDef):
            variadic = [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, *variadic]
            named, known = _section(ast.get_docstring(node) or "", "Args"), {argument.arg for argument in arguments}
        else:
            continue
        wrong += [f"{file}:{node.lineno}: {node.name} has no {name}" for name in named if name not in known]
    assert not wrong, "\n".join(wrong)


def _docstrings() -> dict[int, ast.Constant]:
    """Every string that stands alone as a statement, by identity."""
    statements = [node.value for _, node in _nodes() if isinstance(node, ast.Expr)]
    return {id(node): node for node in statements if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _identifiers() -> set[str]:
    """Every identifier of the project, every word of its strings, and Python's own names."""
    names = {*dir(builtins), *keyword.kwlist, *EXTERNAL}
    docstrings = _docstrings()
    for file, node in _nodes():
        names |= {file.stem, *file.parts}
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            value = getattr(node, field, None)
            names |= set(value.split(".")) if isinstance(value, str) else set()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            names |= set(re.findall(r"\w+", node.value))
    return names


def test_backquoted_identifiers_exist():
    known, docstrings, wrong = _identifiers(), _docstrings(), []
    for file, node in _nodes("jaxlm"):
        if id(node) in docstrings:
            words = re.findall(r"`([A-Za-z_]\w+)`", docstrings[id(node)].value)
            wrong += [f"{file}:{node.lineno}: {word}" for word in words if word not in known]
    assert not wrong, "\n".join(wrong)

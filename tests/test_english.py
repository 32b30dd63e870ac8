"""The vocabulary of code and documentation: the field's terms, plain English, no coined or dated words.

`python tests/test_english.py [FOLDER]` prints how often each word occurs in a checkout, by package.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

WORDS = {
    "told": r"\btold\b",
    "said": r"\bsaid\b",
    "beside": r"\bbesides?\b",
    "goes on": r"\bgo(?:es)? on\b|\bwent on\b",
    "anew": r"\banew\b",
    "so many": r"\bso many\b",
    "mend": r"\bmend(?:s|ed|ing)?\b",
    "lest": r"\blest\b",
    "for ever": r"\bfor ever\b",
    "whatever": r"\bwhatever\b|\bwhoever\b|\bwherever\b",
    "is no": r"(?<!there )\b(?:is|are) no (?!longer\b|more\b|need\b|such\b|way\b)[a-z]+",
    "lies beside": r"\blies? (?:beside|there)\b|\bstands? (?:beside|for|there)\b",
    "it is told": r"\b(?:if|where|when) (?:it|they|one) (?:is|are) (?:told|asked|said)\b",
}
"""Name of a word -> the pattern that finds it in docstrings, comments, messages and documentation."""

IDENTIFIERS = {"found", "asked", "said", "told", "beside", "anew", "mended", "wanted", "meant"}
"""Names of variables, functions and fields that say nothing of what they hold."""

GENERATED = {"cli.md", "api.md"}
"""Pages of docs/ that repeat the text of the code, where it is counted."""

RIDDLE = re.compile(r"(?:What|How|Which|Who|Whether|Where|Whose)\b(?!.*\?)")
"""A docstring that begins with a question word and asks nothing has no subject."""


def _sources(root: Path) -> list[Path]:
    tops = "jaxlm", "experiments", "benchmarks", "docs/course"
    return sorted(path for top in tops for path in (root / top).rglob("*.py"))


def _documents(root: Path) -> list[Path]:
    native = [p for p in (root / "jaxlm").rglob("*.[ch]")]
    pages = [page for page in (root / "docs").glob("*.md") if page.name not in GENERATED]
    pages += [*(root / "docs/course").glob("*.md"), *(root / "docs/course/en").glob("*.md")]  # es/ is Spanish
    return sorted([*root.glob("*.md"), *pages, *root.glob("launch/*"), *root.glob("*.sh"), *native])


def _prose(path: Path) -> Iterator[str]:
    """The docstrings, comments and other strings of a Python file; the whole text of any other."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield text
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield token.string


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name


def count_old_english(path: Path) -> Counter:
    """How often each word, identifier and riddle occurs in a file."""
    prose = "\n".join(_prose(path))
    counts = Counter({name: len(re.findall(pattern, prose, re.IGNORECASE)) for name, pattern in WORDS.items()})
    if path.suffix == ".py":
        tree = ast.parse(path.read_text(encoding="utf-8"))
        counts.update(f"`{name}`" for name in _names(tree) if name.strip("_").lower() in IDENTIFIERS)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
        counts["What ... / How ..."] += sum(bool(RIDDLE.match(text)) for text in docstrings)
    return +counts


def _by_package(root: Path) -> dict[str, Counter]:
    packages: dict[str, Counter] = {}
    for path in [*_sources(root), *_documents(root)]:
        parts = path.relative_to(root).parts
        name = "/".join(parts[:2] if parts[0] == "jaxlm" and len(parts) > 2 else parts[:1])
        packages.setdefault(name, Counter()).update(count_old_english(path))
    return packages


PLAIN_DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.py")]
PLAIN_DOCUMENTS += [*(ROOT / "docs/course/en").glob("*.md"), *(ROOT / "docs/course/claims").glob("*.py")]
"""Files without any of these words."""
PROJECT_BOUND = 0
"""The most occurrences in the whole project. To be lowered to what remains, never raised."""


@pytest.mark.parametrize("path", PLAIN_DOCUMENTS, ids=lambda path: path.name)
def test_documents_use_plain_english(path: Path):
    """README, docs and their neighbors name things by the field's terms."""
    assert not count_old_english(path), dict(count_old_english(path))


def test_the_project_stays_under_its_bound():
    """Code, comments, messages and documents together."""
    total = sum(counts.total() for counts in _by_package(ROOT).values())
    assert total <= PROJECT_BOUND, f"{total} words of {list(WORDS)} and names of {sorted(IDENTIFIERS)}"


def main(root: Path) -> None:
    """Print the counts of a checkout."""
    packages = _by_package(root)
    for name, counts in packages.items():
        print(f"{counts.total():5} {name}: {', '.join(f'{word} {n}' for word, n in counts.most_common())}")
    total: Counter = sum(packages.values(), Counter())
    print(f"{total.total():5} in all: {', '.join(f'{word} {n}' for word, n in total.most_common())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)

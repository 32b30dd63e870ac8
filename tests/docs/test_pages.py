"""README and docs: links, paths, names and length, and generated pages that are up to date."""

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from types import ModuleType

import pytest
from fixtures.documents import GENERATED, PAGES, ROOT, anchors, blocks, links, prose, spans

README_WORDS = 900
PATH = re.compile(r"(?:\./)?((?:jaxlm|tests|docs|experiments|benchmarks|launch)/[\w./-]*|[\w-]+\.(?:md|sh|toml))")
DOTTED = re.compile(r"(jaxlm(?:\.\w+)+)")
CALL = re.compile(r"([A-Z]\w+)\(([^)]*)\)")


def _generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def test_generated_files_are_up_to_date():
    assert not _generator().outdated(), "run `python docs/generate.py`"


def test_readme_is_short():
    words = len(PAGES["README.md"].split())
    assert words <= README_WORDS, f"README.md has {words} words, at most {README_WORDS}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    folder = ROOT if (ROOT / page).is_file() else ROOT / "docs"
    broken = []
    for target in links(PAGES[page]):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        file = (folder / path).resolve() if path else folder / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken, broken


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str):
    named = [match.group(1) for span in spans(PAGES[page]) if (match := PATH.fullmatch(span))]
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists()]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_exist(page: str):
    """`jaxlm.a.b` in running text is a module or an attribute of one."""
    missing = []
    for name in {match.group(1) for span in spans(PAGES[page]) if (match := DOTTED.match(span))}:
        try:
            _resolve(name)
        except (ImportError, AttributeError) as error:
            missing.append(f"{name}: {error}")
    assert not missing, missing


def _resolve(name: str) -> object:
    if importlib.util.find_spec(name.rpartition(".")[0]) and not hasattr(
        importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]
    ):
        return importlib.import_module(name)
    return getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED])
def test_imports_of_code_blocks_work(page: str):
    for block in blocks(PAGES[page], "python"):
        for line in re.findall(r"^(?:from|import) .*", block, re.MULTILINE):
            exec(line, {})  # noqa: S102


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED])
def test_calls_name_public_classes_and_their_fields(page: str):
    """`Tsv(path, source, target)` and `Beam(4, length_penalty=0.6)` in running text fit the signature."""
    wrong = []
    for name, arguments in CALL.findall(" ".join(f"`{span}`" for span in spans(PAGES[page]))):
        if name not in _class_homes():
            wrong.append(f"jaxlm has no {name}")
            continue
        known = set(inspect.signature(getattr(importlib.import_module(_class_homes()[name]), name)).parameters)
        given = [part.partition("=")[0].strip() for part in arguments.split(",")]
        wrong += [f"{name} has no {word}" for word in given if word.isidentifier() and word not in known]
    assert not wrong, wrong


@functools.cache
def _class_homes() -> dict[str, str]:
    """Name of a public class -> the module that defines it."""
    homes = {}
    for file in (ROOT / "jaxlm").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name] = module
    return homes


SCRIPTS = [*ROOT.glob("*.sh"), *(ROOT / "launch").glob("*.sh")]
OTHER_COMMAND = re.compile(
    r"(?:`|^)(python -m (benchmarks)\.\w+|make|\S*(tpu_setup)\.sh) ([^`#|]*?)(?:`| #|$)", re.MULTILINE
)


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_name_what_exists(page: str):
    """Options and steps of benchmarks and tpu_setup.sh, and targets of make, occur in their sources."""
    sources = {
        "benchmarks": "".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").rglob("*.py")),
        "tpu_setup": "".join(file.read_text(encoding="utf-8") for file in SCRIPTS),
        "make": (ROOT / "Makefile").read_text(encoding="utf-8"),
    }
    wrong = []
    for command, benchmark, setup, arguments in OTHER_COMMAND.findall(PAGES[page]):
        words = arguments.partition(" -- ")[0].split()
        named = [word for word in words if word.startswith("--") and word != "--help"]
        named += words[:1] if not benchmark and not words[0].startswith("-") else []
        source = sources[benchmark or setup or "make"]
        wrong += [
            f"{command} {arguments}: {word}" for word in named if word.partition("=")[0].lstrip("-") not in source
        ]
    assert not wrong, wrong


def test_the_glossary_has_the_shape_letters_of_the_code():
    letters = re.compile(r"\| ([A-Z]) +\| ([^|`(,*:]+\w)")
    code = letters.findall((ROOT / "jaxlm/types.py").read_text(encoding="utf-8"))
    assert sorted(letters.findall(PAGES["glossary.md"])) == sorted(code) != []


def test_every_page_is_in_the_index():
    listed = {target.partition("#")[0] for target in links(PAGES["index.md"])}
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= listed, pages - listed


def test_lines_of_prose_are_short():
    """At most 120 columns; tables, pictures, equations and generated pages are exempt."""
    long = []
    for page, text in PAGES.items():
        for line in prose(text).splitlines() if page not in GENERATED else ():
            if len(line) > 120 and not line.startswith(("|", "<", "!", "    ")):
                long.append(f"{page}: {line}")
    assert not long, "\n".join(long)

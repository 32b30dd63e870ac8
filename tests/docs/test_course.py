"""The course: each page in two languages with the same figures and commands, and claims whose code runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.documents import ROOT, anchors, blocks, links, parse_command, prose, split_words
from fixtures.parsing_only import Accepted, parse_only  # noqa: F401

from docs.course.claims import MODULES
from docs.course.claims.__main__ import main, make_parser
from docs.course.claims.course import CLAIMS, FIGURES
from jaxlm.cli.main import main as jaxlm_main

COURSE = ROOT / "docs/course"
PAGES = {
    f"{page.parent.name}/{page.name}": page.read_text(encoding="utf-8") for page in sorted(COURSE.glob("e[ns]/*.md"))
}
NUMBERS = sorted({name[3:5] for name in PAGES})
ALL = {"README.md": (COURSE / "README.md").read_text(encoding="utf-8"), **PAGES}
WORDS = 400, 750
"""The least and the most words of a page."""


def _languages(number: str) -> list[str]:
    return [text for name, text in PAGES.items() if name[3:5] == number]


def _commands(text: str) -> list[str]:
    return [line for block in blocks(text, "sh") for line in block.splitlines()]


def _figures(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\(\.\./figures/([\w-]+)\.svg\)", text)


def test_the_course_has_a_page_for_each_number():
    claims = {claim.page for claim in CLAIMS.values()}
    assert [int(number) for number in NUMBERS] == sorted(claims) == list(range(1, len(MODULES) + 1))


@pytest.mark.parametrize("number", NUMBERS)
def test_both_languages_have_the_same_figures_and_commands(number: str):
    english, spanish = _languages(number)
    assert _figures(english) == _figures(spanish)
    assert _commands(english) == _commands(spanish)
    assert sorted(blocks(english, "sh")) == sorted(blocks(spanish, "sh"))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_page_shows_every_claim_with_its_command_and_figure(number: str):
    (english, _) = _languages(number)
    names = [claim.name for claim in CLAIMS.values() if claim.page == int(number)]
    assert sorted(_figures(english)) == sorted(names)
    shown = [words[3] for line in _commands(english) if (words := split_words(line))[:2] == ["python", "-m"]]
    assert sorted(shown) == sorted(names)


def test_figures_are_those_of_the_claims():
    assert {file.stem for file in FIGURES.glob("*")} == set(CLAIMS)


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_short(page: str):
    assert WORDS[0] <= len(PAGES[page].split()) <= WORDS[1]
    long = [line for line in prose(PAGES[page]).splitlines() if len(line) > 120 and line[:1] not in ("|", "!", " ")]
    assert not long


@pytest.mark.parametrize("page", ALL)
def test_links_lead_somewhere(page: str):
    for target in links(ALL[page]):
        path, _, anchor = target.partition("#")
        file = (COURSE / page).parent / path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def _shell_lines() -> Iterator[str]:
    texts = [ALL["README.md"], *(text for name, text in PAGES.items() if name.startswith("en"))]
    return (line for text in texts for line in _commands(text))


@pytest.mark.parametrize("line", dict.fromkeys(_shell_lines()))
def test_parsers_accept_every_command_line(line: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    words = split_words(line)
    if words[:3] == ["python", "-m", "docs.course.claims"]:
        assert set(make_parser().parse_args(words[3:]).names) <= set(CLAIMS)
        return
    if words[0] == "make":
        assert f"{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
        return
    command = parse_command("course", line)
    assert command, line
    if command.words[:2] == ("scale", "grid"):
        return  # its own parser needs no run: tests/cli
    request.getfixturevalue("parse_only")
    monkeypatch.chdir(ROOT)
    with pytest.raises(Accepted):
        jaxlm_main(list(command.words))


def test_the_list_names_every_claim(capsys: pytest.CaptureFixture):
    main(["--list"])
    assert capsys.readouterr().out.count("\n") == len(CLAIMS)


def test_an_unknown_claim_is_refused():
    with pytest.raises(SystemExit, match="no claim nothing"):
        main(["nothing"])


FAST = ("vanishing-gradients", "causal-mask")
"""Claims without training."""


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CLAIMS]
)
def test_two_steps_of_each_claim(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only that the code runs: what a claim says needs its whole training."""
    monkeypatch.chdir(tmp_path)
    main([name, "--steps", "2"])
    assert not list(tmp_path.iterdir())

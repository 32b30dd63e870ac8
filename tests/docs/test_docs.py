"""README and docs do what they promise: snippets run, and the parsers accept every command line.

A command is executed, with tiny settings, if it is cheap on a CPU; `launch` runs with --dry-run; every other command is
parsed by its real parser, overrides included.
"""

import contextlib
import inspect
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_laws
from fixtures.cli_runs import environment
from fixtures.documents import PAGES, CommandLine, blocks, command_lines, named_files, parse_command
from fixtures.parsing_only import Accepted, parse_only  # noqa: F401
from fixtures.zoo import Animal

from jaxlm.cli.main import main
from jaxlm.cli.parser import COMMANDS, RECIPES
from jaxlm.cli.training import recipes

TINY = {
    "experiments.quickstart": "--steps 2 --task.train.count 5000 --task.valid.count 8 --task.test.count 8 "
    "--model.width 8 --model.heads 2 --model.hidden 8 --model.encoder-layers 1 --model.decoder-layers 1 "
    "--task.search.max-len-extra 2",
    "mine.py": "--steps 2 --model.width 8 --model.hidden 8 --model.encoder-layers 1 --model.decoder-layers 1",
    "average_lm.py": "--steps 2 --model.width 8 --task.sample-tokens 4",
    "own.py": "--steps 2 --model.width 8 --model.hidden 8 --model.encoder-layers 1 --model.decoder-layers 1 "
    "--task.train.count 90 --task.valid.count 4 --task.test.count 4 --task.search.max-len-extra 2 --log-every 1",
}
"""Experiment -> overrides that make its training a matter of seconds."""

EXECUTED = {
    "README.md": "experiments.quickstart", "getting-started.md": "mine.py", "add-a-model.md": "average_lm.py",
    "own-parts.md": "own.py",
}  # fmt: skip
"""Page -> the experiment of which its commands are executed."""
EXECUTED_COMMANDS = ("train", "predict", "generate")
SMALL_SNIPPET = {
    "40_000": "5_000", '"valid", 500': '"valid", 8', '"test", 1000': '"test", 8', "354, 128, 4, 256": "354, 8, 2, 8",
    "layers=2": "layers=1", "steps=600": "steps=2", "tokens=2048": "tokens=512",
}  # fmt: skip


DATA = os.environ.get("JAXLM_DATA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that a page introduces by name, and the texts that the commands read."""
    root = tmp_path_factory.mktemp("docs")
    files = {path: text for page in PAGES.values() for path, text in named_files(page).items()}
    files |= {"data/train.txt": "the cat sleeps\n" * 200, "data/valid.txt": "the dog sleeps\n" * 20}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is `folder`, and data is looked for there."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    monkeypatch.setenv("JAXLM_CACHE", environment()["JAXLM_CACHE"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


def run_command(words: tuple[str, ...], stdin: str = "") -> tuple[int, str]:
    """Exit code and stdout of a command."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = main(list(words))
    out.seek(0)
    return code, out.read()


@pytest.mark.parametrize("command", command_lines(), ids=str)
def test_parsers_accept_every_command_line(
    command: CommandLine, inside: Path, request: pytest.FixtureRequest, capfd, monkeypatch
):
    words = command.words
    if words[1:2] and words[1].endswith("_labels"):  # the labels of a treebank are read when the experiment is built
        if not DATA:
            pytest.skip("needs $JAXLM_DATA")
        monkeypatch.setenv("JAXLM_DATA", DATA)
    assert words[0] in COMMANDS or words[0].startswith("-"), f"no command {words[0]}"
    if words[0] in ("launch", "scale") and len(words) == 2:
        assert main([*words, "--help"]) == 0
    elif words[0] == "launch":
        cut = words.index("--") if "--" in words else len(words)
        code, _ = run_command((*words[:cut], "--dry-run", *words[cut:]))
        assert code == 0, capfd.readouterr().err
    elif words[0] == "train" and words[1:2] and words[1] in RECIPES:
        assert recipes._parser(words[1]).parse_known_args(words[2:])[1] == []
    elif len(words) > 1:  # `jaxlm train` alone names the command
        request.getfixturevalue("parse_only")
        with pytest.raises(Accepted):
            assert main(list(words)) == 0, capfd.readouterr().err
            raise Accepted  # --help and --version end before the parser returns


def _executed() -> Iterator[CommandLine]:
    for page, experiment in EXECUTED.items():
        made: set[str] = set()
        for block in blocks(PAGES[page], "sh"):
            for line in block.splitlines():
                command = parse_command(page, line) if "jaxlm " in line else None
                if command is None or command.words[0] not in EXECUTED_COMMANDS:
                    continue
                if command.words[0] == "train" and command.words[1] == experiment:
                    made.add(command.words[command.words.index("--workdir") + 1])
                    yield command
                elif command.words[1] in made and (command.stdin or command.words[0] == "generate"):
                    yield command


@pytest.mark.parametrize("page", EXECUTED)
def test_cheap_commands_run(page: str, inside: Path, capfd):
    """In the order of the page: training makes the workdir of the later ones."""
    commands = [command for command in _executed() if command.page == page]
    assert {command.words[0] for command in commands} >= {"train"}
    for command in commands:
        words = command.words
        tiny = TINY[words[1]].split() if words[0] == "train" else []
        code, out = run_command((*words, *tiny), command.stdin)
        assert code == 0, f"{command}: {capfd.readouterr().err}"
        assert len(out.splitlines()) >= len(command.stdin.splitlines())
    if page == "own-parts.md":
        check_own_logger(inside)


def check_own_logger(inside: Path) -> None:
    """The logger of the page got all metrics."""
    logged = {tuple(line.split(",")[:2]) for line in (inside / "runs/own/metrics.csv").read_text().splitlines()}
    lines = map(json.loads, (inside / "runs/own/metrics.jsonl").read_text().splitlines())
    assert logged == {
        (str(line["step"]), name) for line in lines for name in line if name not in ("step", "time/seconds")
    }
    assert "exact" in json.loads((inside / "runs/own/test.json").read_text())["test"]


def test_readme_snippet_runs(inside: Path):
    [snippet] = blocks(PAGES["README.md"], "python")
    assert len([line for line in snippet.splitlines() if line]) <= 14
    for large, small in SMALL_SNIPPET.items():
        assert large in snippet, f"README.md has no {large!r}: adapt SMALL_SNIPPET"
        snippet = snippet.replace(large, small)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(snippet, "README.md", "exec"), {})
    assert out.getvalue().strip()


def test_the_added_model_is_short_and_keeps_the_laws(inside: Path):
    source = (inside / "average_lm.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    names: dict = {"__name__": "average_lm"}
    exec(compile(source, "average_lm.py", "exec"), names)
    animal = Animal(names["AverageLM"](23, width=8), source=False, segments=False)
    laws = [law for name, law in vars(test_laws).items() if name.startswith("test_")]
    laws = [law for law in laws if next(iter(inspect.signature(law).parameters)) == "animal"]
    assert len(laws) >= 6
    for law in laws:
        law(animal, *["holes" for name in inspect.signature(law).parameters if name == "layout"])

"""Running the command line inside the test process, and one trained workdir for all tests of it."""

import functools
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxlm import workdir as workdir_module
from jaxlm.cli.main import main
from jaxlm.parallel import data_mesh

EXPERIMENT = str(Path(__file__).with_name("tiny_experiment.py"))


@dataclass(frozen=True)
class Outcome:
    """Exit code, stdout as bytes, stderr as text."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """stdout, split at LF and nowhere else."""
        assert self.out.endswith(b"\n") or not self.out
        return self.out.decode().split("\n")[:-1]


Command = Callable[..., Outcome]


def environment() -> dict[str, str]:
    """For a process of its own: it finds the library, and keeps its compilations where the tests keep theirs."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    return os.environ | {"JAXLM_CACHE": cache, "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.fixture
def command(capsysbinary: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command("predict", workdir, stdin=b"...")`."""
    monkeypatch.setenv("JAXLM_CACHE", environment()["JAXLM_CACHE"])

    def run(*argv: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsysbinary.readouterr()
        return Outcome(code, out, err.decode())

    return run


@pytest.fixture
def trained(
    tmp_path_factory: pytest.TempPathFactory, command: Command, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Outcome]:
    """A workdir of the tiny experiment, trained once for all tests, and what training said.

    On one device: eight take as long again to compile for.
    """
    monkeypatch.setattr("jaxlm.train.prepare.data_mesh", functools.partial(data_mesh, 1))
    return _trained(tmp_path_factory, command)


@pytest.fixture
def workdir(trained: tuple[Path, Outcome]) -> Path:
    """The folder alone. Tests must not write into it."""
    return trained[0]


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a checkpoint takes longer than answering a line: for tests of what happens to the line."""
    monkeypatch.setattr("jaxlm.workdir.load", _load)


_load = functools.cache(workdir_module.load)


_run: list[tuple[Path, Outcome]] = []


def _trained(factory: pytest.TempPathFactory, command: Command) -> tuple[Path, Outcome]:
    if not _run:
        folder = factory.mktemp("cli") / "run"
        _run.append((folder, command("train", f"{EXPERIMENT}:tiny", "--workdir", folder)))
    return _run[0]

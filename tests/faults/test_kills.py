"""A run that is killed, or whose disk fails, at any file operation is finished by the same command, bit for bit."""

from pathlib import Path

import pytest

from benchmarks.faults import kills
from benchmarks.faults.families import FAMILIES
from benchmarks.faults.fork_server import Server, environment
from benchmarks.faults.injector import KILLS, MODES, compile_injector


def strike(folder: Path, *words: object) -> list[kills.Row]:
    """The rows of `python -m benchmarks.faults.kills WORDS`."""
    try:
        return kills.run(kills.parse([str(word) for word in words]), folder)
    except SystemExit as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("family", [kills.PREPARE])
def test_a_few_operations(family, tmp_path):
    """Of the shards: the process starts once, and is forked."""
    words = ["--families", family, "--first", 2, "--drawn", 1, "--others", 1, "--random", 1, "--processes", 1]
    (row,) = strike(tmp_path, *words)
    assert row.operations > 20 and row.equal == 2 + len(MODES)
    assert not row.faults, row.faults


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, kills.PREPARE])
def test_every_operation_of_the_first_second(family, tmp_path):
    """And at drawn ones of the rest, in every mode, and at random times."""
    (row,) = strike(tmp_path, "--families", family)
    assert not row.faults, row.faults


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A family, its unbroken run, and the process that is forked for each run."""
    folder = tmp_path_factory.mktemp("failed_saves")
    if (library := compile_injector(folder)) is None:
        pytest.skip("no C compiler (cc)")
    env = environment(folder / "compiled", JAXLM_DATA=str(folder), JAXLM_CACHE=str(folder / "native"))
    with Server(folder / "server", env, library) as server:
        yield kills.Target("language_model", folder, kills.write_texts(folder), server), server


@pytest.mark.slow
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in KILLS])
def test_a_failed_save_ends_the_process(mode, place, trained):
    """Within ten seconds, with one sentence and nothing else on stderr; the same command then finishes the run."""
    target, server = trained
    saves = [operation.number for operation in target.operations if "/checkpoints/" in operation.path]
    at = {"first": saves[0], "middle": saves[len(saves) // 2], "last": saves[-1]}[place]
    fault, seconds = target.strike(server, kills.Strike(mode, at), f"{mode}{place}")
    assert not fault and (seconds or 0.0) <= kills.ENDS_WITHIN

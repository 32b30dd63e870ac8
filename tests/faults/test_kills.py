"""A run that is killed, or whose disk fails, at any file operation is finished by the same command, bit for bit."""

from pathlib import Path

import pytest

from benchmarks.faults import kills
from benchmarks.faults.families import FAMILIES
from benchmarks.faults.injector import MODES


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

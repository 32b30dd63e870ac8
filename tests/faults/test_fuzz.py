"""Damaged files are read or refused with one sentence: no raw exception, no hang, no gigabyte."""

import random
from pathlib import Path

import pytest

from benchmarks.faults import fuzz
from benchmarks.faults.fuzz_worker import ALL_READERS, case, fault_of
from benchmarks.faults.readers import READERS
from benchmarks.faults.readers_storage import STORAGE_READERS

pytest.importorskip("tokenizers")  # some of the files are made with it

CASES = 60
QUICK = [*READERS, *STORAGE_READERS]


def test_cases_are_functions_of_their_numbers():
    wholes = [b'{"a": [1, 2]}\n', b"x\ty\n"]
    first, again, other = ([case("x", wholes, seed, number) for number in range(200)] for seed in (0, 0, 1))
    assert first == again and first != other
    assert len({*first}) > 150


def test_faults_are_seen(tmp_path, monkeypatch):
    """A raw exception and a hang are no refusals."""

    def read(content: bytes, folder: Path) -> None:
        if content == b"hang":
            while True:
                random.random()
        raise KeyError(content)

    from benchmarks.faults import fuzz_worker
    from benchmarks.faults.readers import Reader

    reader = Reader(lambda folder: [b""], read)
    assert fault_of(reader, b"x", tmp_path)[0].startswith("KeyError")
    monkeypatch.setattr(fuzz_worker, "CASE_SECONDS", 0.05)
    assert fault_of(reader, b"hang", tmp_path)[0] == "hang"
    assert fuzz_worker.shrink(reader, b"x" * 1000, "KeyError elsewhere", tmp_path) == b""


@pytest.mark.parametrize("name", QUICK)
def test_some_damage(name, tmp_path):
    """The first cases of each reader that reads in less than a millisecond."""
    reader = ALL_READERS[name]
    wholes = reader.prepare(tmp_path)
    found = [(number, fault_of(reader, case(name, wholes, 0, number), tmp_path)) for number in range(CASES)]
    assert not [pair for pair in found if pair[1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_READERS)
def test_a_minute_of_damage(name, tmp_path):
    row = fuzz.fuzz(name, 1, 60.0, tmp_path)
    assert row.cases and not row.faults, row.faults

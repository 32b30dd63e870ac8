"""Two hosts of which one is killed, stopped, late, absent, of other data or options, or out of disk space."""

import pytest

from benchmarks.faults.hosts import MISHAPS, Pair

TIMES = 2
"""One try for each host; `python -m benchmarks.faults.hosts` makes five."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return Pair(tmp_path_factory.mktemp("hosts"), None)


@pytest.mark.slow
@pytest.mark.parametrize("name", MISHAPS)
def test_a_mishap_is_named_and_the_run_finished(name, pair):
    outcomes = [pair.try_mishap(name, number) for number in range(TIMES)]
    assert not [str(outcome) for outcome in outcomes if outcome.fault]

"""SIGTERM at any time of a run, evaluations included: saved, code 130, finished later bit for bit."""

import pytest

from benchmarks.faults.interrupts import interrupt


@pytest.mark.slow
def test_twenty_signals(tmp_path):
    results = interrupt(20, tmp_path)
    assert not [str(result) for result in results if result.fault]

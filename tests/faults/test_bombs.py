"""Bombs and absurd sizes are refused, or read, within seconds and half a gigabyte."""

import pytest

from benchmarks.faults.bombs import BOMBS, explode

QUICK = "regex (((...a*)*)*...", "xml: entities", "safetensors: header of 1e9"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BOMBS]
)
def test_a_bomb(name):
    outcome = explode(name)
    assert not outcome.fault, str(outcome)

"""Reasons to stop: evaluations without improvement, and none because an evaluation takes long."""

import contextlib
from dataclasses import replace

from fixtures.tiny_run import EXPERIMENT

from jaxlm.distributed import multihost
from jaxlm.distributed.sharding import data_mesh
from jaxlm.training import setup
from jaxlm.training.loop import train
from jaxlm.training.stopping import EarlyStopping


def test_an_evaluation_is_not_silent(tmp_path, monkeypatch):
    """The watchdog of --step-timeout hears of each batch of an evaluation."""
    steps = []
    monkeypatch.setattr(setup, "data_mesh", lambda: data_mesh(1))
    monkeypatch.setattr(multihost, "watchdog", lambda _: contextlib.nullcontext(lambda: steps.append(1)))
    train(replace(EXPERIMENT, steps=2, evaluate_every=2), tmp_path / "run")
    assert len(steps) >= 2 + 2


def test_patience_counts_what_is_no_number_as_worse():
    progress = (
        EarlyStopping().update(float("nan"), 1).update(2.0, 2).update(float("inf"), 3).update(None, 4).update(2.0, 5)
    )
    assert progress == EarlyStopping(2.0, 2, 3, (None, 2.0, None, None, 2.0))

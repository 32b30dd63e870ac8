"""Traces of training steps: the steps that were asked for, none else, and no fault of a trace ends a run."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from fixtures.tiny_run import EXPERIMENT

from jaxlm.distributed.sharding import data_mesh
from jaxlm.errors import UserError
from jaxlm.training import loop, setup
from jaxlm.training.loop import train
from jaxlm.training.profiling import StepProfiler, profile_steps
from jaxlm.training.run_options import RunOptions


@pytest.fixture
def traced(monkeypatch):
    """The calls of JAX's profiler, which does nothing."""
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, profiler_options: calls.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def run(profiler: StepProfiler, calls: list[str], steps: range, signals: tuple[int, ...] = ()) -> None:
    for step in steps:
        if step in signals:
            os.kill(os.getpid(), signal.SIGUSR1)
        profiler.before_step(step)
        calls.append(str(step))
        profiler.after_step(step, None)


def test_the_steps_that_were_asked_for(traced):
    with profile_steps(Path("trace"), (3, 4), print) as profiler:
        run(profiler, traced, range(1, 7))
    assert traced == ["1", "2", "start trace", "3", "4", "stop", "5", "6"]


def test_a_signal_asks_for_the_next_five_steps(traced):
    before = signal.getsignal(signal.SIGUSR1)
    with profile_steps(Path("trace"), None, print) as profiler:
        run(profiler, traced, range(1, 10), signals=(2, 3, 9))
    assert traced == ["1", "start trace", *"23456", "stop", "start trace", *"789", "stop"]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_no_fault_of_a_trace_ends_a_run(monkeypatch):
    lines: list[str] = []

    def fail(*_, **__):
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    with profile_steps(Path("trace"), (2, 3), lines.append, done=2) as profiler:
        run(profiler, [], range(2, 5))
    assert "step 2 is done already" in lines[0] and "Only one profile" in lines[1] and len(lines) == 2


def test_a_run_writes_its_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "data_mesh", lambda: data_mesh(1))
    experiment = replace(EXPERIMENT, steps=3, log_every=1, evaluate_every=100)
    monkeypatch.setattr(
        loop.TrainLoop, "_evaluate_unless_stopped", lambda self, state, step, reason, _: (state, reason)
    )
    with pytest.raises(UserError, match="begins with step 4, and the run has 3"):
        train(experiment, tmp_path / "run", run_options=RunOptions(profile_steps=(4, 5)))
    train(experiment, tmp_path / "run", run_options=RunOptions(profile_steps=(2, 3)))
    (written,) = (tmp_path / "run/profile").rglob("*.xplane.pb")
    assert written.stat().st_size > 1000

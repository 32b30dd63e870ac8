"""The training loop: batches in, steps dispatched, figures out; evaluated, saved, resumed, stopped."""

import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm import config, hosts, runtime, workdir
from jaxlm.checkpoint import Checkpoints
from jaxlm.data.pipeline import Pipeline
from jaxlm.disk import alone
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.leaves import exchanged
from jaxlm.log import Log, sign
from jaxlm.placing import put_batch, put_everywhere
from jaxlm.train.fit import fit
from jaxlm.train.machine import PLAIN, Machine
from jaxlm.train.meter import Meter
from jaxlm.train.patience import Progress
from jaxlm.train.prepare import VALID_TOKENS, Prepared, prepare
from jaxlm.train.source import resolved
from jaxlm.train.state import TrainState
from jaxlm.train.stopping import asked_to_stop, signals
from jaxlm.train.utilisation import utilisation


def train(experiment: Experiment, folder: Path, minutes: float = 0.0, machine: Machine = PLAIN) -> dict[str, Any]:
    """Train, or go on from the newest whole checkpoint in `folder`; the last figures, for a JSON line.

    Ctrl-C or SIGTERM saves and stops ("interrupted": True); the same call then goes on. After `minutes` of wall time
    (0: no limit) the run is evaluated, saved and stopped. A model that is fitted in closed form is fitted at once.
    Of several processes each calls it, and the first one writes and speaks. Raises UserError on every mistake that can
    be known, before training starts where possible.
    """
    with ExitStack() as stack:
        hosts.together(lambda: stack.enter_context(alone(folder)) if hosts.first() else None)
        experiment = resolved(experiment, folder)
        if met := hosts.check(json.dumps(config.to_json(experiment)), workdir.versions()):
            note(met)
        if hasattr(experiment.model, "fit"):
            if hosts.count() > 1:
                raise UserError("a model that is counted is counted by one process: start one")
            return fit(experiment, folder, note)
        prepared = prepare(experiment, folder, note, machine)
        checkpoints = Checkpoints(folder / "checkpoints", experiment.keep, keep_best=experiment.best)
        stack.enter_context(checkpoints)
        state, meta, step = _resume(prepared, checkpoints)
        log = Log(folder, total=experiment.steps, resume_step=step, best=experiment.best, main=hosts.first())
        stack.enter_context(log)
        batches = stack.enter_context(Pipeline(prepared.batches, step or 0, machine.threads, machine.workers))
        stopped = stack.enter_context(signals())
        watchdog = stack.enter_context(hosts.Watchdog(machine.hang))
        return Run(prepared, checkpoints, log, meta, minutes, watchdog).steps(state, batches, stopped)


class Run:
    """One call of `train`: the parts, and what has been learnt so far about how it goes."""

    def __init__(
        self, prepared: Prepared, checkpoints: Checkpoints, log: Log, meta: dict[str, Any], minutes: float,
        watchdog: hosts.Watchdog,
    ):  # fmt: skip
        self.deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        self.prepared, self.checkpoints, self.log, self.watchdog = prepared, checkpoints, log, watchdog
        self.progress = Progress(**meta.get("progress", {}))
        self.experiment = prepared.experiment
        self.meter = Meter(meta.get("meter"))
        self.mfu = utilisation(prepared.experiment, prepared.mesh)
        self.figures: dict[str, float] = {}
        self.first_step_seconds: float | None = None
        self.metric: float | None = None

    def steps(self, state: TrainState, batches: Iterator, stopped: threading.Event) -> dict[str, Any]:
        """Every step that is left."""
        step, last, reason = int(state.step), self.experiment.steps, self._impatient()
        self.meter.restart()
        while step < last and reason is None:
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            state, metrics = self.prepared.step(state, put_batch(batch, self.prepared.mesh))
            step += 1
            self.meter.add(metrics, waited)
            if self.first_step_seconds is None:
                jax.block_until_ready(metrics)
                self.first_step_seconds = runtime.seconds_since_start()
            self.log.move(step)
            self.watchdog.alive()
            state, reason = self._housekeeping(state, step, stopped)
        return self._summary(state, step, reason)

    def _housekeeping(self, state: TrainState, step: int, stopped: threading.Event) -> tuple[TrainState, str | None]:
        """Log, evaluate and save where due; the state to go on with, and a reason to stop or None."""
        experiment = self.experiment
        reason = asked_to_stop(stopped, step, time.monotonic() > self.deadline)
        end = step == experiment.steps or reason == "time"
        if step % experiment.log_every == 0 or end:
            figures = self.meter.read()
            if self.mfu is not None:
                figures["time/mfu"] = self.mfu(figures["time/tokens_per_second"])
            self.log.write(step, figures)
            self._check_finite(figures["train/loss"], step)
            self.figures |= figures
        self.metric = None
        if (step % experiment.evaluate_every == 0 or end) and reason != "interrupted":
            try:
                self._evaluate(state, step)
            except UserError:  # what was trained is not lost by what it is judged on
                if hosts.count() == 1:  # the others may be waiting elsewhere for this host
                    self._save(state, step)
                raise
            state = self._averaging(state)
            reason = reason or self._impatient()
        if step % experiment.checkpoint_every == 0 or end or reason:
            self._save(state, step)
        return state, reason

    def _averaging(self, state: TrainState) -> TrainState:
        """The same state, or one whose parameters are averaged from here on (NT-ASGD)."""
        patience = self.experiment.average_after
        if not patience or int(state.averaged) or not self.progress.stalled(patience):
            return state
        self.log.note(f"no better than {patience} evaluations ago: the parameters are averaged from here on")
        return replace(state, averaged=put_everywhere(np.int32(1), self.prepared.mesh))

    def _save(self, state: TrainState, step: int) -> None:
        meta = {"progress": vars(self.progress), "meter": self.meter.sums()}
        self._check_finite(meta["meter"]["total"], step)
        self.checkpoints.save(step, _swap(state), meta, self.metric)
        self.meter.restart()

    def _impatient(self) -> str | None:
        patience = self.experiment.patience
        return "patience" if patience and self.progress.worse >= patience else None

    def _evaluate(self, state: TrainState, step: int) -> None:
        experiment = self.experiment
        params = _swap(state).params
        arguments = (experiment.model, params, self.prepared.tokenizer, experiment.objective, VALID_TOKENS)
        figures = experiment.task.validate(*arguments)
        figure = figures.get(experiment.best)
        if figure is None:
            raise UserError(f"best = {experiment.best!r}, but the figures are {', '.join(figures)}: choose one of them")
        self.metric = sign(experiment.best) * figure
        self.progress = self.progress.after(self.metric, step)
        self.figures |= figures
        self.log.write(step, figures)
        self.meter.restart()

    def _check_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} before step {step}: lower --optimizer.schedule.peak, raise its warm-up, or "
                "set --optimizer.clip 1; the newest checkpoint is from before"
            )

    def _summary(self, state: TrainState, step: int, reason: str | None) -> dict[str, Any]:
        self.checkpoints.wait()
        summary: dict[str, Any] = {"step": step, **self.figures, "seconds_to_first_step": self.first_step_seconds}
        name, best = self.experiment.best, self.progress.best
        summary["best_step"] = self.progress.best_step
        summary[f"best/{name}"] = None if best is None else sign(name) * best
        if reason:
            summary["stopped"] = reason
        return summary


def note(text: str) -> None:
    """A line for whoever watches, before there is a progress bar."""
    if hosts.first():
        print(text, file=sys.stderr, flush=True)


def _resume(prepared: Prepared, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any], int | None]:
    """The state to start from, what was saved with it, and the step that it was saved at (None: it is new)."""
    if not checkpoints.steps():
        return prepared.create(), {}, None
    state, meta, step = checkpoints.restore(_swap(prepared.abstract_state))
    note(f"resuming from step {step}")
    return _swap(state), meta, step


def _swap(state: TrainState) -> TrainState:
    """A checkpoint's `params` are those to use: the moving average, where there is one."""
    if state.ema is None:
        return state
    params, ema = exchanged(state.ema, state.params)
    return replace(state, params=params, ema=ema)

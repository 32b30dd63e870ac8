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

from jaxlm import config, runtime, workdir
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.data.batching.loader import DataLoader
from jaxlm.distributed import multihost
from jaxlm.distributed.placement import put_batch, replicate
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.filesystem import lock_folder
from jaxlm.inference.base import TrainedModel
from jaxlm.perf.flops import make_mfu_fn
from jaxlm.pytree import swap_leaves
from jaxlm.training.fit import fit_closed_form
from jaxlm.training.initialize import resolve_init
from jaxlm.training.metrics_log import MetricsLog, metric_sign
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.setup import VALID_BATCH_TOKENS, TrainSetup, setup_training
from jaxlm.training.state import TrainState
from jaxlm.training.stopping import EarlyStopping, stop_reason, stop_signals
from jaxlm.training.throughput import ThroughputMeter


def train(
    experiment: Experiment, folder: Path, minutes: float = 0.0, run_options: RunOptions = DEFAULT_RUN_OPTIONS
) -> dict[str, Any]:
    """Train, or go on from the newest whole checkpoint in `folder`; the last figures, for a JSON line.

    Ctrl-C or SIGTERM saves and stops ("interrupted": True); the same call then goes on. After `minutes` of wall time
    (0: no limit) the run is evaluated, saved and stopped. A model that is fitted in closed form is fitted at once.
    Of several processes each calls it, and the first one writes and speaks. Raises UserError on every mistake that can
    be known, before training starts where possible.
    """
    with ExitStack() as stack:
        multihost.all_or_none(lambda: stack.enter_context(lock_folder(folder)) if multihost.is_first() else None)
        experiment = resolve_init(experiment, folder)
        if met := multihost.check_hosts(json.dumps(config.to_json(experiment)), workdir.library_versions()):
            print_status(met)
        if hasattr(experiment.model, "fit"):
            if multihost.num_hosts() > 1:
                raise UserError("a model that is counted is counted by one process: start one")
            return fit_closed_form(experiment, folder, print_status)
        prepared = setup_training(experiment, folder, print_status, run_options)
        checkpoints = Checkpoints(folder / "checkpoints", experiment.keep_checkpoints, keep_best=experiment.best_metric)
        stack.enter_context(checkpoints)
        state, meta, step = _resume(prepared, checkpoints)
        log = MetricsLog(
            folder,
            total_steps=experiment.steps,
            resume_step=step,
            best_metric=experiment.best_metric,
            is_main=multihost.is_first(),
        )
        stack.enter_context(log)
        batches = stack.enter_context(DataLoader(prepared.batches, step or 0, run_options.threads, run_options.workers))
        stopped = stack.enter_context(stop_signals())
        watchdog = stack.enter_context(multihost.Watchdog(run_options.step_timeout))
        return TrainLoop(prepared, checkpoints, log, meta, minutes, watchdog).run_steps(state, batches, stopped)


class TrainLoop:
    """One call of `train`: the parts, and what has been learnt so far about how it goes."""

    def __init__(
        self, prepared: TrainSetup, checkpoints: Checkpoints, log: MetricsLog, meta: dict[str, Any], minutes: float,
        watchdog: multihost.Watchdog,
    ):  # fmt: skip
        self.deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        self.prepared, self.checkpoints, self.log, self.watchdog = prepared, checkpoints, log, watchdog
        self.early_stopping = EarlyStopping(**meta.get("early_stopping", {}))
        self.experiment = prepared.experiment
        self.meter = ThroughputMeter(meta.get("meter"))
        self.mfu = make_mfu_fn(prepared.experiment, prepared.mesh)
        self.last_metrics: dict[str, float] = {}
        self.first_step_seconds: float | None = None
        self.valid_metric: float | None = None

    def run_steps(self, state: TrainState, batches: Iterator, stopped: threading.Event) -> dict[str, Any]:
        """Every step that is left."""
        step, last, reason = int(state.step), self.experiment.steps, self._out_of_patience()
        self.meter.reset_clock()
        while step < last and reason is None:
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            state, metrics = self.prepared.train_step(state, put_batch(batch, self.prepared.mesh))
            step += 1
            self.meter.add(metrics, waited)
            if self.first_step_seconds is None:
                jax.block_until_ready(metrics)
                self.first_step_seconds = runtime.seconds_since_start()
            self.log.set_step(step)
            self.watchdog.reset()
            state, reason = self._log_eval_save(state, step, stopped)
        return self._summary(state, step, reason)

    def _log_eval_save(self, state: TrainState, step: int, stopped: threading.Event) -> tuple[TrainState, str | None]:
        """Log, evaluate and save where due; the state to go on with, and a reason to stop or None."""
        experiment = self.experiment
        reason = stop_reason(stopped, step, time.monotonic() > self.deadline)
        end = step == experiment.steps or reason == "time"
        if step % experiment.log_every == 0 or end:
            figures = self.meter.compute_metrics()
            if self.mfu is not None:
                figures["time/mfu"] = self.mfu(figures["time/tokens_per_second"])
            self.log.write(step, figures)
            self._check_finite(figures["train/loss"], step)
            self.last_metrics |= figures
        self.valid_metric = None
        if (step % experiment.evaluate_every == 0 or end) and reason != "interrupted":
            try:
                self._evaluate(state, step)
            except UserError:  # what was trained is not lost by what it is judged on
                if multihost.num_hosts() == 1:  # the others may be waiting elsewhere for this host
                    self._save(state, step)
                raise
            state = self._start_averaging(state)
            reason = reason or self._out_of_patience()
        if step % experiment.checkpoint_every == 0 or end or reason:
            self._save(state, step)
        return state, reason

    def _start_averaging(self, state: TrainState) -> TrainState:
        """The same state, or one whose parameters are averaged from here on (NT-ASGD)."""
        patience = self.experiment.nt_asgd_patience
        if not patience or int(state.averaged_updates) or not self.early_stopping.no_longer_improving(patience):
            return state
        self.log.print_line(f"no better than {patience} evaluations ago: the parameters are averaged from here on")
        return replace(state, averaged_updates=replicate(np.int32(1), self.prepared.mesh))

    def _save(self, state: TrainState, step: int) -> None:
        meta = {"early_stopping": vars(self.early_stopping), "meter": self.meter.pending_sums()}
        self._check_finite(meta["meter"]["total"], step)
        self.checkpoints.save(step, _swap_ema(state), meta, self.valid_metric)
        self.meter.reset_clock()

    def _out_of_patience(self) -> str | None:
        patience = self.experiment.patience
        return "patience" if patience and self.early_stopping.evals_since_best >= patience else None

    def _evaluate(self, state: TrainState, step: int) -> None:
        experiment = self.experiment
        trained = TrainedModel(experiment.model, _swap_ema(state).params, self.prepared.tokenizer)
        figures = experiment.task.validate(trained, experiment.objective, VALID_BATCH_TOKENS)
        figure = figures.get(experiment.best_metric)
        if figure is None:
            raise UserError(
                f"best_metric = {experiment.best_metric!r}, but the figures are {', '.join(figures)}: choose one "
                "of them"
            )
        self.valid_metric = metric_sign(experiment.best_metric) * figure
        self.early_stopping = self.early_stopping.update(self.valid_metric, step)
        self.last_metrics |= figures
        self.log.write(step, figures)
        self.meter.reset_clock()

    def _check_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} before step {step}: lower --optimizer.schedule.peak, raise its warm-up, or "
                "set --optimizer.clip 1; the newest checkpoint is from before"
            )

    def _summary(self, state: TrainState, step: int, reason: str | None) -> dict[str, Any]:
        self.checkpoints.wait()
        summary: dict[str, Any] = {"step": step, **self.last_metrics, "seconds_to_first_step": self.first_step_seconds}
        name, best = self.experiment.best_metric, self.early_stopping.best
        summary["best_step"] = self.early_stopping.best_step
        summary[f"best/{name}"] = None if best is None else metric_sign(name) * best
        if reason:
            summary["stopped"] = reason
        return summary


def print_status(text: str) -> None:
    """A line for whoever watches, before there is a progress bar."""
    if multihost.is_first():
        print(text, file=sys.stderr, flush=True)


def _resume(prepared: TrainSetup, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any], int | None]:
    """The state to start from, what was saved with it, and the step that it was saved at (None: it is new)."""
    if not checkpoints.steps():
        return prepared.init_state(), {}, None
    state, meta, step = checkpoints.restore(_swap_ema(prepared.abstract_state))
    print_status(f"resuming from step {step}")
    return _swap_ema(state), meta, step


def _swap_ema(state: TrainState) -> TrainState:
    """A checkpoint's `params` are those to use: the moving average, where there is one."""
    if state.ema is None:
        return state
    params, ema = swap_leaves(state.ema, state.params)
    return replace(state, params=params, ema=ema)

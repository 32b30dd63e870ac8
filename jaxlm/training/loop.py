"""Training: set up or resume a run, dispatch its steps, log, evaluate, save, stop; or fit a model in closed form."""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import runtime
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.checkpoint.step_io import checksums
from jaxlm.config.serialization import to_json
from jaxlm.data.batching.loader import DataLoader
from jaxlm.distributed import multihost
from jaxlm.distributed.placement import put_batch, replicate
from jaxlm.errors import SaveError, UserError
from jaxlm.experiment import Experiment, check_closed_form, load_experiment
from jaxlm.filesystem import lock_folder
from jaxlm.inference.base import TrainedModel
from jaxlm.perf.flops import make_mfu_fn
from jaxlm.pytree import named_leaves, swap_leaves
from jaxlm.training.initialize import load_init_params, resolve_init
from jaxlm.training.metrics_log import MakeLogger, MetricsLog, metric_sign
from jaxlm.training.profiling import StepProfiler, ThroughputMeter, profile_steps
from jaxlm.training.reference import with_reference
from jaxlm.training.rollout import with_rollout
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.setup import VALID_BATCH_TOKENS, TrainSetup, load_data, open_run, setup_training
from jaxlm.training.state import TrainState
from jaxlm.training.stopping import EarlyStopping, EvaluationInterrupted, stop_reason, stop_signals
from jaxlm.workdir import Workdir


def train(
    experiment: Experiment | str, folder: Path | str, minutes: float = 0.0,
    run_options: RunOptions = DEFAULT_RUN_OPTIONS, logger: MakeLogger | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train an experiment (or `module:variant`, see `load_experiment`), or resume from the newest whole checkpoint of
    the workdir `folder`; return the last metrics.

    Ctrl-C or SIGTERM saves and stops ("stopped": "interrupted"); the same call then resumes. After `minutes` of wall
    time (0: no limit) the run is evaluated, saved and stopped. A model that is fitted in closed form is fitted at once.
    With several processes each of them calls this; the first one writes files, shows progress and calls the `logger`,
    which gets the metrics too. Raises UserError for
    every fault that the user can fix, before training starts if possible.
    """
    workdir = Workdir(folder)
    if isinstance(experiment, str):
        experiment = load_experiment(experiment)
    with ExitStack() as stack:
        # Only the first host locks the folder; if it cannot, every host raises its error.
        multihost.all_or_none(
            lambda: stack.enter_context(lock_folder(workdir.folder)) if multihost.is_first() else None
        )
        experiment = resolve_init(experiment, workdir)
        if summary := multihost.check_hosts(json.dumps(to_json(experiment)), runtime.library_versions()):
            print_status(summary)
        if hasattr(experiment.model, "fit"):
            if multihost.num_hosts() > 1:
                raise UserError("a model that is fitted in closed form needs one process only: start one")
            run_options.with_remat(experiment.model)
            return fit_closed_form(experiment, workdir)
        setup = setup_training(experiment, workdir, print_status, run_options)
        checkpoints = stack.enter_context(workdir.open_checkpoints(experiment))
        state, meta, step = _init_or_resume(setup, checkpoints)
        setup = with_rollout(with_reference(setup, state.params, step is None), state.params, step is None)
        end = time.monotonic() + 60 * minutes if minutes else math.inf
        metric, again, first = experiment.best_metric, meta.get("evaluation_due", False), multihost.is_first()
        log = MetricsLog(workdir, experiment.steps, step, metric, is_main=first, evaluate_again=again, deadline=end)
        stack.enter_context(log).on_metrics = logger(experiment, workdir.folder) if first and logger else None
        loader = DataLoader(setup.batches, (step or 0) // setup.updates, run_options.threads, run_options.workers)
        batches = stack.enter_context(loader)
        stopped = stack.enter_context(stop_signals())
        on_step = stack.enter_context(multihost.watchdog(run_options.step_timeout))
        profiling = profile_steps(workdir.profile_folder, run_options.profile_steps, print_status, step or 0)
        loop = TrainLoop(setup, checkpoints, log, meta, end, on_step, stack.enter_context(profiling))
        return loop.run_steps(state, batches, stopped)


def fit_closed_form(experiment: Experiment, workdir: Workdir) -> dict[str, Any]:
    """Fit `experiment.model` by its method `fit(columns) -> params`, evaluate it, and save it as step 1, unless the
    workdir holds it already. Returns the metrics.
    """
    check_closed_form(experiment)
    run = open_run(experiment, workdir, print_status)
    columns = load_data(run)
    with workdir.open_checkpoints(experiment, read_only=True) as checkpoints:
        if checkpoints.steps():
            print_status("already fitted: nothing to do")
            return {"step": 1}
    began = time.perf_counter()
    params = jax.tree.map(jnp.asarray, run.experiment.model.fit(columns))
    seconds = time.perf_counter() - began
    print_status(f"fitted in {seconds:.1f} s: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} numbers")
    trained, name = TrainedModel(run.experiment.model, params, run.tokenizer), experiment.best_metric
    metrics = experiment.task.validate(trained, experiment.objective, VALID_BATCH_TOKENS)
    with MetricsLog(workdir, total_steps=1, best_metric=name) as log:
        log.write(1, metrics | {"time/fit_seconds": seconds})
    workdir.save_once(experiment, params, metric=metric_sign(name) * metrics[name] if name in metrics else None)
    times = {"fit_seconds": round(seconds, 3), "seconds_to_first_step": runtime.seconds_since_start()}
    return {"step": 1, **metrics, **times}


class TrainLoop:
    """The steps of one call of `train`. `meta` is the metadata of the checkpoint that it resumes from, or {}."""

    def __init__(
        self, setup: TrainSetup, checkpoints: Checkpoints, log: MetricsLog, meta: dict[str, Any], deadline: float,
        on_step: Callable[[], None], profiler: StepProfiler,
    ):  # fmt: skip
        self.deadline = deadline
        self.setup, self.checkpoints, self.log, self.on_step = setup, checkpoints, log, on_step
        self.profiler = profiler
        self.early_stopping = EarlyStopping(**meta.get("early_stopping", {}))
        self.experiment = setup.run.experiment
        counts_rows = getattr(self.experiment.objective, "learns_from", "") in ("class", "number")
        self.meter = ThroughputMeter(meta.get("meter"), "rows" if counts_rows else "tokens")
        self.mfu = None if counts_rows else make_mfu_fn(self.experiment, setup.mesh)  # it needs the tokens
        self.last_metrics: dict[str, float] = {}
        self.first_step_seconds: float | None = None
        self.valid_metric: float | None = None
        self.evaluation_due = meta.get("evaluation_due", False)

    def run_steps(self, state: TrainState, batches: Iterator, stopped: threading.Event) -> dict[str, Any]:
        """Run all remaining steps; return the summary of the run."""
        step, last, reason = int(state.step), self.experiment.steps, self._out_of_patience()
        if self.evaluation_due:
            state, reason = self._evaluate_unless_stopped(state, step, None, stopped)
            if not self.evaluation_due:
                self._save(state, step, replace=True)
        self.meter.reset_clock()
        while step < last and reason is None:
            began_waiting = time.perf_counter()
            batch = next(batches)
            wait_seconds = time.perf_counter() - began_waiting
            self.profiler.before_step(step + 1)
            batch, figures = self.setup.roll_out(state.params, batch, step)
            batch = self.setup.add_reference(put_batch(batch, self.setup.mesh))
            for _ in range(self.setup.updates):
                state, metrics = self.setup.compiled.train_step(state, batch)
                step += 1
                self.meter.add(replace(metrics, figures=metrics.figures | figures), wait_seconds)
            if self.first_step_seconds is None:
                jax.block_until_ready(metrics)  # the only wait for a step as such: it times the compilation
                self.first_step_seconds = runtime.seconds_since_start()
            self.profiler.after_step(step, metrics)
            self.log.set_step(step)
            self.on_step()
            self.checkpoints.check_save()
            state, reason = self._log_eval_save(state, step, stopped)
        self.checkpoints.wait()
        if stopped.is_set() and multihost.num_hosts() == 1:
            reason = "interrupted"
        return self._summary(step, reason)

    def _log_eval_save(self, state: TrainState, step: int, stopped: threading.Event) -> tuple[TrainState, str | None]:
        """Log, evaluate and save if due; return the state of the next step, and the reason to stop or None."""
        experiment = self.experiment
        reason = stop_reason(stopped, step, time.monotonic() > self.deadline)
        ends = step == experiment.steps or reason == "time"
        if step % experiment.log_every == 0 or ends:
            metrics = self.meter.compute_metrics()
            if self.mfu is not None:
                metrics["time/mfu"] = self.mfu(metrics["time/tokens_per_second"])
            self.log.write(step, metrics)
            self._check_finite(metrics["train/loss"], step)
            self.last_metrics |= metrics
        self.valid_metric = None
        if step % experiment.evaluate_every == 0 or ends:
            try:
                state, reason = self._evaluate_unless_stopped(state, step, reason, stopped)
            except UserError as error:  # a failed evaluation must not lose the trained parameters
                # With several hosts, the others may be waiting in another collective.
                if multihost.num_hosts() == 1 and not isinstance(error, SaveError):
                    self._save(state, step)
                raise
        is_regular = step % experiment.checkpoint_every == 0 or step == experiment.steps
        if not is_regular and reason in ("interrupted", "time"):  # continued, it has the checkpoints of one whole run
            self.checkpoints.interim_steps.add(step)
        if is_regular or reason:
            self._save(state, step)
        return state, reason

    def _evaluate_unless_stopped(
        self, state: TrainState, step: int, reason: str | None, stopped: threading.Event
    ) -> tuple[TrainState, str | None]:
        """Evaluate, and return the reason to stop. A signal ends the evaluation, which the resumed run then makes."""

        def look() -> None:
            self.on_step()
            self.checkpoints.check_save()
            if stopped.is_set() and multihost.num_hosts() == 1:  # several hosts stop at a step only, together
                raise EvaluationInterrupted

        self.evaluation_due = True
        try:
            if reason == "interrupted":
                return state, reason
            with runtime.call_between_batches(look):
                self._evaluate(state, step)
        except EvaluationInterrupted:
            return state, "interrupted"
        self.evaluation_due = False
        return self._start_averaging(state), reason or self._out_of_patience()

    def _start_averaging(self, state: TrainState) -> TrainState:
        """The state, with the mean of the parameters begun if evaluations no longer improve (NT-ASGD)."""
        patience = self.experiment.nt_asgd_patience
        if not patience or int(state.averaged_updates) or not self.early_stopping.no_longer_improving(patience):
            return state
        self.log.print_line(f"not better than {patience} evaluations ago: the parameters are averaged from here on")
        return replace(state, averaged_updates=replicate(np.int32(1), self.setup.mesh))

    def _save(self, state: TrainState, step: int, replace: bool = False) -> None:
        sums = self.meter.pending_sums()
        self._check_finite(sums["total"], step)
        meta = {"early_stopping": vars(self.early_stopping), "meter": sums, "evaluation_due": self.evaluation_due}
        meta["interim"] = step in self.checkpoints.interim_steps
        self.checkpoints.save(step, _swap_ema(state), meta, self.valid_metric, replace=replace)
        self.meter.reset_clock()

    def _out_of_patience(self) -> str | None:
        if self.early_stopping.limit_broken:
            return "max_kl"
        patience = self.experiment.patience
        return "patience" if patience and self.early_stopping.evals_since_best >= patience else None

    def _evaluate(self, state: TrainState, step: int) -> None:
        experiment = self.experiment
        trained = TrainedModel(experiment.model, _swap_ema(state).params, self.setup.run.tokenizer)
        metrics = experiment.task.validate(trained, experiment.objective, VALID_BATCH_TOKENS)
        if experiment.best_metric not in metrics:
            raise UserError(
                f"best_metric = {experiment.best_metric!r}: expected one of the metrics {', '.join(metrics)}"
            )
        if 0 < getattr(experiment.objective, "max_kl", 0) < metrics.get("valid/kl", 0):  # the best one is from before
            self.early_stopping = replace(self.early_stopping, limit_broken=True)
        else:
            self.valid_metric = metric_sign(experiment.best_metric) * metrics[experiment.best_metric]
            self.early_stopping = self.early_stopping.update(self.valid_metric, step)
        self.last_metrics |= metrics
        self.log.write(step, metrics)
        self.meter.reset_clock()

    def _check_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} before step {step}: lower --optimizer.schedule.peak, raise its warm-up, or "
                "set --optimizer.clip 1; the newest checkpoint is from before"
            )

    def _summary(self, step: int, reason: str | None) -> dict[str, Any]:
        name, best = self.experiment.best_metric, self.early_stopping.best
        best_metric = None if best is None else metric_sign(name) * best
        summary = {"step": step, **self.last_metrics, "seconds_to_first_step": self.first_step_seconds}
        summary |= {"best_step": self.early_stopping.best_step, f"best/{name}": best_metric}
        return summary | ({"stopped": reason} if reason else {})


def print_status(text: str) -> None:
    """Print a line to stderr, on the first host only: progress of the set-up, before there is a progress bar."""
    if multihost.is_first():
        print(text, file=sys.stderr, flush=True)


def _init_or_resume(setup: TrainSetup, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any], int | None]:
    """The first state, the metadata of its checkpoint, and the step of that checkpoint (None: a new run)."""
    if not checkpoints.steps():
        state = load_init_params(setup.compiled.init_state(), setup.run.experiment, print_status)
        if setup.run.experiment.finetuning.init and multihost.num_hosts() > 1:
            digests = {"initial parameters": "".join(checksums(named_leaves(state.params)).values())}
            multihost.check_same(digests, "give all of them the same --finetuning.init")
        return state, {}, None
    state, meta, step = checkpoints.restore(_swap_ema(setup.compiled.abstract_state))
    checkpoints.interim_steps.update([step] if meta.get("interim") else [])
    print_status(f"resuming from step {step}")
    return _swap_ema(state), meta, step


def _swap_ema(state: TrainState) -> TrainState:
    """The state with average and parameters exchanged: `params` of a checkpoint are those to use."""
    if state.ema is None:
        return state
    params, ema = swap_leaves(state.ema, state.params)
    return replace(state, params=params, ema=ema)

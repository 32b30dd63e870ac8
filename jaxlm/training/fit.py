"""Models that are fitted in closed form, such as n-gram counts: the workdir, log and checkpoint of any other run."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import runtime
from jaxlm.experiment import Experiment
from jaxlm.inference.base import TrainedModel
from jaxlm.training.metrics_log import MetricsLog, metric_sign
from jaxlm.training.setup import VALID_BATCH_TOKENS, load_data, open_run
from jaxlm.workdir import Workdir


def fit_closed_form(experiment: Experiment, workdir: Workdir, notify: Callable[[str], None]) -> dict[str, Any]:
    """Fit `experiment.model` by its method `fit(columns) -> params`, evaluate it, and save it as step 1.

    Returns the metrics. A workdir that holds the fitted model stays as it is.
    """
    run = open_run(experiment, workdir, notify)
    columns = load_data(run)
    with workdir.open_checkpoints(experiment, read_only=True) as checkpoints:
        if checkpoints.steps():
            notify("already fitted: nothing to do")
            return {"step": 1}
    began = time.perf_counter()
    params = jax.tree.map(jnp.asarray, run.experiment.model.fit(columns))
    seconds = time.perf_counter() - began
    notify(f"fitted in {seconds:.1f} s: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} numbers")
    trained = TrainedModel(run.experiment.model, params, run.tokenizer)
    metrics = experiment.task.validate(trained, experiment.objective, VALID_BATCH_TOKENS)
    with MetricsLog(workdir, total_steps=1, best_metric=experiment.best_metric) as log:
        log.write(1, metrics | {"time/fit_seconds": seconds})
    metric = metrics.get(experiment.best_metric)
    workdir.save_once(
        experiment, params, metric=None if metric is None else metric_sign(experiment.best_metric) * metric
    )
    times = {"fit_seconds": round(seconds, 3), "seconds_to_first_step": runtime.seconds_since_start()}
    return {"step": 1, **metrics, **times}

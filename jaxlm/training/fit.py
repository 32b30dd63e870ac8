"""Models that are fitted in closed form, by one look at all of the data: the same workdir, log and checkpoint."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import runtime
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.experiment import Experiment
from jaxlm.inference.base import TrainedModel
from jaxlm.training.metrics_log import MetricsLog, metric_sign
from jaxlm.training.setup import VALID_BATCH_TOKENS, setup_data
from jaxlm.training.state import TrainState


def fit_closed_form(experiment: Experiment, folder: Path, notify: Any) -> dict[str, Any]:
    """Fit `experiment.model` by its method `fit(columns) -> params`, evaluate, save as step 1; the figures.

    A folder that holds the fitted model is left as it is.
    """
    data = setup_data(experiment, folder, notify)
    with Checkpoints(
        folder / "checkpoints", experiment.keep_checkpoints, keep_best=experiment.best_metric
    ) as checkpoints:
        if checkpoints.steps():
            notify("already fitted: nothing to do")
            return {"step": 1}
        began = time.perf_counter()
        params = jax.tree.map(jnp.asarray, experiment.model.fit(data.columns))
        seconds = time.perf_counter() - began
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        notify(f"fitted in {seconds:.1f} s: {size:,} numbers")
        trained = TrainedModel(experiment.model, params, data.tokenizer)
        figures = experiment.task.validate(trained, experiment.objective, VALID_BATCH_TOKENS)
        with MetricsLog(folder, total_steps=1, best_metric=experiment.best_metric) as log:
            log.write(1, figures | {"time/fit_seconds": seconds})
        metric = figures.get(experiment.best_metric)
        state = TrainState(jnp.int32(1), params, ())
        checkpoints.save(1, state, {}, None if metric is None else metric_sign(experiment.best_metric) * metric)
        checkpoints.wait()
    return {
        "step": 1,
        **figures,
        "fit_seconds": round(seconds, 3),
        "seconds_to_first_step": runtime.seconds_since_start(),
    }

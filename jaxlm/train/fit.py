"""Models that are fitted in closed form, by one look at all of the data: the same workdir, log and checkpoint."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import runtime
from jaxlm.checkpoint import Checkpoints
from jaxlm.experiment import Experiment
from jaxlm.log import Log, sign
from jaxlm.train.prepare import VALID_TOKENS, prepare_data
from jaxlm.train.state import TrainState


def fit(experiment: Experiment, folder: Path, note: Any) -> dict[str, Any]:
    """Fit `experiment.model` by its method `fit(columns) -> params`, evaluate, save as step 1; the figures.

    A folder that holds the fitted model is left as it is.
    """
    data = prepare_data(experiment, folder, note)
    with Checkpoints(folder / "checkpoints", experiment.keep, keep_best=experiment.best) as checkpoints:
        if checkpoints.steps():
            note("already fitted: nothing to do")
            return {"step": 1}
        began = time.perf_counter()
        params = jax.tree.map(jnp.asarray, experiment.model.fit(data.columns))
        seconds = time.perf_counter() - began
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        note(f"fitted in {seconds:.1f} s: {size:,} numbers")
        arguments = (experiment.model, params, data.tokenizer, experiment.objective, VALID_TOKENS)
        figures = experiment.task.validate(*arguments)
        with Log(folder, total=1, best=experiment.best) as log:
            log.write(1, figures | {"time/fit_seconds": seconds})
        metric = figures.get(experiment.best)
        state = TrainState(jnp.int32(1), params, ())
        checkpoints.save(1, state, {}, None if metric is None else sign(experiment.best) * metric)
        checkpoints.wait()
    return {
        "step": 1,
        **figures,
        "fit_seconds": round(seconds, 3),
        "seconds_to_first_step": runtime.seconds_since_start(),
    }

"""Every experiment has shapes to plan with, from itself alone: a batch, a loss of it, a decoding step, a whole plan."""

import json
from dataclasses import replace
from functools import partial

import jax
import pytest
from test_experiments import NAMES, readable

from jaxlm import config
from jaxlm.decode.prefill import read_token
from jaxlm.errors import UserError
from jaxlm.experiment import load
from jaxlm.nn.stack import unstacked
from jaxlm.plan.decode import step_shapes
from jaxlm.plan.plan import make_plan
from jaxlm.plan.search import mesh_for
from jaxlm.plan.shapes import batch_of, fitted, positions, shapes_of
from jaxlm.plan.topology import find
from jaxlm.tasks.labelling import Judging
from jaxlm.tasks.masked import MaskedLanguageModelling
from jaxlm.train.program import fresh_state
from jaxlm.workdir import abstract_params

TRAINED = [name for name in NAMES if not hasattr(load(name).model, "fit")]


def form(name):
    """What decides the shapes of an experiment."""
    experiment = load(name)
    parts = experiment.model, experiment.batching, experiment.objective, experiment.tokenizer
    return json.dumps([*map(config.to_json, parts), type(experiment.task).__name__], sort_keys=True)


FORMS = list({form(name): name for name in reversed(TRAINED)}.values())
"""One experiment of those that are alike in their shapes."""


@pytest.mark.parametrize("name", TRAINED)
def test_every_experiment_has_a_batch(name):
    """Of the shapes that its batching asks for, with no data at hand, which every device of eight can share."""
    experiment, _ = fitted(load(name), 8)
    batch = batch_of(experiment)
    rows = len(jax.tree.leaves(batch)[0])
    assert 0 < positions(batch) <= 2 * experiment.batching.tokens
    assert rows % (8 * experiment.accumulate) == 0 or load(name).batching.tokens < 8000


@pytest.mark.parametrize("name", FORMS)
def test_every_experiment_has_shapes(name):
    """At its real size and with no data at hand: the loss takes the planned batch, and a decoding step gives one row of
    logits and a state as it was; or the model is known to write nothing."""
    experiment = readable(load(name))
    model, batch = experiment.model, batch_of(experiment)
    if getattr(experiment.batching, "carry_rows", 0):
        batch = replace(batch, state=jax.eval_shape(fresh_state(experiment)).carry)
    loss = jax.eval_shape(lambda p, b: experiment.objective(model, p, b, None), abstract_params(model), batch)
    assert loss.total.shape == loss.count.shape == ()
    if isinstance(experiment.task, Judging | MaskedLanguageModelling):
        with pytest.raises(UserError, match="no decoding step"):
            step_shapes(model, batch, 8)
        return
    params, state, token, valid = step_shapes(model, batch, 8)
    step = partial(read_token, model)
    logits, after = jax.eval_shape(lambda p, *rest: step(unstacked(p), *rest), params, token, state, valid)
    assert logits.shape == (8, model.vocab)
    assert shapes_of(after) == shapes_of(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_experiment_has_a_plan(name):
    """At its real size, by formula: traced, counted, cut over four devices."""
    target = find("h200:4")
    plan = make_plan(name, readable(load(name)), target, mesh_for(target, {"fsdp": 4}), compiles=False)
    assert plan.fits and 0 < plan.seconds.least <= plan.seconds.most and 0 < plan.mfu(plan.seconds.most) < 1
    params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(readable(load(name)).model)))
    assert plan.model_flops <= 20 * params * plan.tokens, "some six times the parameters a token, and attention"

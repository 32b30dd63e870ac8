"""Every experiment can be planned without its data: a batch, its loss, a decoding step, a whole plan."""

import json
from dataclasses import replace

import jax
import pytest
from test_experiments import NAMES, readable

from jaxlm.config.serialization import to_json
from jaxlm.decode.prefill import decode_step, step_params
from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment
from jaxlm.models.properties import abstract_params
from jaxlm.models.reward_model import RewardModel
from jaxlm.objectives.policy_gradient import PolicyGradient
from jaxlm.perf.flops import adapt_batching, num_positions, shape_structs, synthetic_batch
from jaxlm.planner.decode_plan import decode_step_shapes
from jaxlm.planner.plan import PlanRequest, make_plan
from jaxlm.planner.topology import find_target
from jaxlm.tasks.masked_lm import MaskedLanguageModeling
from jaxlm.tasks.supervised import SupervisedTask
from jaxlm.training.step import make_init_fn

TRAINED = [name for name in NAMES if not hasattr(load_experiment(name).model, "fit")]


def form(name):
    """The configs that determine the shapes of an experiment."""
    experiment = load_experiment(name)
    parts = experiment.model, experiment.batching, experiment.objective, experiment.tokenizer
    return json.dumps([*map(to_json, parts), type(experiment.task).__name__], sort_keys=True)


FORMS = list({form(name): name for name in reversed(TRAINED)}.values())
"""One experiment of each set with equal shapes."""


@pytest.mark.parametrize("name", TRAINED)
def test_every_experiment_has_a_batch(name):
    """A batch with the shapes of its batching, made without data, that eight devices can share."""
    experiment, _ = adapt_batching(load_experiment(name), 8)
    batch = synthetic_batch(experiment)
    rows = len(jax.tree.leaves(batch)[0])
    objective, tokens = experiment.objective, experiment.batching.tokens
    if isinstance(objective, PolicyGradient):  # the batching counts the prompts alone
        tokens = tokens * objective.num_samples + rows * objective.max_tokens
    assert 0 < num_positions(batch) <= 2 * tokens
    assert rows % (8 * experiment.grad_accum) == 0 or load_experiment(name).batching.tokens < 8000


@pytest.mark.parametrize("name", FORMS)
def test_every_experiment_has_shapes(name):
    """At its real size, without data: the loss takes the planned batch, and a decoding step gives logits and a state of
    the same shapes; or the model does not generate text."""
    experiment = readable(load_experiment(name))
    model, batch = experiment.model, synthetic_batch(experiment)
    if getattr(experiment.batching, "carry_rows", 0):
        batch = replace(batch, state=jax.eval_shape(make_init_fn(experiment)).carry)
    objective = experiment.objective
    prepare_batch = getattr(objective, "prepare_batch", lambda model, params, batch: batch)
    loss = jax.eval_shape(
        lambda p, b: objective(model, p, prepare_batch(model, p, b), None), abstract_params(model), batch
    )
    assert loss.total.shape == loss.count.shape == ()
    if isinstance(experiment.task, SupervisedTask | MaskedLanguageModeling) or isinstance(model, RewardModel):
        with pytest.raises(UserError, match="no decoding step"):
            decode_step_shapes(model, batch, 8)
        return
    params, state, token, valid = decode_step_shapes(model, batch, 8)

    def step(params, token_B, state, valid_B):
        return decode_step(model, step_params(model, params, token_B, state), token_B, state, valid_B)

    logits, after = jax.eval_shape(step, params, token, state, valid)
    assert logits.shape == (8, model.vocab)
    assert shape_structs(after) == shape_structs(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_experiment_has_a_plan(name):
    """At its real size, analytically: traced, counted, sharded over four devices."""
    experiment = readable(load_experiment(name))
    plan = make_plan(PlanRequest(name, experiment, find_target("h200:4"), {"fsdp": 4}, use_compiler=False))
    assert (
        plan.fits
        and 0 < plan.seconds.lower_bound <= plan.seconds.upper_bound
        and 0 < plan.mfu(plan.seconds.upper_bound) < 1
    )
    params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(readable(load_experiment(name)).model)))
    assert plan.model_flops <= 20 * params * plan.tokens, "about six times the parameters per token, and attention"

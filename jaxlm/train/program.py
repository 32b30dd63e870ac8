"""An experiment as programs for a mesh: how its state begins, and its train step. The mesh may be of absent devices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm import workdir
from jaxlm.experiment import Experiment
from jaxlm.parallel import Meshed, layout, with_sharding
from jaxlm.train.machine import PLAIN, Machine
from jaxlm.train.state import TrainState, create
from jaxlm.train.step import make_step


@dataclass(frozen=True)
class Program:
    """The jitted step, the state that it takes as shapes that know their places, and what makes a fresh one."""

    step: Any
    abstract_state: TrainState
    create: Any


def fresh_state(experiment: Experiment) -> Callable[[], TrainState]:
    """What computes the state before the first step."""
    optimizer, carry = experiment.optimizer.build(experiment.steps), getattr(experiment.batching, "carry_rows", 0)
    parts = experiment.model, optimizer, workdir.example(), experiment.seed, experiment.averages, carry
    return lambda: create(*parts, experiment.tuning)


def program(
    experiment: Experiment, new: Callable[[], TrainState], mesh: Meshed | None, machine: Machine = PLAIN
) -> Program:
    """The programs of an experiment; `new` as `fresh_state` gives it."""
    optimizer = experiment.optimizer.build(experiment.steps)
    rate = experiment.optimizer.schedule.build(experiment.steps)
    parts = machine.placed(experiment.model), experiment.objective, optimizer, rate, experiment.seed
    options = experiment.accumulate, experiment.ema, mesh, experiment.tuning.trains, machine.split_moments
    step = make_step(*parts, *options)
    abstract = jax.eval_shape(new)
    if mesh is None:
        return Program(step, abstract, jax.jit(new))
    places = layout(abstract, mesh, machine.split_moments)
    return Program(step, with_sharding(abstract, places), jax.jit(new, out_shardings=places))

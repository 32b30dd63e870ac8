"""The one train step: gradient of a (sum, count) loss, accumulated over micro-batches, one optimizer update.

An experiment as programs for a mesh: how its state begins, and its train step. The mesh may be of absent devices.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm import workdir
from jaxlm.distributed.sharding import (
    AnyMesh,
    all_gather_params,
    replicated_sharding,
    train_state_shardings,
    with_shardings,
)
from jaxlm.experiment import Experiment
from jaxlm.losses import Loss
from jaxlm.pytree import combine, partition
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.state import TrainState, create_train_state, rng_key
from jaxlm.types import Array, Batch, Params


class Objective(Protocol):
    """What is minimised: a pure function of the parameters, a batch and (in training) a dropout key."""

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the batch; key None means evaluation."""
        ...


GradientFn = Callable[[Params, Params, Batch, Array], tuple[Params, Loss]]


@struct.dataclass
class StepMetrics:
    """Scalars of one step, left on the device until the log asks for them."""

    total: Array
    nll: Array
    count: Array
    gradient_norm: Array
    learning_rate: Array


def make_train_step(
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    lr_schedule: Callable[[Array], Array],
    seed: int,
    grad_accum: int = 1,
    ema_decay: float = 0.0,
    mesh: AnyMesh | None = None,
    is_trainable: Callable[[str], bool] | None = None,
    shard_optimizer_state: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """(state, batch) -> (state, metrics), jitted, the old state donated.

    `accumulate` splits the rows of the batch into that many micro-batches; the update is that of the whole batch,
    since sums and counts are added and divided once. With a `mesh` the state stays where `layout` has it. Parameters at
    paths that `trains` says no to are left as they are: nothing is differentiated with respect to them, and the
    optimizer does not know them.
    """

    gradients = _make_gradient_fn(model, objective, grad_accum)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        if state.carry is not None:
            batch = replace(batch, state=state.carry)
        learnt, fixed = partition(state.params, is_trainable or (lambda path: True))
        grads, loss = gradients(learnt, fixed, batch, rng_key(seed, "dropout", state.step))
        grads = jax.tree.map(lambda grad: grad / jnp.maximum(loss.count, 1.0), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        learnt = optax.apply_updates(learnt, updates)
        average, averaged = _update_average(state, learnt, ema_decay)
        metrics = StepMetrics(loss.total, loss.nll, loss.count, optax.tree.norm(grads), lr_schedule(state.step))
        carry = None if state.carry is None else loss.state
        new = TrainState(state.step + 1, combine(learnt, fixed), opt_state, average, averaged, carry)
        if mesh is None:
            return new, metrics
        return jax.lax.with_sharding_constraint(
            (new, metrics),
            (
                train_state_shardings(new, mesh, shard_optimizer_state),
                jax.tree.map(lambda _: replicated_sharding(mesh), metrics),
            ),
        )

    return jax.jit(step, donate_argnums=0)


def _update_average(state: TrainState, params: Params, ema_decay: float) -> tuple[Params | None, Array | None]:
    """The average of the parameters after an update, and over how many updates it is taken, where that is counted."""
    if state.ema is None:
        return None, None
    if state.averaged_updates is None:
        return optax.incremental_update(params, state.ema, 1.0 - ema_decay), None
    averaged = jnp.where(state.averaged_updates > 0, state.averaged_updates + 1, 0)
    share = 1.0 / jnp.maximum(averaged, 1).astype(jnp.float32)
    return optax.incremental_update(params, state.ema, share), averaged


def _make_gradient_fn(model: Any, objective: Objective, grad_accum: int) -> GradientFn:
    """(learnt, fixed, batch, key) -> (gradient of the sum for what is learnt, sums), micro-batch after micro-batch."""

    def whole(learnt: Params, fixed: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        def total(learnt: Params) -> tuple[Array, Loss]:
            loss = objective(model, all_gather_params(combine(learnt, fixed)), batch, key)
            return loss.total, loss

        return jax.grad(total, has_aux=True)(learnt)

    def in_parts(learnt: Params, fixed: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        # Every accumulate-th row goes into one part, so that a row never leaves its device.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, grad_accum, *x.shape[1:]), 1, 0), batch)

        def one(sums: Any, piece: Any) -> tuple[Any, Any]:
            some, index = piece
            grads, loss = whole(learnt, fixed, some, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, (grads, replace(loss, state=None))), loss.state

        shapes = jax.eval_shape(whole, learnt, fixed, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes[0], replace(shapes[1], state=None))
        )
        (grads, loss), states = jax.lax.scan(one, zeros, (parts, jnp.arange(grad_accum)))
        back = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), states)
        return grads, replace(loss, state=back)

    return whole if grad_accum == 1 else in_parts


@dataclass(frozen=True)
class CompiledStep:
    """The jitted step, the state that it takes as shapes that know their places, and what makes a fresh one."""

    train_step: Any
    abstract_state: TrainState
    init_state: Any


def make_init_fn(experiment: Experiment) -> Callable[[], TrainState]:
    """What computes the state before the first step."""
    optimizer, carry = experiment.optimizer.build(experiment.steps), getattr(experiment.batching, "carry_rows", 0)
    parts = experiment.model, optimizer, workdir.dummy_batch(), experiment.seed, experiment.averaging, carry
    return lambda: create_train_state(*parts, experiment.finetuning)


def build_compiled_step(
    experiment: Experiment,
    init_fn: Callable[[], TrainState],
    mesh: AnyMesh | None,
    run_options: RunOptions = DEFAULT_RUN_OPTIONS,
) -> CompiledStep:
    """The programs of an experiment; `new` as `fresh_state` gives it."""
    optimizer = experiment.optimizer.build(experiment.steps)
    rate = experiment.optimizer.schedule.build(experiment.steps)
    parts = run_options.with_remat(experiment.model), experiment.objective, optimizer, rate, experiment.seed
    options = (
        experiment.grad_accum,
        experiment.ema_decay,
        mesh,
        experiment.finetuning.is_trainable,
        run_options.shard_optimizer_state,
    )
    step = make_train_step(*parts, *options)
    abstract = jax.eval_shape(init_fn)
    if mesh is None:
        return CompiledStep(step, abstract, jax.jit(init_fn))
    places = train_state_shardings(abstract, mesh, run_options.shard_optimizer_state)
    return CompiledStep(step, with_shardings(abstract, places), jax.jit(init_fn, out_shardings=places))

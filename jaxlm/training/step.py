"""The train step: gradient of a (sum, count) loss, accumulated over micro-batches, then one optimizer update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.distributed import multihost, sharding
from jaxlm.distributed.platforms import tracing_for
from jaxlm.experiment import Experiment
from jaxlm.losses import Loss
from jaxlm.models.properties import dummy_batch
from jaxlm.perf.compiler_options import step_options
from jaxlm.pytree import combine, partition
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.state import TrainState, create_train_state, rng_key
from jaxlm.types import Array, Batch, Params

Objective = Callable[[Any, Params, Batch, Array | None], Loss]
"""The loss to minimize: a pure function of model, parameters, batch and dropout key (None: evaluation) to its sums."""


@struct.dataclass
class StepMetrics:
    """Scalars of one step, left on the device until the log reads them."""

    total: Array
    nll: Array
    count: Array
    gradient_norm: Array
    learning_rate: Array
    figures: dict[str, Array] = struct.field(default_factory=dict)


@dataclass(frozen=True)
class StepConfig:
    """The settings of a train step.

    Attributes:
      seed: seed of dropout.
      grad_accum: micro-batches of a batch. The update is that of the whole batch, since sums and counts are added up
        and divided once.
      ema_decay: decay of the moving average of the parameters.
      mesh: devices over which the state stays sharded (`train_state_shardings`); None: one device.
      is_trainable: path of a parameter -> whether it is trained. The others are not differentiated, and the optimizer
        does not know them. None: all are trained.
      shard_optimizer_state: whether the optimizer state is also split over the axis `data`.
      compiler_options: options of XLA for the step (`jaxlm.perf.compiler_options`).
      choices: replaces choices of the platform (`jaxlm.distributed.platforms`).
    """

    seed: int = 0
    grad_accum: int = 1
    ema_decay: float = 0.0
    mesh: sharding.AnyMesh | None = None
    is_trainable: Callable[[str], bool] | None = None
    shard_optimizer_state: bool = False
    compiler_options: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)


DEFAULT_STEP_CONFIG = StepConfig()


def make_train_step(
    model: Any, objective: Objective, optimizer: optax.GradientTransformation, lr_schedule: Callable[[Array], Array],
    config: StepConfig = DEFAULT_STEP_CONFIG,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:  # fmt: skip
    """(state, batch) -> (state, metrics), jitted."""
    gradients = _make_gradient_fn(model, objective, config.grad_accum)
    prepare_batch = getattr(objective, "prepare_batch", None)  # all that depends on the whole batch, without gradient

    @tracing_for(choices=config.choices)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        if state.carry is not None:
            batch = replace(batch, state=state.carry)
        if prepare_batch is not None:
            batch = prepare_batch(model, sharding.all_gather_params(state.params), batch)
        trained, frozen = partition(state.params, config.is_trainable or (lambda path: True))
        grads, loss = gradients(trained, frozen, batch, rng_key(config.seed, "dropout", state.step))
        grads = jax.tree.map(lambda grad: grad / jnp.maximum(loss.count, 1.0), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema, averaged_updates = _update_average(state, trained, config.ema_decay)
        rate = lr_schedule(state.step)
        metrics = StepMetrics(loss.total, loss.nll, loss.count, optax.tree.norm(grads), rate, loss.figures)
        carry = None if state.carry is None else loss.state
        new = TrainState(state.step + 1, combine(trained, frozen), opt_state, ema, averaged_updates, carry)
        if config.mesh is None:
            return new, metrics
        # Without the constraint XLA may choose other shardings for its results, and the next step would recompile.
        replicated = jax.tree.map(lambda _: sharding.replicated_sharding(config.mesh), metrics)
        shardings = sharding.train_state_shardings(new, config.mesh, config.shard_optimizer_state)
        return jax.lax.with_sharding_constraint((new, metrics), (shardings, replicated))

    # The old state is donated: its buffers become those of the new one, so only one copy is in memory.
    return jax.jit(step, donate_argnums=0, compiler_options=dict(config.compiler_options) or None)


def _update_average(state: TrainState, params: Params, ema_decay: float) -> tuple[Params | None, Array | None]:
    """The average of the parameters after an update, and the number of updates in it if it is a plain mean."""
    if state.ema is None:
        return None, None
    if state.averaged_updates is None:
        return optax.incremental_update(params, state.ema, 1.0 - ema_decay), None
    averaged_updates = jnp.where(state.averaged_updates > 0, state.averaged_updates + 1, 0)
    # 1 / n for the n-th update; while the mean has not begun (0), a weight of 1 makes it follow the parameters.
    weight = 1.0 / jnp.maximum(averaged_updates, 1).astype(jnp.float32)
    return optax.incremental_update(params, state.ema, weight), averaged_updates


def _make_gradient_fn(model: Any, objective: Objective, grad_accum: int) -> Callable:
    """(trained, frozen, batch, key) -> (gradient of the summed loss for `trained`, sums)."""

    def batch_gradients(trained: Params, frozen: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        def total(trained: Params) -> tuple[Array, Loss]:
            loss = objective(model, sharding.all_gather_params(combine(trained, frozen)), batch, key)
            return loss.total, loss

        return jax.grad(total, has_aux=True)(trained)

    def accumulated_gradients(trained: Params, frozen: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        # (rows, ...) -> (grad_accum, rows / grad_accum, ...); every grad_accum-th row goes into one micro-batch, so
        # that a row never leaves its device.
        micro_batches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, grad_accum, *x.shape[1:]), 1, 0), batch)

        def add_micro_batch(sums: Any, indexed_batch: Any) -> tuple[Any, Any]:
            micro_batch, index = indexed_batch
            grads, loss = batch_gradients(trained, frozen, micro_batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, (grads, replace(loss, state=None))), loss.state

        first = jax.tree.map(lambda x: x[0], micro_batches)
        grad_shapes, loss_shapes = jax.eval_shape(batch_gradients, trained, frozen, first, key)
        shapes = (grad_shapes, replace(loss_shapes, state=None))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (grads, loss), states = jax.lax.scan(add_micro_batch, zeros, (micro_batches, jnp.arange(grad_accum)))
        # The states come back in the order of the rows: (grad_accum, rows / grad_accum, ...) -> (rows, ...).
        states = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), states)
        return grads, replace(loss, state=states)

    return batch_gradients if grad_accum == 1 else accumulated_gradients


@dataclass(frozen=True)
class CompiledStep:
    """The programs of an experiment, jitted, and the shapes, dtypes and shardings of its state."""

    train_step: Any  # (state, batch) -> (state, metrics)
    abstract_state: TrainState
    init_state: Any  # () -> the state before the first step


def make_init_fn(experiment: Experiment) -> Callable[[], TrainState]:
    """The function that computes the state before the first step."""
    optimizer, carry_rows = experiment.optimizer.build(experiment.steps), getattr(experiment.batching, "carry_rows", 0)
    arguments = experiment.model, optimizer, dummy_batch(), experiment.seed, experiment.averaging, carry_rows
    return lambda: create_train_state(*arguments, experiment.finetuning)


def build_compiled_step(
    experiment: Experiment, init_fn: Callable[[], TrainState], mesh: sharding.AnyMesh | None,
    run_options: RunOptions = DEFAULT_RUN_OPTIONS, autotune_folder: Path | None = None,
) -> CompiledStep:  # fmt: skip
    """The programs of an experiment for a mesh, which may be of absent devices; `init_fn` is by `make_init_fn`.

    `autotune_folder`: see `step_options`.
    """
    options = step_options(mesh, run_options.exact, multihost.step_timeout(run_options.step_timeout), autotune_folder)
    schedule = experiment.optimizer.schedule.build(experiment.steps)
    config = StepConfig(
        experiment.seed, experiment.grad_accum, experiment.ema_decay, mesh,
        experiment.finetuning.is_trainable, run_options.shard_optimizer_state, options, run_options.choices,
    )  # fmt: skip
    optimizer, model = experiment.optimizer.build(experiment.steps), run_options.with_remat(experiment.model)
    step = make_train_step(model, experiment.objective, optimizer, schedule, config)
    abstract = jax.eval_shape(init_fn)
    if mesh is None:
        return CompiledStep(step, abstract, jax.jit(init_fn))
    shardings = sharding.train_state_shardings(abstract, mesh, run_options.shard_optimizer_state)
    return CompiledStep(step, sharding.with_shardings(abstract, shardings), jax.jit(init_fn, out_shardings=shardings))

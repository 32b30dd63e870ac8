"""The one train step: gradient of a (sum, count) loss, accumulated over micro-batches, one optimizer update."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.losses import Loss
from jaxlm.streams import stream
from jaxlm.train.state import TrainState
from jaxlm.types import Array, Batch, Params


class Objective(Protocol):
    """What is minimised: a pure function of the parameters, a batch and (in training) a dropout key."""

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the batch; key None means evaluation."""
        ...


@struct.dataclass
class Metrics:
    """Scalars of one step, left on the device until the log asks for them."""

    total: Array
    nll: Array
    count: Array
    gradient_norm: Array
    learning_rate: Array


def make_step(
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rate: Callable[[Array], Array],
    seed: int,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, batch) -> (state, metrics), jitted, the old state donated.

    `accumulate` splits the rows of the batch into that many micro-batches; the update is that of the whole batch,
    since sums and counts are added and divided once.
    """

    def gradients(params, batch, key):
        def total(params):
            loss = objective(model, params, batch, key)
            return loss.total, loss

        return jax.grad(total, has_aux=True)(params)

    def accumulated(params, batch, key):
        if accumulate == 1:
            return gradients(params, batch, key)
        micro = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        grads, loss = jax.eval_shape(gradients, params, batch, key)

        def one(sums, part):
            batch, index = part
            return jax.tree.map(jnp.add, sums, gradients(params, batch, jax.random.fold_in(key, index))), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (grads, loss))
        return jax.lax.scan(one, zeros, (micro, jnp.arange(accumulate)))[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, loss = accumulated(state.params, batch, stream(seed, "dropout", state.step))
        grads = jax.tree.map(lambda grad: grad / jnp.maximum(loss.count, 1.0), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if average is not None:
            average = optax.incremental_update(params, average, 1.0 - ema)
        metrics = Metrics(loss.total, loss.nll, loss.count, optax.global_norm(grads), rate(state.step))
        return TrainState(state.step + 1, params, opt_state, average), metrics

    return jax.jit(step, donate_argnums=0)

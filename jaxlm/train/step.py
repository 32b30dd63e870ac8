"""The one train step: gradient of a (sum, count) loss, accumulated over micro-batches, one optimizer update."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from jaxlm.losses import Loss
from jaxlm.parallel import everywhere
from jaxlm.streams import stream
from jaxlm.train.state import TrainState
from jaxlm.types import Array, Batch, Params


class Objective(Protocol):
    """What is minimised: a pure function of the parameters, a batch and (in training) a dropout key."""

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the batch; key None means evaluation."""
        ...


Gradients = Callable[[Params, Batch, Array], tuple[Params, Loss]]


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
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, batch) -> (state, metrics), jitted, the old state donated.

    `accumulate` splits the rows of the batch into that many micro-batches; the update is that of the whole batch,
    since sums and counts are added and divided once. With a `mesh` the state stays on every device of it.
    """

    gradients = _gradients(model, objective, accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, loss = gradients(state.params, batch, stream(seed, "dropout", state.step))
        grads = jax.tree.map(lambda grad: grad / jnp.maximum(loss.count, 1.0), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if average is not None:
            average = optax.incremental_update(params, average, 1.0 - ema)
        metrics = Metrics(loss.total, loss.nll, loss.count, optax.tree.norm(grads), rate(state.step))
        return TrainState(state.step + 1, params, opt_state, average), metrics

    placed: dict[str, Any] = {} if mesh is None else {"out_shardings": everywhere(mesh)}
    return jax.jit(step, donate_argnums=0, **placed)


def _gradients(model: Any, objective: Objective, accumulate: int) -> Gradients:
    """(parameters, batch, key) -> (gradient of the sum, sums), one micro-batch after the other."""

    def whole(params: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        def total(params: Params) -> tuple[Array, Loss]:
            loss = objective(model, params, batch, key)
            return loss.total, loss

        return jax.grad(total, has_aux=True)(params)

    def in_parts(params: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        # Every accumulate-th row goes into one part, so that a row never leaves its device.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)

        def one(sums: Any, part: Any) -> tuple[Any, None]:
            rows, index = part
            return jax.tree.map(jnp.add, sums, whole(params, rows, jax.random.fold_in(key, index))), None

        shapes = jax.eval_shape(whole, params, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(one, zeros, (parts, jnp.arange(accumulate)))[0]

    return whole if accumulate == 1 else in_parts

"""The one train step: gradient of a (sum, count) loss, accumulated over micro-batches, one optimizer update."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.leaves import joined, part
from jaxlm.losses import Loss
from jaxlm.parallel import Meshed, everywhere, gathered, layout
from jaxlm.streams import stream
from jaxlm.train.state import TrainState
from jaxlm.types import Array, Batch, Params


class Objective(Protocol):
    """What is minimised: a pure function of the parameters, a batch and (in training) a dropout key."""

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the batch; key None means evaluation."""
        ...


Gradients = Callable[[Params, Params, Batch, Array], tuple[Params, Loss]]


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
    mesh: Meshed | None = None,
    trains: Callable[[str], bool] | None = None,
    split_moments: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, batch) -> (state, metrics), jitted, the old state donated.

    `accumulate` splits the rows of the batch into that many micro-batches; the update is that of the whole batch,
    since sums and counts are added and divided once. With a `mesh` the state stays where `layout` has it. Parameters at
    paths that `trains` says no to are left as they are: nothing is differentiated with respect to them, and the
    optimizer does not know them.
    """

    gradients = _gradients(model, objective, accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if state.carry is not None:
            batch = replace(batch, state=state.carry)
        learnt, fixed = part(state.params, trains or (lambda path: True))
        grads, loss = gradients(learnt, fixed, batch, stream(seed, "dropout", state.step))
        grads = jax.tree.map(lambda grad: grad / jnp.maximum(loss.count, 1.0), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        learnt = optax.apply_updates(learnt, updates)
        average, averaged = _averaged(state, learnt, ema)
        metrics = Metrics(loss.total, loss.nll, loss.count, optax.tree.norm(grads), rate(state.step))
        carry = None if state.carry is None else loss.state
        new = TrainState(state.step + 1, joined(learnt, fixed), opt_state, average, averaged, carry)
        if mesh is None:
            return new, metrics
        return jax.lax.with_sharding_constraint(
            (new, metrics), (layout(new, mesh, split_moments), jax.tree.map(lambda _: everywhere(mesh), metrics))
        )

    return jax.jit(step, donate_argnums=0)


def _averaged(state: TrainState, params: Params, ema: float) -> tuple[Params | None, Array | None]:
    """The average of the parameters after an update, and over how many updates it is taken, where that is counted."""
    if state.ema is None:
        return None, None
    if state.averaged is None:
        return optax.incremental_update(params, state.ema, 1.0 - ema), None
    averaged = jnp.where(state.averaged > 0, state.averaged + 1, 0)
    share = 1.0 / jnp.maximum(averaged, 1).astype(jnp.float32)
    return optax.incremental_update(params, state.ema, share), averaged


def _gradients(model: Any, objective: Objective, accumulate: int) -> Gradients:
    """(learnt, fixed, batch, key) -> (gradient of the sum for what is learnt, sums), micro-batch after micro-batch."""

    def whole(learnt: Params, fixed: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        def total(learnt: Params) -> tuple[Array, Loss]:
            loss = objective(model, gathered(joined(learnt, fixed)), batch, key)
            return loss.total, loss

        return jax.grad(total, has_aux=True)(learnt)

    def in_parts(learnt: Params, fixed: Params, batch: Batch, key: Array) -> tuple[Params, Loss]:
        # Every accumulate-th row goes into one part, so that a row never leaves its device.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)

        def one(sums: Any, piece: Any) -> tuple[Any, Any]:
            some, index = piece
            grads, loss = whole(learnt, fixed, some, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, (grads, replace(loss, state=None))), loss.state

        shapes = jax.eval_shape(whole, learnt, fixed, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes[0], replace(shapes[1], state=None))
        )
        (grads, loss), states = jax.lax.scan(one, zeros, (parts, jnp.arange(accumulate)))
        back = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), states)
        return grads, replace(loss, state=back)

    return whole if accumulate == 1 else in_parts

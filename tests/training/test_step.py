"""The train step: accumulation, moving average, donation, compilations, and the dropout of each step."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.zoo import TRANSFORMER, ZOO, batch_of, examples, params_of

from jaxlm.distributed.sharding import data_mesh, replicated_sharding, row_sharding
from jaxlm.losses import Loss
from jaxlm.objectives.next_token import NextToken
from jaxlm.optim import AdamW, Constant, CosineDecay
from jaxlm.training.state import TrainState, create_train_state, rng_key
from jaxlm.training.step import StepConfig, make_train_step

BATCHES = [batch_of(examples(8, seed=seed), 6, 6) for seed in range(3)]
SGD = optax.sgd(0.1)


def state_of(model, optimizer=SGD, ema=False) -> TrainState:
    params = jax.tree.map(jnp.array, params_of(model))
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def close(found, expected, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["transformer", "seq2seq_dot"])
def test_accumulation_gives_the_plain_update(name):
    """Micro-batches hold different numbers of tokens: a mean of their means would differ."""
    model = ZOO[name].model
    configs, rate = (StepConfig(), StepConfig(grad_accum=4)), Constant(0.1).build(1)
    expected, found = (make_train_step(model, NextToken(0.1), SGD, rate, config) for config in configs)
    assert len({int(BATCHES[0].target_valid_BT[part::4].sum()) for part in range(4)}) > 1
    (state, metrics), (other, others) = (step(state_of(model), BATCHES[0]) for step in (expected, found))
    close(other.params, state.params)
    close(others, metrics, 1e-5)
    assert float(metrics.count) == BATCHES[0].target_valid_BT.sum()


def test_the_moving_average():
    """ema <- decay * ema + (1 - decay) * params, from the initial parameters on."""
    step = make_train_step(TRANSFORMER, NextToken(), SGD, Constant(0.1).build(1), StepConfig(ema_decay=0.75))
    state = state_of(TRANSFORMER, ema=True)
    average = jax.tree.map(np.array, state.params)
    for batch in BATCHES:
        state, _ = step(state, batch)
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.asarray(p), average, state.params)
        close(state.ema, average)
    assert abs(state.ema["embedding"] - state.params["embedding"]).max() > 1e-4


def test_the_old_state_is_given_up():
    step = make_train_step(TRANSFORMER, NextToken(), SGD, Constant(0.1).build(1))
    state = state_of(TRANSFORMER)
    step(state, BATCHES[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@dataclass(frozen=True)
class Counted:
    """Counts how often the objective is traced, by the length of the target."""

    traces: list

    def __call__(self, model, params, batch, key):
        self.traces.append(batch.target_BT.shape[1])
        return NextToken()(model, params, batch, key)


def test_a_shape_is_compiled_once():
    """From the freshly made state on, as the training loop makes it, and with batches placed as it places them."""
    objective, optimizer, mesh = Counted([]), AdamW(CosineDecay(), clip=1.0).build(9), data_mesh()
    model = ZOO["lstm_lm"].model
    new = jax.jit(
        lambda: create_train_state(model, optimizer, BATCHES[0], 0, "ema"), out_shardings=replicated_sharding(mesh)
    )
    step = make_train_step(model, objective, optimizer, CosineDecay().build(9), StepConfig(ema_decay=0.9, mesh=mesh))
    state, longer = new(), batch_of(examples(8), 6, 7)
    for batch in (*BATCHES, longer, *BATCHES, longer):
        state, _ = step(state, jax.device_put(batch, row_sharding(mesh)))
    assert objective.traces == [6, 7]
    assert step._cache_size() == 2


@dataclass(frozen=True)
class Noise:
    """Its loss is the number that the key stands for, times a parameter: shows what key each step was given."""

    def __call__(self, model, params, batch, key):
        total = params["embedding"].sum() * 0 + jax.random.uniform(key) * batch.target_valid_BT.any()
        return Loss(total, total, jnp.ones(()))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_step_has_its_own_key(accumulate):
    """A function of seed and step alone, not of what was drawn before; and one for each micro-batch."""

    def run(seed, first=0):
        step = make_train_step(TRANSFORMER, Noise(), SGD, Constant().build(1), StepConfig(seed, accumulate))
        state, drawn = replace(state_of(TRANSFORMER), step=jnp.int32(first)), []
        for _ in range(first, 4):
            state, metrics = step(state, BATCHES[0])
            drawn.append(float(metrics.total))
        return drawn

    keys = [rng_key(3, "dropout", step) for step in range(4)]
    if accumulate == 1:
        expected = [float(jax.random.uniform(key)) for key in keys]
    else:
        expected = [sum(float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(4)) for key in keys]
    np.testing.assert_allclose(run(3), expected, rtol=1e-5)
    np.testing.assert_allclose(run(3, first=2), expected[2:], rtol=1e-5)
    assert len({*expected, *run(4)}) == 8


def test_purposes_do_not_share_a_stream():
    drawn = {float(jax.random.uniform(rng_key(s, p, n))) for s in (0, 1) for p in ("init", "dropout") for n in (0, 1)}
    assert len(drawn) == 8
    traced = jax.jit(lambda step: jax.random.uniform(rng_key(0, "dropout", step)))(jnp.int32(7))
    assert float(traced) == float(jax.random.uniform(rng_key(0, "dropout", 7)))


def test_the_metrics_of_a_step():
    """The rate is that of this update, the gradient norm that of the mean loss, the sums those of the batch."""
    optimizer, schedule = AdamW(Constant(1e-2, warmup=4)), Constant(1e-2, warmup=4)
    transform = optimizer.build(4)
    step = make_train_step(TRANSFORMER, NextToken(), transform, schedule.build(4))
    state = state_of(TRANSFORMER, transform)
    gradient = jax.jit(jax.value_and_grad(lambda p: NextToken()(TRANSFORMER, p, BATCHES[0], None).total))
    loss, grads = gradient(state.params)
    count = BATCHES[0].target_valid_BT.sum()
    state, metrics = step(state, BATCHES[0])
    close([metrics.total, metrics.nll, metrics.learning_rate], [loss, loss, 0.25e-2], 1e-5)
    close(metrics.gradient_norm, optax.tree.norm(grads) / count, 1e-5)
    _, metrics = step(state, BATCHES[0])
    close(metrics.learning_rate, 0.5e-2)


def test_a_batch_of_nothing_moves_nothing():
    """All rows are filler: no division by zero, no NaN in the parameters."""
    step = make_train_step(TRANSFORMER, NextToken(), SGD, Constant(0.1).build(1))
    empty = BATCHES[0].replace(target_valid_BT=np.zeros_like(BATCHES[0].target_valid_BT))
    state, metrics = step(state_of(TRANSFORMER), empty)
    close(state.params, params_of(TRANSFORMER))
    assert float(metrics.count) == float(metrics.total) == 0

"""One program on eight devices and on one: the same steps, whatever lies where."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.zoo import TRANSFORMER, ZOO, batch_of, examples, params_of
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.request import DecodeRequest
from jaxlm.distributed.sharding import data_mesh, replicated_sharding, row_sharding, with_shardings
from jaxlm.nn.layers.dropout import keep_mask
from jaxlm.objectives.next_token import NextToken
from jaxlm.optim import Constant
from jaxlm.training.state import TrainState
from jaxlm.training.step import StepConfig, make_train_step

MESH = data_mesh()
BATCHES = [batch_of(examples(16, seed=seed), 6, 6) for seed in range(3)]
SGD = optax.sgd(0.1)


def test_the_mesh_has_eight_devices():
    assert MESH.size == jax.device_count() == 8 and data_mesh(2).size == 2


def trained(model, accumulate=1, mesh=None):
    params = jax.tree.map(jnp.array, params_of(model))
    state = TrainState(jnp.zeros((), jnp.int32), params, SGD.init(params))
    if mesh:
        state = jax.device_put(state, replicated_sharding(mesh))
    step = make_train_step(model, NextToken(0.1), SGD, Constant(0.1).build(1), StepConfig(0, accumulate, mesh=mesh))
    for batch in BATCHES:
        state, metrics = step(state, jax.device_put(batch, row_sharding(mesh)) if mesh else batch)
    return state, metrics


@pytest.mark.parametrize(
    "name, accumulate", [pytest.param("transformer", 2, marks=pytest.mark.slow), ("seq2seq_dot", 1)]
)
def test_three_steps_with_dropout(name, accumulate):
    """Dropout masks are functions of the global index: the same elements are dropped wherever they lie."""
    model = replace(ZOO[name].model, dropout=0.3)
    (expected, metrics), (found, others) = trained(model, accumulate), trained(model, accumulate, MESH)
    for a, b in zip(jax.tree.leaves((found, others)), jax.tree.leaves((expected, metrics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found))


def test_dropout_masks_do_not_know_the_mesh():
    key, shape = jax.random.key(3), (64, 48)
    for spec in (PartitionSpec("data"), PartitionSpec(None, "data")):
        sharded = jax.jit(lambda: keep_mask(key, 0.5, shape), out_shardings=NamedSharding(MESH, spec))()
        assert len(sharded.addressable_shards) == 8 and sharded.addressable_shards[0].data.size == 64 * 48 // 8
        np.testing.assert_array_equal(sharded, keep_mask(key, 0.5, shape))


def test_sharded_parameters():
    """Every parameter that divides, over the devices along its last axis: no layer needs to know."""

    def spec(leaf):
        axes = [None] * (leaf.ndim - 1) + ["data"] if leaf.ndim and leaf.shape[-1] % 8 == 0 else []
        return NamedSharding(MESH, PartitionSpec(*axes))

    params = params_of(TRANSFORMER)
    loss = lambda p, batch: NextToken()(TRANSFORMER, p, batch, None).total  # noqa: E731
    gradient = jax.jit(jax.value_and_grad(loss))
    placed = jax.device_put(params, jax.tree.map(spec, params))
    assert not placed["embedding"].sharding.is_fully_replicated
    expected, found = gradient(params, BATCHES[0]), gradient(placed, BATCHES[0])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_beam_search_of_split_rows():
    """The decoding loop on eight devices finds what it finds on one."""
    params, batch = params_of(TRANSFORMER), BATCHES[0]
    prompt_BP, limit_B = np.full((16, 1), 2, np.int32), np.full(16, 5, np.int32)
    arguments, config = (batch, prompt_BP, prompt_BP > 0, limit_B), BeamSearchConfig(5, beam=Beam(2))
    expected = beam_search(TRANSFORMER, params, DecodeRequest(*arguments), config)
    sharded = DecodeRequest(*jax.device_put(arguments, row_sharding(MESH)))
    found = beam_search(TRANSFORMER, jax.device_put(params, replicated_sharding(MESH)), sharded, config)
    np.testing.assert_array_equal(found.tokens_BNT, expected.tokens_BNT)
    np.testing.assert_allclose(found.score_BN, expected.score_BN, rtol=1e-5)


def test_abstract_arrays_say_where_they_go():
    abstract = with_shardings(jax.eval_shape(lambda: params_of(TRANSFORMER)), replicated_sharding(MESH))
    assert all(leaf.sharding == replicated_sharding(MESH) for leaf in jax.tree.leaves(abstract))

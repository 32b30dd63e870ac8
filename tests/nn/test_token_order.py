"""Tokens before padding: the permutation, and models that sort their positions for cuDNN's kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import GPT2, ZOO, batch_of, by_example, examples, params_of

from jaxlm.models.encoder import Encoder
from jaxlm.nn.attention import kernels, mask, multi_head
from jaxlm.nn.attention.cudnn import cudnn_attention
from jaxlm.objectives.next_token import NextToken
from jaxlm.types import Batch

VALID_BT = np.array([[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that programs are compiled for a GPU, with XLA's engine for the arguments that cuDNN gets."""
    rules = []

    def attend(query, key, value, rule, scale):
        rules.append(rule)
        return kernels.run_on_each_device(cudnn_attention, query, key, value, rule, scale, implementation="xla")

    monkeypatch.setattr(mask, "platform_of", lambda x: "gpu")
    monkeypatch.setattr(multi_head, "find_attention_kernel", lambda query, key: attend)
    return rules


def test_sorted_and_restored(gpu):
    order = mask.token_order(VALID_BT, None)
    assert order.tokens_first
    np.testing.assert_array_equal(order.sort(VALID_BT), np.sort(VALID_BT)[:, ::-1])
    ids_BT = np.arange(20, dtype=np.int32).reshape(4, 5)
    np.testing.assert_array_equal(order.sort(ids_BT)[0], [1, 3, 4, 0, 2])
    x_BTD, weight_BTD = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    restored, gradient = jax.vjp(lambda x: order.restore(jnp.take_along_axis(x, order.index_BT[..., None], 1)), x_BTD)
    np.testing.assert_array_equal(restored, x_BTD)
    np.testing.assert_array_equal(gradient(weight_BTD)[0], weight_BTD)


def test_other_platforms_and_packed_rows_keep_their_order(monkeypatch):
    assert mask.token_order(VALID_BT, None) == mask.UNSORTED
    monkeypatch.setattr(mask, "platform_of", lambda x: "gpu")
    assert not mask.token_order(VALID_BT, VALID_BT.astype(np.int32)).tokens_first


ANIMALS = ["transformer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pre", "llama", "mistral"))]


@pytest.mark.parametrize("name", ANIMALS)
def test_models_sort_their_rows(name, gpu, monkeypatch):
    """Loss and gradients of rows with padding anywhere are those of a CPU, and no layer gets a mask."""
    model = ZOO[name].model
    batch, params = batch_of(examples(4), 8, 8, "holes", "left"), params_of(model)

    def total(params):
        return NextToken(0.1)(model, params, batch, None).total

    actual, gradients = jax.jit(jax.value_and_grad(total))(params)
    assert gpu and all(rule.tokens_first for rule in gpu)
    monkeypatch.undo()
    expected, expected_gradients = jax.jit(jax.value_and_grad(lambda params: total(params)))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradients, expected_gradients)


def test_an_encoder_sorts_its_rows(gpu, monkeypatch):
    """With token types, and features back in the order of the batch."""
    model = Encoder(23, 8, 2, 12, 1, max_length=24, mlm_head=False)
    batch = batch_of(examples(4), 8, 8, "holes")
    types_BS = np.random.default_rng(2).integers(0, 2, batch.source_BS.shape, np.int32)
    batch = Batch(source_BS=batch.source_BS, source_valid_BS=batch.source_valid_BS, token_type_BS=types_BS)
    params = jax.tree.map(jnp.asarray, params_of(model))
    gpu.clear()
    features = jax.jit(lambda batch: model.apply({"params": params}, batch))(batch)
    assert gpu and all(rule.tokens_first for rule in gpu)
    monkeypatch.undo()
    expected = jax.jit(lambda batch: model.apply({"params": params}, batch, method="features"))(batch)
    actual, expected = (by_example(x, batch.source_valid_BS) for x in (features, expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_prefix_keeps_its_order(gpu):
    """A bidirectional prefix is a number of given positions: it takes a dense mask and plain products."""
    batch = batch_of(examples(4), 8, 8)
    params = params_of(GPT2)
    gpu.clear()

    def features(params):
        def extend(module):
            return module.extend(batch.target_BT, module.start(batch, 0), batch.target_valid_BT, 3)[0]

        return GPT2.apply({"params": params}, method=extend)

    assert jax.eval_shape(features, params).shape == (4, 8, 8)
    assert not gpu

"""Dropout masks: their rate and independence, and none without a key."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import TRANSFORMER, batch_of, examples, params_of

from jaxlm.errors import UserError
from jaxlm.nn.attention.multi_head import dot_product_attention
from jaxlm.nn.layers.dropout import Dropout, keep_mask
from jaxlm.nn.transformer.layer_stack import Stack
from jaxlm.training.state import rng_key

ROWS, WIDTH = 512, 256
SIZE = ROWS * WIDTH
KEYS = [rng_key(seed, "dropout", step) for seed in (0, 1) for step in range(4)]


def masks(rate: float, keys=KEYS) -> np.ndarray:
    return np.stack([keep_mask(key, rate, (ROWS, WIDTH)) for key in keys])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation in standard deviations of independent draws."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_rate(rate):
    """Each mask keeps its share; those of columns, rows and blocks vary like binomial variables."""
    actual = masks(rate)
    spread = np.sqrt(rate * (1 - rate))
    assert (abs(actual.mean((1, 2)) - (1 - rate)) < 4.5 * spread / np.sqrt(SIZE)).all()
    for counts in (actual.sum(1), actual.sum(2), actual.reshape(len(KEYS), -1, 64).sum(2)):
        each = actual[0].size // counts[0].size
        chi_square = ((counts - each * (1 - rate)) ** 2 / (each * rate * (1 - rate))).mean()
        assert abs(chi_square - 1) < 6 * np.sqrt(2 / counts.size + (1 / (each * rate * (1 - rate))) / counts.size)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbors_are_independent(rate):
    """Positions a few steps apart, and indices that differ in one bit: a weak hash would correlate them."""
    for mask in masks(rate, KEYS[:3]).reshape(3, -1):
        for lag in (1, 2, 3, 4, 7, 8, 64, WIDTH - 1, WIDTH, WIDTH + 1, 4096, 65536):
            assert abs(correlation(mask[lag:], mask[:-lag])) < 4.5, lag
        for bit in range(17):
            assert abs(correlation(mask, mask[np.arange(SIZE) ^ (1 << bit)])) < 6.5, bit  # each pair counts twice


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_keys_are_independent(rate):
    """Of steps, layers and seeds; also shifted against each other, like the counters."""
    layers = jax.random.split(KEYS[0], 4)
    keys = [*KEYS, *layers, *(jax.random.fold_in(layers[0], i) for i in range(4))]
    actual = masks(rate, keys).reshape(len(keys), -1)
    for i in range(len(keys)):
        for j in range(i):
            assert abs(correlation(actual[i], actual[j])) < 5, (i, j)
            assert abs(correlation(actual[i][1:], actual[j][:-1])) < 5, (i, j)


def test_both_words_of_a_key_count():
    keys = [jax.random.wrap_key_data(jnp.array(words, jnp.uint32)) for words in ([7, 1], [7, 2], [9, 1], [1, 7])]
    actual = masks(0.5, keys)
    for i in range(len(keys)):
        for j in range(i):
            assert abs(correlation(actual[i], actual[j])) < 5, (i, j)


def test_triples_are_independent():
    """The eight patterns of three neighbors, against their expected counts (chi-square with 7 degrees of freedom)."""
    for mask in masks(0.5).reshape(len(KEYS), -1):
        patterns = np.bincount(mask[: SIZE // 3 * 3].reshape(-1, 3) @ [4, 2, 1], minlength=8)
        assert ((patterns - SIZE / 24) ** 2 / (SIZE / 24)).sum() < 35


def test_the_mean_is_preserved():
    x = jnp.ones((ROWS, WIDTH))
    actual = np.asarray(Dropout(0.3).apply({}, x, rngs={"dropout": KEYS[0]}))
    np.testing.assert_allclose(np.unique(actual), [0, 1 / 0.7], rtol=1e-6)
    assert actual.mean() == pytest.approx(1, abs=4.5 * np.sqrt(0.3 / 0.7 / SIZE))
    half = Dropout(0.3).apply({}, x.astype(jnp.bfloat16), rngs={"dropout": KEYS[0]})
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half == 0, actual == 0)


def test_no_key_no_dropout():
    x = jnp.arange(12.0).reshape(3, 4)
    assert Dropout(0.5).apply({}, x) is x
    assert Dropout(0.0).apply({}, x, rngs={"dropout": KEYS[0]}) is x


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, float("nan")])
def test_invalid_rates(rate):
    """1 would divide by zero."""
    with pytest.raises(UserError, match="dropout rate of"):
        Dropout(rate).apply({}, jnp.ones((2, 2)), rngs={"dropout": KEYS[0]})


def test_attention_weights_are_dropped_and_scaled():
    """With equal scores and one-hot values the output is the weights themselves."""
    query, keys = jnp.zeros((2, 16, 2, 64)), jnp.zeros((2, 64, 2, 64))
    values = jnp.broadcast_to(jnp.eye(64)[None, :, None], (2, 64, 2, 64))
    mask = jnp.ones((2, 1, 64), bool)
    weights = 64 * 0.75 * np.asarray(dot_product_attention(query, keys, values, mask, dropout=(KEYS[0], 0.25)))
    np.testing.assert_allclose(np.unique(weights.round(5)), [0, 1])
    assert weights.mean() == pytest.approx(0.75, abs=4.5 * np.sqrt(0.25 * 0.75 / weights.size))


class Drops(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Dropout(0.5)(x * self.param("gain", nn.initializers.ones_init(), (1, 1)))


@pytest.mark.parametrize("scan", [False, True])
def test_layers_draw_different_masks(scan):
    """Three layers keep an eighth of the elements; one mask for all of them would keep a half."""
    stack, x = Stack(Drops(), 3, scan=scan), jnp.ones((64, 64))
    actual = stack.apply(stack.init(KEYS[0], x), x, rngs={"dropout": KEYS[1]})
    assert float((actual > 0).mean()) == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize("where", ["dropout", "attention_dropout", "activation_dropout"])
def test_every_rate_of_a_model_is_used(where):
    """Outputs differ with a key and between keys; they repeat with the same key and without one."""
    model, params, batch = replace(TRANSFORMER, **{where: 0.5}), params_of(TRANSFORMER), batch_of(examples(4), 8, 8)
    run = jax.jit(lambda key: model.apply({"params": params}, batch, rngs={"dropout": key}))
    one, two = run(KEYS[0]), run(KEYS[1])
    plain = TRANSFORMER.apply({"params": params}, batch)
    np.testing.assert_array_equal(one, run(KEYS[0]))
    np.testing.assert_array_equal(plain, model.apply({"params": params}, batch))
    assert min(abs(one - two).max(), abs(one - plain).max()) > 1e-2

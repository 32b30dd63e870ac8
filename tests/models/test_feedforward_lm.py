"""The feed-forward language model against its equation in NumPy."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import VOCAB, batch_of, examples, params_of

from jaxlm.data.tokenizers.base import BOS
from jaxlm.errors import UserError
from jaxlm.models.feedforward_lm import FeedForwardLM
from jaxlm.objectives.next_token import NextToken

PLAIN = FeedForwardLM(VOCAB, order=4, width=5, hidden=7)
ROWS = examples(4)


def by_equation(model: FeedForwardLM, params, target: np.ndarray) -> np.ndarray:
    """y = b + W x + U tanh(d + H x) for every position, one by one: (T, V)."""
    outputs = [*[BOS] * (model.order - 1), *target.tolist()]
    rows = []
    for t in range(1, len(target) + 1):
        x = model.embedding_scale * np.concatenate(
            [params["embedding"][word] for word in outputs[t : t + model.order - 1]]
        )
        h = np.tanh(params["up"]["bias"] + x @ params["up"]["kernel"])
        y = params["bias"] + h @ params["embedding" if model.tie_embeddings else "output"].T
        rows.append(y + x @ params["direct"] if model.direct_connections else y)
    return np.stack(rows)


@pytest.mark.parametrize(
    "model",
    [
        PLAIN,
        replace(PLAIN, direct_connections=False),
        replace(PLAIN, width=6, hidden=6, tie_embeddings=True, embedding_scale=3.0),
        replace(PLAIN, order=2),
    ],
    ids=["direct", "hidden", "tied", "bigram"],
)
def test_it_is_the_equation(model):
    params = params_of(model)
    batch = batch_of(ROWS, 8, 8, target_layout="holes")
    actual = np.asarray(jax.jit(lambda params, batch: model.apply({"params": params}, batch))(params, batch))
    assert actual.dtype == np.float32
    for row, valid, example in zip(actual, batch.target_valid_BT, ROWS, strict=True):
        np.testing.assert_allclose(row[valid], by_equation(model, params, example.target), rtol=2e-5, atol=2e-5)


def test_sizes():
    """The parameters that the paper counts: |V| (1 + n m + h) + h (1 + (n - 1) m), with its h, m and n."""
    model = FeedForwardLM(1000, order=5, width=60, hidden=50)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of(ROWS, 8, 8))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 1000 * (1 + 5 * 60 + 50) + 50 * (1 + 4 * 60)


def test_dropout_is_on_with_a_key():
    model, batch = replace(PLAIN, dropout=0.5), batch_of(ROWS, 8, 8)
    params = params_of(model)

    @partial(jax.jit, static_argnums=0)
    def read(model, params, key):
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, batch, rngs=rngs)

    off, on, again, other = (read(model, params, key) for key in (None, *map(jax.random.key, (1, 1, 2))))
    np.testing.assert_array_equal(on, again)
    assert (abs(on - off).max((0, 2)) > 1e-3).all() and abs(on - other).max() > 1e-3
    np.testing.assert_array_equal(off, read(PLAIN, params, jax.random.key(1)))


def test_bfloat16_is_near():
    batch, params = batch_of(ROWS, 8, 8), params_of(PLAIN)
    model = replace(PLAIN, dtype="bfloat16")
    read = jax.jit(lambda params, batch, model: model.apply({"params": params}, batch), static_argnums=2)
    actual, expected = read(params, batch, model), read(params, batch, PLAIN)
    assert actual.dtype == jnp.float32
    error = abs(actual - expected).max()
    assert 0 < error < 0.1


def test_it_learns_the_next_word():
    """Gradients reach every parameter, and gradient descent learns the label of each row's three words."""
    rng = np.random.default_rng(0)
    target_BT = rng.integers(4, VOCAB, (8, 6), dtype=np.int32)
    batch = batch_of(ROWS, 8, 8).replace(
        target_BT=target_BT, label_BT=np.roll(target_BT, -1, 1), target_valid_BT=np.ones((8, 6), bool),
        source_BS=None, source_valid_BS=None,
    )  # fmt: skip

    @jax.jit
    def step(params):
        loss, grads = jax.value_and_grad(lambda params: NextToken()(PLAIN, params, batch, None).total / 48)(params)
        return loss, grads, jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)

    params = params_of(PLAIN)
    first, grads, _ = step(params)
    assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    for _ in range(400):
        last, _, params = step(params)
    assert last < 0.1 < 2 < first


@pytest.mark.parametrize(
    "model, message",
    [(replace(PLAIN, order=1), "order 1"), (replace(PLAIN, tie_embeddings=True), "width 5 with a hidden layer of 7")],
)
def test_errors(model, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), batch_of(ROWS, 8, 8))

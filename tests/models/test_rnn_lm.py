"""The recurrent language model: its equations in NumPy, and its regularization."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.zoo import VOCAB, batch_of, examples, logits, params_of

from jaxlm.errors import UserError
from jaxlm.models.rnn_lm import RecurrentLM, State, activation_penalty
from jaxlm.nn.layers.dropout import DropConnect, EmbeddingDropout, LockedDropout
from jaxlm.nn.rnn.cells import GRU, LSTM, Elman
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.objectives.next_token import NextToken
from jaxlm.types import Batch

BATCH = batch_of(examples(6), 5, 8)
AWD = RecurrentLM(
    VOCAB, 6, Recurrent(LSTM(8), 3, dropout=0.25, variational=True, weight_drop=0.5), 0.4, 0.6, embedding_dropout=0.2
)


@pytest.mark.parametrize("tie, width, scale", [(False, 5, 1.0), (True, 5, 3.0), (True, 7, 1.0)])
def test_the_equations(tie, width, scale):
    """h_t = tanh(U h_{t-1} + W s E w_t + b), logits = V h_t + c; tied, V h is E h, or E P h where the widths differ."""
    model = RecurrentLM(VOCAB, 5, Recurrent(Elman(width)), tie_embeddings=tie, embedding_scale=scale)
    params = params_of(model)
    more = ["projection"] * (width != 5) if tie else ["output"]
    assert set(params) == {"embedding", "recurrent", "output_bias", *more}
    found_BTV = logits(model, params, BATCH)
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items() if name != "recurrent"}
    W, U, b = (np.asarray(params["recurrent"]["layer_0"][name], np.float64) for name in ("input", "recurrent", "bias"))
    V = p["embedding"] @ p.get("projection", np.eye(width)).T if tie else p["output"]
    for row, (tokens, valid) in enumerate(zip(BATCH.target_BT, BATCH.target_valid_BT, strict=True)):
        h = np.zeros(width)
        for t, token in enumerate(tokens[valid]):
            h = np.tanh(scale * p["embedding"][token] @ W + h @ U + b)
            np.testing.assert_allclose(found_BTV[row, t], V @ h + p["output_bias"], rtol=1e-4, atol=1e-4)


def test_every_kind_of_dropout_needs_a_key():
    plain = replace(AWD, recurrent=Recurrent(LSTM(8), 3), dropout=0.0, input_dropout=0.0, embedding_dropout=0.0)
    params = params_of(AWD)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(plain))
    np.testing.assert_array_equal(logits(AWD, params, BATCH), logits(plain, params, BATCH))
    read = jax.jit(lambda model, key: model.apply({"params": params}, BATCH, rngs={"dropout": key}), static_argnums=0)
    once, again, other = (read(AWD, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert abs(once - other).max() > 1e-2 and np.isfinite(once).all()
    kinds = [
        replace(plain, dropout=0.4, input_dropout=0.0),
        replace(plain, input_dropout=0.4),
        replace(plain, embedding_dropout=0.4),
        replace(plain, recurrent=Recurrent(LSTM(8), 3, dropout=0.4)),
        replace(plain, recurrent=Recurrent(LSTM(8), 3, weight_drop=0.4)),
    ]
    expected = logits(plain, params, BATCH)
    assert all(abs(read(model, jax.random.key(0)) - expected).max() > 1e-3 for model in kinds)


def test_weight_drop_stops_gradients():
    """About half of U's gradients are zero with a rate of 0.5, and the carry is multiplied by the rest, doubled."""
    model = RecurrentLM(VOCAB, 6, Recurrent(Elman(16), weight_drop=0.5))
    params = params_of(model)
    loss = jax.jit(jax.grad(lambda params: NextToken()(model, params, BATCH, jax.random.key(0)).total))
    dropped = np.asarray(loss(params)["recurrent"]["layer_0"]["recurrent"]) == 0
    assert 0.4 < dropped.mean() < 0.6
    weights = params["recurrent"]["layer_0"]
    weights = {**weights, "recurrent": np.where(dropped, 0, 2 * weights["recurrent"])}
    halved = {**params, "recurrent": {"layer_0": weights}}
    actual = model.apply({"params": params}, BATCH, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(actual, logits(model, halved, BATCH), rtol=1e-5, atol=1e-5)


def test_a_locked_mask_holds_for_all_positions():
    x_BTD = np.ones((50, 3, 40), np.float32)
    actual = np.asarray(LockedDropout(0.25).apply({}, x_BTD, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_array_equal(actual, actual[:, :1].repeat(3, 1))
    assert set(np.unique(actual)) == {np.float32(0), np.float32(1 / 0.75)} and abs((actual > 0).mean() - 0.75) < 0.03
    assert (actual[1:] != actual[:-1]).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(LockedDropout(0.25).apply({}, x_BTD), x_BTD)


def test_a_word_type_is_dropped_at_all_its_places():
    tokens_BT = np.random.default_rng(0).integers(0, 100, (20, 30))
    x_BTD = np.ones((20, 30, 4), np.float32)
    actual = np.asarray(EmbeddingDropout(0.3, 100).apply({}, x_BTD, tokens_BT, rngs={"dropout": jax.random.key(0)}))
    values = [np.unique(actual[tokens_BT == token]) for token in range(100)]
    assert all(len(one) == 1 for one in values)
    assert {float(one[0]) for one in values} == {0.0, float(np.float32(1 / 0.7))}
    assert 0.15 < np.mean([one[0] == 0 for one in values]) < 0.45
    np.testing.assert_array_equal(EmbeddingDropout(0.3, 100).apply({}, x_BTD, tokens_BT), x_BTD)


def test_drop_connect_keeps_the_mean():
    W = np.full((200, 200), 2.0, np.float32)
    actual = np.asarray(DropConnect(0.5).apply({}, W, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(actual)) == {0.0, 4.0} and abs(actual.mean() - 2.0) < 0.05
    with pytest.raises(UserError, match="dropout rate of 1.0"):
        DropConnect(1.0).apply({}, W, rngs={"dropout": jax.random.key(0)})


def test_activations():
    """Without a key both equal the features; with one, the second is the first times a locked mask of 0 and 1 / 0.6."""
    params, state = params_of(AWD), State(AWD.recurrent.start(6))
    arguments = BATCH.target_BT, state, BATCH.target_valid_BT
    raw, dropped, after = AWD.apply({"params": params}, *arguments, method="activations")
    features, state = AWD.apply({"params": params}, *arguments, method="extend")
    jax.tree.map(np.testing.assert_array_equal, (raw, dropped, after), (features, features, state))
    key = {"dropout": jax.random.key(0)}
    raw, dropped, _ = AWD.apply({"params": params}, *arguments, method="activations", rngs=key)
    np.testing.assert_array_equal(AWD.apply({"params": params}, *arguments, method="extend", rngs=key)[0], dropped)
    ratio = np.asarray(dropped / raw)
    assert np.isclose(ratio[..., None], [0, 1 / 0.6], atol=1e-5).any(-1).all() and 0 < (ratio == 0).mean() < 1


def test_the_activation_penalty():
    """Against loops in float64; padding does not count."""
    rng = np.random.default_rng(0)
    raw_BTD, dropped_BTD = rng.normal(size=(2, 3, 6, 5))
    valid_BT = np.array([[1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    expected = 0.0
    for b in range(3):
        for t in range(6):
            if valid_BT[b, t]:
                expected += 2.0 * (dropped_BTD[b, t] ** 2).mean()
            if t and valid_BT[b, t] and valid_BT[b, t - 1]:
                expected += 0.5 * ((raw_BTD[b, t] - raw_BTD[b, t - 1]) ** 2).mean()
    actual = activation_penalty(jnp.array(raw_BTD), jnp.array(dropped_BTD), jnp.array(valid_BT), 2.0, 0.5)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_language_model_does_not_look_ahead():
    with pytest.raises(UserError, match="bidirectional to False"):
        params_of(RecurrentLM(VOCAB, 8, Recurrent(LSTM(8), bidirectional=True)))


@pytest.mark.parametrize("cell", [LSTM(24), GRU(24)])
def test_learns_to_remember(cell):
    """The first of 8 tokens is repeated at the end, after noise: the last loss falls to nearly 0."""
    model = RecurrentLM(8, 16, Recurrent(cell), init_scale=1.0)
    optimizer = optax.adam(0.02)
    asked_BT = np.arange(8)[None].repeat(32, 0) == 7

    def batch(step):
        tokens_BT = jax.random.randint(jax.random.fold_in(jax.random.key(1), step), (32, 8), 0, 4)
        return Batch(target_BT=tokens_BT.at[:, 0].add(4), target_valid_BT=np.ones((32, 8), bool),
                     label_BT=jnp.broadcast_to(tokens_BT[:, :1], (32, 8)))  # fmt: skip

    def nll(params, step):
        logits_BTV = model.apply({"params": params}, batch(step))
        each_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch(step).label_BT)
        return jnp.where(asked_BT, each_BT, 0.0).sum() / 32

    def train(carry, step):
        loss, grads = jax.value_and_grad(nll)(carry[0], step)
        updates, moments = optimizer.update(grads, carry[1])
        return (optax.apply_updates(carry[0], updates), moments), loss

    params = jax.jit(model.init)(jax.random.key(0), batch(0))["params"]
    _, losses = jax.jit(lambda carry: jax.lax.scan(train, carry, jnp.arange(200)))((params, optimizer.init(params)))
    assert losses[0] > 1.0 and losses[-20:].mean() < 0.05

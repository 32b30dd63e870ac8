"""What surrounds the call of cuDNN, on a CPU: JAX's own reference of the call stands in for the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from jaxlm.distributed.sharding import make_mesh, replicated_sharding, row_sharding
from jaxlm.nn.rnn import cudnn_lstm
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent

B, T, IN, D = 3, 5, 4, 6
RIGHT = np.arange(T)[None] < np.array([5, 2, 3])[:, None]


def reference(x, h_0, c_0, weights, lengths, *sizes):
    """The signature of `rnn.lstm`, by JAX's reference."""
    inputs, width, layers, _, two_ways = sizes
    unpacked = rnn.unpack_lstm_weights(weights, inputs, width, layers, two_ways)
    return rnn.lstm_ref(x, h_0, c_0, *unpacked, lengths, *sizes)


RAGGED = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
"""Padding on the left and within, a row without a token, and a full one."""


@pytest.mark.parametrize("network", [Recurrent(LSTM(D), 2), Recurrent(LSTM(D), 2, bidirectional=True, residual=True)])
def test_packed_layers_equal_the_scan(network, monkeypatch):
    """Outputs, last state and gradients, with a nonzero initial state and padding anywhere; also on a mesh."""
    rng = np.random.default_rng(0)
    x_BTD = rng.normal(size=(B, T, IN)).astype(np.float32)
    weight_BTD = rng.normal(size=(B, T, network.width)).astype(np.float32)
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), network.start(B))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x_BTD, state, RIGHT)["params"]
    params = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32), shapes)

    def loss(params, x_BTD, state, valid_BT):
        hidden_BTD, after = network.apply({"params": params}, x_BTD, state, valid_BT)
        hidden_BTD = jnp.where(valid_BT[..., None], hidden_BTD, 0.0)
        return (hidden_BTD * weight_BTD).sum() + sum(jnp.sin(x).sum() for x in jax.tree.leaves(after)), hidden_BTD

    def results(mesh=None):
        function = jax.jit(jax.value_and_grad(lambda *arguments: loss(*arguments), (0, 1, 2), has_aux=True))
        arguments = params, x_BTD, state
        if mesh is not None:
            shardings = replicated_sharding(mesh), row_sharding(mesh), row_sharding(mesh), row_sharding(mesh)
            return [function(*jax.device_put((*arguments, valid), shardings)) for valid in (RIGHT, RAGGED)]
        return [function(*arguments, valid) for valid in (RIGHT, RAGGED)]

    def close(actual, like):
        np.testing.assert_allclose(actual, like, rtol=1e-5, atol=1e-5)

    expected, lengths = results(), []
    monkeypatch.setattr(cudnn_lstm, "is_available", lambda x_BTD: True)
    monkeypatch.setattr(rnn, "lstm", lambda *arguments: lengths.append(arguments[4]) or reference(*arguments))
    jax.tree.map(close, results(), expected)
    assert [(x.dtype, x.shape) for x in lengths] == [(jnp.int32, (B,))] * network.layers
    jax.tree.map(close, results(make_mesh({"data": 3}, jax.devices()[:3])), expected)
    assert lengths[-1].shape == (1,)


def test_no_program_asks_where_the_padding_is(monkeypatch):
    """A conditional waits on the host for its predicate, and compiles the layer both ways."""
    network = Recurrent(LSTM(D), 2)
    arguments = np.zeros((B, T, IN), np.float32), network.start(B), RIGHT
    params = network.init(jax.random.key(0), *arguments)
    monkeypatch.setattr(cudnn_lstm, "is_available", lambda x_BTD: True)
    monkeypatch.setattr(rnn, "lstm", lambda x, h, c, *_: (jnp.tile(x[..., :1], (1, 1, D)), h, c))
    text = jax.jit(lambda p, *arguments: network.apply(p, *arguments)).lower(params, *arguments).as_text()
    assert not {"stablehlo.case", "stablehlo.if", "stablehlo.while"} & set(text.split())


def test_unsupported_options_do_not_call_cudnn(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("cuDNN was called")

    monkeypatch.setattr(cudnn_lstm, "is_available", lambda x_BTD: True)
    monkeypatch.setattr(rnn, "lstm", refuse)
    x_BTD, nudge_BTD, segment_BT = np.zeros((B, T, IN)), np.zeros((B, T, D)), RIGHT.astype(int)
    for network, more in [
        (Recurrent(LSTM(D)), (nudge_BTD,)),
        (Recurrent(LSTM(D)), (None, segment_BT)),
        (Recurrent(LSTM(D), layer_norm=True), ()),
        (Recurrent(LSTM(D), dtype="bfloat16"), ()),
    ]:
        jax.eval_shape(network.init, jax.random.key(0), x_BTD, network.start(B), RIGHT, *more)
    with pytest.raises(AssertionError, match="called"):
        jax.eval_shape(Recurrent(LSTM(D)).init, jax.random.key(0), x_BTD, Recurrent(LSTM(D)).start(B), RIGHT)
    one = jax.random.key(0), x_BTD[:, :1], Recurrent(LSTM(D)).start(B), RIGHT[:, :1]
    jax.eval_shape(Recurrent(LSTM(D)).init, *one)  # a step of decoding


def test_it_is_not_available_on_a_cpu(monkeypatch):
    x_BTD = jnp.zeros((B, T, IN))
    assert jax.default_backend() == "cpu" and not cudnn_lstm.is_available(x_BTD)
    monkeypatch.setattr(cudnn_lstm, "platform_of", lambda x: "gpu")  # a program for a GPU that is elsewhere
    assert not cudnn_lstm.is_available(x_BTD)

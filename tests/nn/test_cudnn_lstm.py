"""What surrounds the call of cuDNN, on a CPU: JAX's own reference of the call stands in for the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

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


@pytest.mark.parametrize("network", [Recurrent(LSTM(D), 2), Recurrent(LSTM(D), 2, bidirectional=True, residual=True)])
def test_packed_layers_equal_the_scan(network, monkeypatch):
    """Outputs, last state and gradients, with a nonzero initial state and rows of different length."""
    rng = np.random.default_rng(0)
    x_BTD = rng.normal(size=(B, T, IN)).astype(np.float32)
    weight_BTD = rng.normal(size=(B, T, network.width)).astype(np.float32) * RIGHT[..., None]
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), network.start(B))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x_BTD, state, RIGHT)["params"]
    params = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32), shapes)

    def gradient(valid_BT):
        def loss(params, x_BTD, state):
            hidden_BTD, after = network.apply({"params": params}, x_BTD, state, valid_BT)
            total = (hidden_BTD * weight_BTD).sum() + sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(after))
            return total, jnp.where(valid_BT[..., None], hidden_BTD, 0.0)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, x_BTD, state)

    def close(actual, like):
        np.testing.assert_allclose(actual, like, rtol=1e-5, atol=1e-5)

    left = RIGHT[:, ::-1]
    expected, expected_left = gradient(RIGHT), gradient(left)
    lengths = []
    monkeypatch.setattr(cudnn_lstm, "is_available", lambda: True)
    monkeypatch.setattr(rnn, "lstm", lambda *arguments: lengths.append(arguments[4].dtype) or reference(*arguments))
    # Padding that cuDNN does not support goes to the scan. Then force cuDNN, so that the scan cannot replace it.
    jax.tree.map(close, gradient(left), expected_left)
    monkeypatch.setattr(cudnn_lstm, "supports_padding", lambda valid_BT: True)
    jax.tree.map(close, gradient(RIGHT), expected)
    assert lengths == [jnp.int32] * (2 * network.layers)


def test_unsupported_options_do_not_call_cudnn(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("cuDNN was called")

    monkeypatch.setattr(cudnn_lstm, "is_available", lambda: True)
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


def test_only_padding_on_the_right_is_supported():
    assert cudnn_lstm.supports_padding(RIGHT) and cudnn_lstm.supports_padding(np.ones((B, T), bool))
    holes = np.array([[True, True, True, True], [True, False, True, True]])
    for wrong in (RIGHT[:, ::-1], holes, np.array([[True, True], [False, False]])):
        assert not cudnn_lstm.supports_padding(wrong)


def test_it_is_not_available_on_a_cpu():
    assert jax.default_backend() == "cpu" and not cudnn_lstm.is_available()

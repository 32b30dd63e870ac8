"""Recurrent networks against PyTorch, against their equations in NumPy, and against the gradient of a plain loop."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.nn.rnn.cells import GRU, LSTM, Carry, Elman, normalize_gates
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.nn.rnn.scan import StepInputs, unroll

B, T, IN, D = 4, 6, 3, 5
LENGTHS = np.array([6, 2, 5, 1])
RIGHT = np.arange(T)[None] < LENGTHS[:, None]
CELLS = {"tanh": Elman(D), "relu": Elman(D, "relu"), "lstm": LSTM(D), "gru": GRU(D)}


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def example(network: Recurrent) -> tuple:
    """The arguments of `init`."""
    return jax.random.key(0), jnp.zeros((1, 1, IN)), network.start(1), jnp.ones((1, 1), bool)


def params_of(network: Recurrent) -> Any:
    """Random normal values."""
    shapes = jax.eval_shape(network.init, *example(network))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.6 * drawn(*leaf.shape, seed=9 + i) for i, leaf in enumerate(leaves)])


@partial(jax.jit, static_argnums=0)
def read(network: Recurrent, params: Any, x_BTD, state, valid_BT, nudge_BTD=None, segment_BT=None):
    return network.apply({"params": params}, x_BTD, state, valid_BT, nudge_BTD, segment_BT)


@pytest.mark.parametrize("layers, bidirectional", [(1, False), (2, True)])
@pytest.mark.parametrize("name", CELLS)
def test_against_pytorch(name, layers, bidirectional):
    """Rows of different length: outputs, last states, and the gradients of parameters, inputs and first states."""
    pytest.importorskip("torch")
    from references.torch_recurrent import as_torch, from_torch, result

    network = Recurrent(CELLS[name], layers, bidirectional)
    module, ways = as_torch(network, IN), 1 + bidirectional
    x_BTD, weight_BTD = drawn(B, T, IN), drawn(B, T, D * ways, seed=1) * RIGHT[..., None]
    first = [drawn(layers * ways, B, D, seed=2 + i) for i in range(1 + (name == "lstm"))]
    last_weight = [drawn(layers * ways, B, D, seed=4 + i) for i in range(len(first))]
    expected = result(module, x_BTD, LENGTHS, first, weight_BTD, last_weight)

    def loss(params, x_BTD, first):
        state = tuple(Carry(*(one[i] for one in first)) for i in range(layers * ways))
        hidden_BTD, state = network.apply({"params": params}, x_BTD, state, RIGHT)
        last = [jnp.stack(one) for one in zip(*map(jax.tree.leaves, state), strict=True)]
        ends = sum((one * weight).sum() for one, weight in zip(last, last_weight, strict=True))
        return (hidden_BTD * weight_BTD).sum() + ends, (hidden_BTD, last)

    gradient = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    (d_params, d_x, d_first), (hidden_BTD, last) = gradient(from_torch(network, module, False), x_BTD, first)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(hidden_BTD[RIGHT], expected[0][RIGHT])
    jax.tree.map(close, (last, d_x, d_first), expected[1:])
    jax.tree.map(close, d_params, from_torch(network, module, True))


def plain_loop(cell, reverse, U, vectors, carry, inputs):
    """The same function as `unroll`, as a Python loop that JAX differentiates."""
    length = len(inputs.x)
    hidden = [None] * length
    for t in range(length)[:: -1 if reverse else 1]:
        start = jax.tree.map(lambda x_BD, t=t: jnp.where(inputs.reset[t][:, None], 0.0, x_BD), carry)
        h_BG = normalize_gates(start.hidden_BD @ U, vectors.get("recurrent_scale"), cell.norm_groups)
        after = cell.step(inputs.x[t], h_BG, start, vectors)
        after = after.replace(hidden_BD=after.hidden_BD + inputs.perturbation[t])
        carry = jax.tree.map(lambda a, b, t=t: jnp.where(inputs.valid[t][:, None], a, b), after, start)
        hidden[t] = carry.hidden_BD
    return jnp.stack(hidden), carry


@pytest.mark.parametrize(
    "name, layer_norm, reverse",
    [("tanh", True, False), ("lstm", False, True), ("lstm", True, False), ("gru", True, True)],
)
def test_the_gradient_is_that_of_a_plain_loop(name, layer_norm, reverse):
    """With holes, resets, perturbations and layer norm, for every argument that has a gradient."""
    cell = CELLS[name]
    gates = sum(cell.norm_groups) * D
    vectors = {key: drawn(size, seed=7) for key, (size, _) in cell.vector_shapes(layer_norm).items()}
    carry = jax.tree.map(lambda x_BD: drawn(*x_BD.shape, seed=3), cell.initial_carry(B))
    valid_TB, reset_TB = drawn(T, B, seed=4) > -0.7, drawn(T, B, seed=5) > 0.8
    arguments = drawn(D, gates), vectors, drawn(T, B, gates, seed=1), carry, drawn(T, B, D, seed=6)

    def loss(run, U, vectors, x_TBG, carry, perturbation_TBD):
        inputs = StepInputs(x_TBG, valid_TB, reset=reset_TB, perturbation=perturbation_TBD)
        hidden_TBD, last = run(cell, reverse, U, vectors, carry, inputs)
        return jnp.sin(hidden_TBD).sum() + sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(last))

    actual, expected = (
        jax.jit(jax.value_and_grad(partial(loss, run), range(5)))(*arguments) for run in (unroll, plain_loop)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), actual, expected)


def test_the_gradient_of_a_perturbation_is_the_total_derivative():
    """dL_T/dh_t = prod_{s>t} U diag(1 - h_s^2): Elman's vanishing gradient, by hand in float64."""
    network = Recurrent(Elman(D))
    params, x_BTD, valid_BT = params_of(network), drawn(1, T, IN), np.ones((1, T), bool)

    def loss(nudge_BTD):
        return read(network, params, x_BTD, network.start(1), valid_BT, nudge_BTD)[0][0, -1, 0]

    found_TD = jax.grad(loss)(jnp.zeros((1, T, D)))[0]
    W, U, bias = (np.asarray(params["layer_0"][name], np.float64) for name in ("input", "recurrent", "bias"))
    hidden_TD, h_D = [], np.zeros(D)
    for x_D in x_BTD[0]:
        h_D = np.tanh(x_D @ W + h_D @ U + bias)
        hidden_TD.append(h_D)
    expected_D = np.eye(D)[0]
    for t in reversed(range(T)):
        np.testing.assert_allclose(found_TD[t], expected_D, rtol=1e-4, atol=1e-6)
        expected_D = U @ (expected_D * (1 - hidden_TD[t] ** 2))


def test_a_perturbation_is_carried_on_in_the_top_layer():
    """None equals zeros; a perturbation is added to the output at its position and changes all later ones."""
    network = Recurrent(LSTM(D), 2, residual=True)
    arguments = params_of(network), drawn(B, T, IN), network.start(B), RIGHT
    nudge_BTD = np.zeros((B, T, D), np.float32)
    expected_BTD, _ = read(network, *arguments)
    np.testing.assert_allclose(read(network, *arguments, nudge_BTD)[0], expected_BTD, atol=1e-6)
    nudge_BTD[0, 2] = 0.5
    change_BTD = read(network, *arguments, nudge_BTD)[0] - expected_BTD
    np.testing.assert_allclose(change_BTD[0, :3], nudge_BTD[0, :3], atol=1e-6)
    assert (abs(change_BTD[0, 3:]).max(1) > 1e-4).all() and abs(change_BTD[1:]).max() < 1e-6


@pytest.mark.parametrize("network", [
    Recurrent(GRU(D), 2, bidirectional=True), Recurrent(LSTM(D), 2, bidirectional=True, residual=True, layer_norm=True)
])  # fmt: skip
def test_padding_leaves_no_trace(network):
    """On the right, on the left or in holes, with random content: the same outputs and the same last state."""
    params, x_BTD = params_of(network), drawn(B, T, IN)
    expected_BTD, last = read(network, params, x_BTD, network.start(B), RIGHT)
    rng = np.random.default_rng(0)
    holes = np.stack([np.isin(np.arange(T), rng.choice(T, n, replace=False)) for n in LENGTHS])
    for valid_BT in (RIGHT[:, ::-1], holes):
        moved_BTD = 100 * drawn(B, T, IN, seed=8)
        moved_BTD[valid_BT] = x_BTD[RIGHT]
        found_BTD, actual = read(network, params, moved_BTD, network.start(B), valid_BT)
        np.testing.assert_allclose(found_BTD[valid_BT], expected_BTD[RIGHT], rtol=1e-5, atol=1e-6)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, last)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_segments_are_independent(bidirectional):
    """Two examples packed in a row equal two rows; with an initial state, the first one continues from it."""
    network = Recurrent(LSTM(D), 2, bidirectional)
    params, x_BTD, segment_BT = params_of(network), drawn(1, T, IN), np.array([[1, 1, 1, 2, 2, 0]])
    found_BTD, last = read(network, params, x_BTD, network.start(1), segment_BT > 0, None, segment_BT)
    for part, number in ((slice(0, 3), 1), (slice(3, 5), 2)):
        valid_BT = segment_BT == number
        expected_BTD, alone = read(network, params, x_BTD, network.start(1), valid_BT)
        np.testing.assert_allclose(found_BTD[:, part], expected_BTD[:, part], rtol=1e-5, atol=1e-6)
        if number == 2 and not bidirectional:
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), last, alone)
    state = jax.tree.map(lambda x_BD: x_BD + 0.5, network.start(1))
    goes_on_BTD, _ = read(network, params, x_BTD, state, segment_BT > 0, None, segment_BT)
    assert abs(goes_on_BTD - found_BTD)[0, :3, :D].max() > 1e-2
    if not bidirectional:  # a backward network comes from the second example's end
        np.testing.assert_allclose(goes_on_BTD[:, 3:5], found_BTD[:, 3:5], rtol=1e-5, atol=1e-6)


def test_steps_equal_the_whole_sequence():
    network = Recurrent(GRU(D), 2, residual=True, layer_norm=True)
    params, x_BTD, state = params_of(network), drawn(B, T, IN), network.start(B)
    expected_BTD, last = read(network, params, x_BTD, state, RIGHT)
    step = jax.jit(partial(network.apply, method="step"))
    for t in range(T):
        hidden_BD, state = step({"params": params}, x_BTD[:, t], state, RIGHT[:, t])
        np.testing.assert_allclose(hidden_BD[RIGHT[:, t]], expected_BTD[RIGHT[:, t], t], rtol=1e-5, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state, last)
    with pytest.raises(UserError, match="bidirectional=False"):
        two_ways = Recurrent(GRU(D), bidirectional=True)
        two_ways.init(jax.random.key(0), x_BTD[:, 0], two_ways.start(B), RIGHT[:, 0], method="step")


def layer_norm_lstm(p: dict, x_TD: np.ndarray) -> np.ndarray:
    """Equations 20 to 22 of Ba et al. 2016, in float64."""

    def norm(a, scale):
        return scale * (a - a.mean()) / np.sqrt(a.var() + 1e-5)

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    p = {name: np.asarray(leaf, np.float64) for name, leaf in p.items()}
    h_D, c_D, hidden_TD = np.zeros(D), np.zeros(D), []
    for x_D in x_TD:
        gates = norm(h_D @ p["recurrent"], p["recurrent_scale"]) + norm(x_D @ p["input"], p["input_scale"]) + p["bias"]
        i, f, g, o = np.split(gates, 4)
        c_D = sigmoid(f) * c_D + sigmoid(i) * np.tanh(g)
        h_D = sigmoid(o) * np.tanh(norm(c_D, p["memory_scale"]) + p["memory_bias"])
        hidden_TD.append(h_D)
    return np.stack(hidden_TD)


def test_layer_norm_is_that_of_the_paper():
    network = Recurrent(LSTM(D), layer_norm=True)
    params, x_BTD = params_of(network), drawn(B, T, IN)
    found_BTD, _ = read(network, params, x_BTD, network.start(B), np.ones((B, T), bool))
    expected_BTD = np.stack([layer_norm_lstm(params["layer_0"], x_TD) for x_TD in x_BTD])
    np.testing.assert_allclose(found_BTD, expected_BTD, rtol=1e-4, atol=1e-4)


def test_a_residual_is_added_above_the_first_layer():
    plain, residual = Recurrent(GRU(D), 2), Recurrent(GRU(D), 2, residual=True)
    params, x_BTD, state = params_of(plain), drawn(B, T, IN), plain.start(B)
    first_BTD, _ = read(Recurrent(GRU(D)), {"layer_0": params["layer_0"]}, x_BTD, state[:1], RIGHT)
    found_BTD, _ = read(residual, params, x_BTD, state, RIGHT)
    difference_BTD = found_BTD - read(plain, params, x_BTD, state, RIGHT)[0]
    np.testing.assert_allclose(difference_BTD, first_BTD, rtol=1e-5, atol=1e-6)


def test_initialization():
    network = Recurrent(LSTM(64, forget_bias=1.0), 2, layer_norm=True, init_scale=0.05)
    init = jax.jit(lambda network: network.init(*example(network)), static_argnums=0)
    params = init(network)["params"]
    for layer in params.values():
        for name in ("input", "recurrent"):
            assert 0.049 < abs(layer[name]).max() <= 0.05 and abs(layer[name].std() - 0.05 / 3**0.5) < 2e-3
        np.testing.assert_array_equal(layer["bias"].reshape(4, 64), np.array([0.0, 1, 0, 0])[:, None].repeat(64, 1))
        assert (layer["recurrent_scale"] == 1).all() and (layer["memory_bias"] == 0).all()
    assert 0.12 < abs(init(Recurrent(GRU(64)))["params"]["layer_0"]["recurrent"]).max() <= 0.125
    with pytest.raises(UserError, match='"tanh" or "relu"'):
        Elman(4, "sigmoid")


def test_products_in_bfloat16():
    """Close to float32 but not equal; states and outputs stay float32."""
    low, network = Recurrent(LSTM(D), 2, dtype="bfloat16"), Recurrent(LSTM(D), 2)
    arguments = params_of(network), drawn(B, T, IN), network.start(B), RIGHT
    (actual, state), (expected, _) = read(low, *arguments), read(network, *arguments)
    assert actual.dtype == np.float32 and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state))
    assert 1e-5 < abs(actual - expected)[RIGHT].max() < 0.03
    gradient = jax.grad(lambda params: read(low, params, *arguments[1:])[0].sum())(arguments[0])
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))

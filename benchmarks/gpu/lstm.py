"""Part 2: an LSTM layer by cuDNN against the loop over positions: outputs, carries, all gradients, and time."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks.gpu.figures import Session, repeats
from jaxlm.cli.device_checks import milliseconds

SHAPES = {"medium": (35, 20, 650), "wide": (50, 128, 1024), "large": (35, 20, 1500)}
"""Name -> T, B, D: of a word language model (Zaremba et al. 2014, medium and large), and one that fills the device."""

MAX_ERROR = 1e-4
"""Of outputs and gradients, relative to the largest value, with float32 products."""


def measure(session: Session, name: str) -> None:
    """Error and milliseconds of one shape: forward and backward, as the layer runs, cuDNN alone, the loop."""
    import jax

    length, rows, width = (session.size(n, least) for n, least in zip(SHAPES[name], (4, 2, 8), strict=True))
    with _cudnn(session):
        with jax.default_matmul_precision("highest"):
            gradient, inputs = _layer(length, rows, width)
            results = {way: _run(way, gradient)(*inputs) for way in ("layer", "loop")}
        error = _error(results["layer"], results["loop"])
        session.figure(f"{name}, error", error, "of the maximum", f"< {MAX_ERROR}", bool(error < MAX_ERROR))
        for way in ("layer", "loop"):
            run = _run(way, gradient)
            time = milliseconds(lambda run=run: run(*inputs), **repeats(session))
            good = "as fast as cuDNN alone" if way == "layer" else ""
            session.figure(f"{name}, {way}", time, "ms forward + backward", good)
        alone = _cudnn_alone(length, rows, width)
        session.figure(f"{name}, cuDNN alone", milliseconds(alone, **repeats(session)), "ms forward + backward")


@contextlib.contextmanager
def _cudnn(session: Session) -> Iterator[None]:
    """In a dry run, JAX's own reference takes the place of the call of cuDNN."""
    import jax.numpy as jnp
    from jax.experimental import rnn

    from jaxlm.nn.rnn import cudnn_lstm

    if not session.dry:
        if not cudnn_lstm.is_available(jnp.zeros((2, 2, 2))):
            session.figure("cuDNN", "JAX has no binding of its LSTM", correct=False)
        yield
        return

    def reference(x: Any, h_0: Any, c_0: Any, weights: Any, lengths: Any, *sizes: Any) -> Any:
        inputs, width, layers, _, bidirectional = sizes
        unpacked = rnn.unpack_lstm_weights(weights, inputs, width, layers, bidirectional)
        return rnn.lstm_ref(x, h_0, c_0, *unpacked, lengths, *sizes)

    with mock.patch.object(rnn, "lstm", reference), mock.patch.object(cudnn_lstm, "is_available", lambda x_BTD: True):
        yield


def _layer(length: int, rows: int, width: int) -> tuple[Callable, tuple]:
    """A function of (params, x, state) that returns outputs, last state and gradients, and its arguments."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxlm.nn.rnn.cells import LSTM
    from jaxlm.nn.rnn.layers import Recurrent

    network, rng = Recurrent(LSTM(width)), np.random.default_rng(0)
    # Padding on the right, which cuDNN supports.
    valid_BT = np.arange(length)[None] < np.maximum(length - np.arange(rows), length // 2)[:, None]
    x_BTD = rng.normal(size=(rows, length, width)).astype(np.float32)
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), network.start(rows))
    params = network.init(jax.random.key(0), x_BTD, state, valid_BT)["params"]

    def gradient(params: Any, x_BTD: Any, state: Any) -> Any:
        def loss(params: Any, x_BTD: Any, state: Any) -> Any:
            hidden_BTD, after = network.apply({"params": params}, x_BTD, state, valid_BT)
            hidden_BTD = jnp.where(valid_BT[..., None], hidden_BTD, 0.0)
            return jnp.sin(hidden_BTD).sum() + sum(jnp.sin(x).sum() for x in jax.tree.leaves(after)), (
                hidden_BTD,
                after,
            )

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x_BTD, state)

    return gradient, jax.device_put((params, x_BTD, state))


def _run(way: str, gradient: Callable) -> Callable:
    """The compiled function: "layer" as jaxlm runs it, "loop" without cuDNN."""
    import jax

    from jaxlm.nn.rnn import cudnn_lstm

    # Of a new function: JAX keeps what it compiled by the identity of a function.
    compiled = jax.jit(lambda *inputs: gradient(*inputs))
    if way == "layer":
        return compiled

    def without_cudnn(*inputs: Any) -> Any:
        with mock.patch.object(cudnn_lstm, "is_available", lambda x_BTD: False):
            return compiled(*inputs)

    return without_cudnn


def _cudnn_alone(length: int, rows: int, width: int) -> Callable[[], Any]:
    """The call of cuDNN and its gradient, without anything around it."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import rnn

    x_BTD = jnp.ones((rows, length, width))
    state, weights = jnp.zeros((1, rows, width)), jnp.full(8 * width * width + 8 * width, 0.01)
    lengths = jnp.full(rows, length, jnp.int32)

    def loss(x_BTD: Any, weights: Any) -> Any:
        return rnn.lstm(x_BTD, state, state, weights, lengths, width, width, 1, 0.0, False)[0].sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    return lambda: gradient(x_BTD, weights)


def _error(actual: Any, expected: Any) -> float:
    import jax
    import jax.numpy as jnp

    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.abs(x - y).max() / jnp.maximum(jnp.abs(y).max(), 1e-9)) for x, y in pairs)

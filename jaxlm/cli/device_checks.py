"""Small computations on the device for `jaxlm doctor`: one needs one library, which is named if it fails."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.cli.system_checks import Check, error_line

NEEDED_LIBRARIES = {
    "gpu": {"product": "cuBLAS", "attention": "cuDNN", "LSTM": "cuDNN"},
    "tpu": {"product": "libtpu", "attention": "Pallas and Mosaic", "LSTM": "libtpu"},
}
"""Platform -> computation -> the library that it needs; elsewhere XLA itself."""

ATTENTION_SHAPE = (8, 1024, 12, 64)
"""(B, T, N, H) of the timed attention: a micro-batch of GPT-2 small."""


def check_computations(platform: str) -> Iterator[Check]:
    """One product, one attention and one LSTM layer, each with its gradient; on a GPU also the faster attention."""
    for name, run in {"product": run_product, "attention": run_attention, "LSTM": run_lstm}.items():
        library = NEEDED_LIBRARIES.get(platform, {}).get(name, "XLA")
        start = time.perf_counter()
        try:
            run()
        except Exception as error:  # what a broken library raises is unknown
            yield Check(name, f"{library} failed: {error_line(error)}", "missing", _library_fix(library))
        else:
            yield Check(name, f"by {library}, with its gradient ({time.perf_counter() - start:.2f} s)")
            if (platform, name) == ("gpu", "attention"):
                yield _check_attention_times()


def _library_fix(library: str) -> str:
    """The command that most often repairs a library of an accelerator."""
    if library in ("cuBLAS", "cuDNN") and os.environ.get("LD_LIBRARY_PATH"):
        return f"unset LD_LIBRARY_PATH (a {library} there hides the one that JAX was installed with)"
    if library == "XLA":
        return "pip install --upgrade jax"
    extra = "tpu" if library in ("libtpu", "Pallas and Mosaic") else "cuda13"
    return f"pip install --upgrade --force-reinstall 'jax[{extra}]'"


def run_product() -> None:
    """A product of 16-bit matrices and its gradient."""
    x = jnp.ones((256, 256), jnp.bfloat16)
    jax.block_until_ready(jax.jit(jax.grad(lambda x: (x @ x).sum().astype(jnp.float32)))(x))


def run_attention() -> None:
    """Causal attention as the layers compute it here, and its gradient."""
    from jaxlm.nn.attention.mask import causal_attention_mask
    from jaxlm.nn.attention.multi_head import dot_product_attention

    def loss(query_BTNH: Any) -> Any:
        mask = causal_attention_mask(jnp.ones(query_BTNH.shape[:2], bool), None)
        return dot_product_attention(query_BTNH, query_BTNH, query_BTNH, mask, 0.125).astype(jnp.float32).sum()

    jax.block_until_ready(jax.jit(jax.grad(loss))(jnp.ones((1, 256, 2, 64), jnp.bfloat16)))


def run_lstm() -> None:
    """An LSTM layer as `jaxlm.nn.rnn` runs it here, and its gradient."""
    from jaxlm.nn.rnn.cells import LSTM
    from jaxlm.nn.rnn.layers import Recurrent

    network, x_BTD = Recurrent(LSTM(32)), jnp.ones((2, 4, 32))
    inputs = network.start(2), jnp.ones((2, 4), bool)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x_BTD, *inputs)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)  # an init program would take longer
    gradient = jax.jit(jax.grad(lambda x_BTD, params: network.apply(params, x_BTD, *inputs)[0].sum()))
    jax.block_until_ready(gradient(x_BTD, params))


def milliseconds(call: Callable[[], Any], repeats: int = 10, rounds: int = 3) -> float:
    """Milliseconds of a call that returns JAX arrays: the best round of several calls that are dispatched together."""
    jax.block_until_ready(call())  # compiles
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready([call() for _ in range(repeats)])
        times.append(1000 * (time.perf_counter() - start) / repeats)
    return min(times)


def _check_attention_times() -> Check:
    """Time cuDNN against plain products, with their gradients, and remember the faster one for the layers."""
    from jaxlm.nn.attention.kernels import remember_times

    def loss(query_BTNH: Any, name: Any) -> Any:
        mixed = jax.nn.dot_product_attention(query_BTNH, query_BTNH, query_BTNH, is_causal=True, implementation=name)
        return mixed.astype(jnp.float32).sum()

    kind, query_BTNH = jax.local_devices()[0].device_kind, jnp.ones(ATTENTION_SHAPE, jnp.bfloat16)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    implementations = {"cudnn": "cudnn", "plain": "xla"}
    times = {name: milliseconds(lambda: gradient(query_BTNH, value)) for name, value in implementations.items()}  # noqa: B023
    remember_times(kind, times)
    text = ", ".join(f"{name} {shortest:.2f} ms" for name, shortest in times.items())
    return Check("attention time", f"{text}: {min(times, key=times.__getitem__)} is remembered for {kind}")

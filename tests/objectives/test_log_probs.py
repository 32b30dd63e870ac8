"""Log-probabilities of single tokens: values and gradients against log_softmax, and no array of all logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.distributed.platforms import tracing_for
from jaxlm.distributed.sharding import data_mesh, replicated_sharding, row_sharding
from jaxlm.losses import NEVER_LOGIT
from jaxlm.nn.layers import position_chunks
from jaxlm.objectives.log_probs import token_log_probs

B, T, D, V = 3, 6, 5, 11
RNG = np.random.default_rng(0)
WEIGHTS = {"kernel": RNG.normal(size=(D, V)).astype(np.float32), "bias": RNG.normal(size=V).astype(np.float32)}
FEATURES, COTANGENT = (RNG.normal(size=(B, T, size)).astype(np.float32) for size in (D, 1))
LABEL, VALID = RNG.integers(0, V, (B, T)).astype(np.int32), RNG.random((B, T)) < 0.6


def readout(weights, features):
    return features @ weights["kernel"] + weights["bias"][None, None]


def chunked(weights, features, label=LABEL, valid=VALID):
    return token_log_probs(lambda x: readout(weights, x), features, label, valid)


def plain(weights, features, label=LABEL, valid=VALID):
    log_p = jnp.take_along_axis(jax.nn.log_softmax(readout(weights, features)), label[..., None], -1)[..., 0]
    return jnp.where(valid, log_p, 0.0)


def weighted(function, weights, features, *rest):
    """A function of the log-probabilities with another weight for each token."""
    return (jnp.sin(function(weights, features, *rest)) * COTANGENT[: len(features), :, 0]).sum()


def gradients(function, *arguments):
    return jax.jit(jax.value_and_grad(lambda w, x: weighted(function, w, x, *arguments), (0, 1)))(WEIGHTS, FEATURES)


def close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(position_chunks, "MAX_CHUNK_LOGITS_WIDE", 0)
    with tracing_for(choices={"chunk_logits": 4 * V}):
        yield


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("valid", [VALID, VALID | True, VALID & False], ids=["some", "all", "none"])
def test_values_and_gradients(size, valid):
    with tracing_for(choices={"chunk_logits": size * V}):
        close(jax.jit(chunked)(WEIGHTS, FEATURES, LABEL, valid), plain(WEIGHTS, FEATURES, LABEL, valid))
        close(gradients(chunked, LABEL, valid), gradients(plain, LABEL, valid))


def test_labels_that_cannot_be_and_labels_of_padding():
    """The first have log-probability 0 and no gradient, and they take no probability from the others."""
    bias = WEIGHTS["bias"].copy()
    bias[V - 2 :] = NEVER_LOGIT
    kept = {"kernel": WEIGHTS["kernel"][:, : V - 2], "bias": bias[: V - 2]}
    possible = VALID & (LABEL < V - 2)
    assert 0 < possible.sum() < VALID.sum()
    expected = plain(kept, FEATURES, np.minimum(LABEL, V - 3), possible)
    close(chunked(WEIGHTS | {"bias": bias}, FEATURES), expected)
    close(gradients(chunked, np.where(VALID, LABEL, -100), VALID), gradients(plain))


def test_the_logits_never_exist_together():
    compiled = jax.jit(jax.grad(lambda w, x: weighted(chunked, w, x), (0, 1))).lower(WEIGHTS, FEATURES).compile()
    shapes = re.findall(r"\b(?:f32|bf16|s32|pred)\[([\d,]+)\]", compiled.as_text())
    assert shapes and max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes) < B * T * V


def test_half_precision_features_get_float32_values():
    half = FEATURES.astype(jnp.bfloat16)
    values, grads = jax.value_and_grad(lambda x: weighted(chunked, WEIGHTS, x))(half)
    assert values.dtype == np.float32 and grads.dtype == jnp.bfloat16
    np.testing.assert_allclose(values, weighted(plain, WEIGHTS, half), rtol=1e-5)


def test_tokens_stay_on_their_device():
    """On eight devices with unequal padding: the same results, and only the gradient of the weights is communicated."""
    rng, mesh = np.random.default_rng(1), data_mesh(8)
    features, label = rng.normal(size=(16, T, D)).astype(np.float32), rng.integers(0, V, (16, T)).astype(np.int32)
    valid = np.arange(T)[None] < rng.integers(0, T + 1, (16, 1))

    @jax.jit
    def gradient(weights, features, label, valid):
        loss = lambda w, x: jnp.sin(chunked(w, x, label, valid)).sum()  # noqa: E731
        return jax.value_and_grad(loss, (0, 1))(weights, features)

    arguments = (
        jax.device_put(WEIGHTS, replicated_sharding(mesh)),
        *jax.device_put((features, label, valid), row_sharding(mesh)),
    )
    close(gradient(*arguments), gradient(WEIGHTS, features, label, valid))
    program = gradient.lower(*arguments).compile().as_text()
    assert not re.search(r"(all-gather|all-to-all|collective-permute|reduce-scatter)[\w-]*\(", program)

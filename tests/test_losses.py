"""The chunked cross-entropy against the plain one and against PyTorch, and its memory."""

import contextlib
import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.distributed.platforms import CHOICES, tracing_for
from jaxlm.distributed.sharding import data_mesh, replicated_sharding, row_sharding
from jaxlm.losses import NEVER_LOGIT, Loss, classification_loss, cross_entropy
from jaxlm.nn.layers import position_chunks
from jaxlm.nn.layers.position_chunks import ChunkLoop

B, T, D, V = 3, 6, 5, 11
RNG = np.random.default_rng(0)
WEIGHTS = {
    "kernel": RNG.normal(size=(D, V)).astype(np.float32),
    "bias": RNG.normal(size=V).astype(np.float32),
    "gain": np.float32(1.3),
}
FEATURES = RNG.normal(size=(B, T, D)).astype(np.float32)
LABEL = RNG.integers(0, V, (B, T)).astype(np.int32)
VALID = RNG.random((B, T)) < 0.7
EVERYTHING = np.ones((B, T), bool)


def readout(weights, features):
    flat = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    logits = weights["gain"] * (flat @ weights["kernel"]) + weights["bias"][None]
    return logits.reshape(*features.shape[:-1], -1)


def chunked(weights, features, label=LABEL, valid=VALID, smoothing=0.0) -> Loss:
    return cross_entropy(lambda x: readout(weights, x), features, label, valid, smoothing)


def plain(weights, features, label=LABEL, valid=VALID, smoothing=0.0):
    """The definition, on all logits at once."""
    log_p = jax.nn.log_softmax(readout(weights, features))
    target = (1 - smoothing) * jax.nn.one_hot(label, log_p.shape[-1]) + smoothing / log_p.shape[-1]
    return -jnp.sum(jnp.where(valid[..., None], target * log_p, 0.0))


def value_and_grads(function, *arguments, **options):
    def total(weights, features):
        actual = function(weights, features, *arguments, **options)
        return actual.total if isinstance(actual, Loss) else actual

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    return gradient(WEIGHTS, FEATURES)


def value(*arguments) -> Loss:
    return jax.jit(lambda: chunked(*arguments))()


def close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks smaller than the width of the features, which the default would not give."""
    monkeypatch.setattr(position_chunks, "MAX_CHUNK_LOGITS_WIDE", 0)


@pytest.fixture
def chunk_logits():
    """A function that sets the logits of a chunk and, if it is static, the loop, for what the test then traces."""
    with contextlib.ExitStack() as stack:
        yield lambda logits, static=False: stack.enter_context(
            tracing_for(choices={"chunk_logits": logits, "static_loss": static})
        )


@pytest.mark.parametrize(
    ("size", "smoothing", "static"),
    [*itertools.product([1, 4, 9, 10, 18, 100], [0.0, 0.1], [False]), *itertools.product([3, 5, 100], [0.1], [True])],
)
def test_value_and_gradients(chunk_logits, monkeypatch, size, smoothing, static):
    """For every chunk size, of 9 real tokens: with respect to the features and the parameters of the readout."""
    assert VALID.sum() == 9
    monkeypatch.setattr(position_chunks, "TILE", 1)
    chunk_logits(size * V, static)
    actual = value_and_grads(chunked, smoothing=smoothing)
    close(actual, value_and_grads(plain, smoothing=smoothing))
    loss = value(WEIGHTS, FEATURES, LABEL, VALID, smoothing)
    np.testing.assert_allclose(loss.nll, plain(WEIGHTS, FEATURES), rtol=1e-5)
    np.testing.assert_allclose(loss.total, actual[0], rtol=1e-6)  # without a gradient it is another program
    assert float(loss.count) == VALID.sum()


@pytest.mark.parametrize("valid", [EVERYTHING, ~EVERYTHING], ids=["all", "none"])
def test_all_valid_and_none(valid):
    actual = value_and_grads(chunked, LABEL, valid, smoothing=0.1)
    close(actual, value_and_grads(plain, LABEL, valid, smoothing=0.1))
    assert valid.any() or not any(np.any(leaf) for leaf in jax.tree.leaves(actual))


@pytest.mark.parametrize("logits", [1, 4 * V])
def test_a_length_without_divisors(chunk_logits, logits):
    chunk_logits(logits)
    features, *rest = (np.concatenate([x, x[:, :1]], 1) for x in (FEATURES, LABEL, EVERYTHING))
    actual = jax.jit(jax.value_and_grad(lambda x: chunked(WEIGHTS, x, *rest).total))(features)
    close(actual, jax.value_and_grad(lambda x: plain(WEIGHTS, x, *rest))(features))
    close(value(WEIGHTS, features, *rest).total, actual[0])


def test_the_gradient_is_that_of_any_function_of_the_sum():
    close(
        value_and_grads(lambda w, x: jnp.log(chunked(w, x).total) * 3.0),
        value_and_grads(lambda w, x: jnp.log(plain(w, x)) * 3.0),
    )


@pytest.mark.parametrize("never", [-np.inf, NEVER_LOGIT])
def test_outcomes_that_cannot_be_have_no_part(never):
    """Label smoothing is uniform over the others, and a label that cannot be is neither summed nor counted."""
    bias = WEIGHTS["bias"].copy()
    bias[V - 2 :] = never
    kept = {"kernel": WEIGHTS["kernel"][:, : V - 2], "bias": bias[: V - 2], "gain": WEIGHTS["gain"]}
    possible, label = VALID & (LABEL < V - 2), np.minimum(LABEL, V - 3)
    assert 0 < possible.sum() < VALID.sum()

    def total(weights):
        loss = chunked(weights, FEATURES, LABEL, VALID, 0.1)
        return loss.total, loss

    (_, loss), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(WEIGHTS | {"bias": bias})
    expected, expected_grads = jax.value_and_grad(plain)(kept, FEATURES, label, possible, 0.1)
    assert loss.count == possible.sum()
    close((loss.total, loss.nll), (expected, plain(kept, FEATURES, label, possible)))
    close({name: grad[..., : V - 2] for name, grad in grads.items() if name != "gain"},
          {name: grad for name, grad in expected_grads.items() if name != "gain"})  # fmt: skip
    logits, few = readout(WEIGHTS | {"bias": bias}, FEATURES), readout(kept, FEATURES)
    whole, part = (classification_loss(x, np.where(possible, LABEL, -1), 0.1) for x in (logits, few))
    close((whole.total, whole.nll, whole.count), (part.total, part.nll, part.count))
    assert classification_loss(logits, np.where(VALID, LABEL, -1), 0.1).count == possible.sum()


def test_labels_of_padding_are_ignored():
    junk = np.where(VALID, LABEL, -100)
    close(value_and_grads(chunked, junk), value_and_grads(chunked))
    close(value_and_grads(chunked, np.where(VALID, LABEL, 10**6)), value_and_grads(chunked))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_torch(smoothing):
    torch = pytest.importorskip("torch")
    weights = {name: torch.tensor(value, requires_grad=True) for name, value in WEIGHTS.items()}
    features = torch.tensor(FEATURES, requires_grad=True)
    logits = weights["gain"] * (features @ weights["kernel"]) + weights["bias"]
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="sum")
    total = criterion(logits.reshape(-1, V), torch.tensor(np.where(VALID, LABEL, -100).reshape(-1)).long())
    total.backward()
    actual, (weight_grads, feature_grads) = value_and_grads(chunked, smoothing=smoothing)
    np.testing.assert_allclose(actual, total.item(), rtol=1e-5)
    close(feature_grads, features.grad.numpy())
    close(weight_grads, {name: weight.grad.numpy() for name, weight in weights.items()})


@pytest.mark.parametrize("static", [False, True])
def test_the_logits_never_exist_together(chunk_logits, monkeypatch, static):
    """No array of B x T x V elements, neither in the traced program nor in the compiled one."""
    monkeypatch.setattr(position_chunks, "TILE", 1)
    chunk_logits(5 * V, static)
    gradient = jax.jit(jax.grad(lambda w, x: chunked(w, x).total, (0, 1)))
    traced, compiled = gradient.trace(WEIGHTS, FEATURES), gradient.lower(WEIGHTS, FEATURES).compile()
    assert max(sizes(traced.jaxpr.jaxpr)) < B * T * V
    shapes = re.findall(r"\b(?:f32|bf16|s32|pred)\[([\d,]+)\]", compiled.as_text())
    assert shapes and max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes) < B * T * V
    whole = jax.jit(jax.grad(lambda w, x: plain(w, x), (0, 1))).trace(WEIGHTS, FEATURES)
    assert max(sizes(whole.jaxpr.jaxpr)) >= B * T * V, "the plain loss holds them, so that this test sees something"


def sizes(jaxpr):
    """The sizes of all arrays in a jaxpr and in those inside it."""
    for equation in jaxpr.eqns:
        yield from (np.prod(var.aval.shape) for var in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def test_two_halves_add_up_to_the_whole():
    whole = value(WEIGHTS, FEATURES, LABEL, VALID, 0.1)
    for cut in (np.s_[:1], np.s_[1:]), (np.s_[:, :2], np.s_[:, 2:]):
        parts = [value(WEIGHTS, FEATURES[at], LABEL[at], VALID[at], 0.1) for at in cut]
        close(jax.tree.map(jnp.add, *parts), whole)


def test_half_precision_features_get_float32_sums():
    half = FEATURES.astype(jnp.bfloat16)
    loss, grads = jax.value_and_grad(lambda x: chunked(WEIGHTS, x).total)(half)
    assert loss.dtype == np.float32 and grads.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, plain(WEIGHTS, half), rtol=1e-5)


@pytest.mark.parametrize(
    "positions, vocab, width, expected",
    [
        (4096, 10_000, 128, 205),  # narrow: what fits the cache, in equal parts
        (700, 10_000, 650, 700),  # wide: as many as the features are wide, and no second chunk of 50
        (1120, 33_280, 256, 280),
        (512, 260, 256, 512),
        (3, 2**26, 1024, 3 // 3),  # at least one
    ],
)
def test_size_of_a_chunk(monkeypatch, positions, vocab, width, expected):
    monkeypatch.setattr(position_chunks, "MAX_CHUNK_LOGITS_WIDE", 2**25)
    choices = replace(CHOICES["cpu"], chunk_logits=2**21)
    assert ChunkLoop.for_logits(positions, vocab, width, choices, is_sparse=False).size == expected


@pytest.mark.parametrize(
    "positions, vocab, logits, expected",
    [
        (65_536, 50_304, 2**29, (8192, 8)),  # 8 chunks without a remainder rather than 6 with one
        (24_576, 37_000, 2**29, (12_288, 2)),
        (16_384, 128_256, 2**29, (4096, 4)),
        (1000, 37_000, 2**29, (1000, 1)),
        (24_999, 37_000, 2**28, (8448, 3)),
    ],
)
def test_chunks_of_a_static_loop(positions, vocab, logits, expected):
    choices = replace(CHOICES["gpu"], chunk_logits=logits)
    loop = ChunkLoop.for_logits(positions, vocab, 512, choices, is_sparse=False)
    assert (loop.size, loop.num_chunks, loop.is_static) == (*expected, True)
    sparse = ChunkLoop.for_logits(positions, vocab, 512, choices, is_sparse=True)
    assert not sparse.is_static and sparse.size <= positions / 16 + position_chunks.TILE


def test_padding_has_no_logits(chunk_logits):
    """The readout is called for the chunks that the real tokens fill only, with and without a gradient.

    One more position, of zeros, shows which outcomes cannot be.
    """
    chunk_logits(2 * V)
    calls = []

    def counted(features):
        jax.debug.callback(lambda: calls.append(features.shape))
        return readout(WEIGHTS, features)

    def total(features, valid):
        return cross_entropy(counted, features, LABEL, valid).total

    plainly, with_gradient = jax.jit(total), jax.jit(jax.value_and_grad(total))
    for real in (0, 1, 4, 5, B * T):
        valid = np.random.default_rng(real).permutation(B * T).reshape(B, T) < real
        for function in (plainly, with_gradient):
            calls.clear()
            jax.block_until_ready(function(FEATURES, valid))
            jax.effects_barrier()
            assert sorted(calls) == [(1, 1, D), *[(1, 2, D)] * -(-real // 2)]


@pytest.mark.parametrize("static", [False, True])
def test_tokens_stay_on_their_device(chunk_logits, monkeypatch, static):
    """On eight devices with unequal padding: the same results, and only sums are communicated."""
    monkeypatch.setattr(position_chunks, "TILE", 2)
    chunk_logits(4 * V, static)
    rng, mesh = np.random.default_rng(1), data_mesh(8)
    features, label = rng.normal(size=(16, T, D)).astype(np.float32), rng.integers(0, V, (16, T)).astype(np.int32)
    valid = np.arange(T)[None] < rng.integers(0, T + 1, (16, 1))
    gradient = jax.jit(jax.value_and_grad(lambda w, *batch: chunked(w, *batch, 0.1).total, (0, 1)))
    arguments = (
        jax.device_put(WEIGHTS, replicated_sharding(mesh)),
        *jax.device_put((features, label, valid), row_sharding(mesh)),
    )
    close(gradient(*arguments), gradient(WEIGHTS, features, label, valid))
    program = gradient.lower(*arguments).compile().as_text()
    assert "all-reduce(" in program
    assert not re.search(r"(all-gather|all-to-all|collective-permute|reduce-scatter)[\w-]*\(", program)
    assert max(map(size_of, re.findall(r"= (.*) all-reduce\(", program))) <= 2 + sum(map(np.size, WEIGHTS.values()))


def size_of(shapes: str) -> int:
    """Elements of an array or a tuple of arrays as XLA writes them: `(f32[], f32[11,5]{1,0})`."""
    actual = re.findall(r"[a-z]\w*\[([\d,]*)\]", shapes)
    return sum(int(np.prod([int(n) for n in extents.split(",") if n])) for extents in actual)

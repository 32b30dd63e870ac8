"""The chunked cross-entropy against the plain one and against PyTorch, and its memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import losses
from jaxlm.distributed.sharding import data_mesh, replicated_sharding, row_sharding
from jaxlm.losses import NEVER_LOGIT, Loss, classification_loss, cross_entropy

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
    monkeypatch.setattr(losses, "MAX_CHUNK_LOGITS_WIDE", 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 4, 9, 10, 18, 100])
def test_value_and_gradients(monkeypatch, size, smoothing):
    """For every chunk size, of 9 real tokens: with respect to the features and the parameters of the readout."""
    assert VALID.sum() == 9
    monkeypatch.setattr(losses, "MAX_CHUNK_LOGITS", size * V)
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
def test_a_length_without_divisors(monkeypatch, logits):
    monkeypatch.setattr(losses, "MAX_CHUNK_LOGITS", logits)
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


def test_the_logits_never_exist_together(monkeypatch):
    """No array of B x T x V elements, neither in the traced program nor in the compiled one."""
    monkeypatch.setattr(losses, "MAX_CHUNK_LOGITS", 5 * V)
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
    monkeypatch.setattr(losses, "MAX_CHUNK_LOGITS_WIDE", 2**25)
    assert losses._chunk_size(positions, vocab, width) == expected


def test_padding_has_no_logits(monkeypatch):
    """The readout is called for the chunks that the real tokens fill only, with and without a gradient.

    One more position, of zeros, shows which outcomes cannot be.
    """
    monkeypatch.setattr(losses, "MAX_CHUNK_LOGITS", 2 * V)
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


def test_tokens_stay_on_their_device(monkeypatch):
    """On eight devices with unequal padding: the same results, and only sums are communicated."""
    monkeypatch.setattr(losses, "MAX_CHUNK_LOGITS", 4 * V)
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

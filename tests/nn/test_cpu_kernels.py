"""The C kernels of decoding on a CPU against NumPy, and the fallback without them."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import ZOO, batch_of, examples, logits, params_of

from jaxlm.distributed.sharding import make_mesh
from jaxlm.nn.attention import cached
from jaxlm.nn.attention.kv_cache import CacheView, LayerCache
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.weights import cpu_kernels
from jaxlm.nn.weights.weight_formats import PackedKernel, concat_kernels, kernel_matmul, to_cpu_format
from jaxlm.pipeline.pipeline import prepare_params

needs_kernels = pytest.mark.skipif(cpu_kernels.panel_width() == 0, reason="no C compiler, or JAXLM_NATIVE=0")
PRODUCTS = [(1, 5, 3), (8, 768, 50), (17, 700, 33), (128, 1100, 96), (3, 1, 32), (31, 513, 1)]
ATTENTIONS = [
    (2, 3, 4, 64, 120, 4),
    (1, 1, 1, 5, 7, 1),
    (2, 2, 30, 16, 33, 15),
    (3, 2, 8, 80, 64, 8),
    (2, 2, 4, 64, 31, 1),
]


@needs_kernels
@pytest.mark.parametrize(("count", "depth", "features"), PRODUCTS)
def test_product(count, depth, features):
    rng = np.random.default_rng(count)
    x_RD, w_FD = (rng.standard_normal(shape, np.float32) for shape in ((count, depth), (features, depth)))

    @jax.jit
    def multiplied(x_RD, w_FD):
        return cpu_kernels.packed_matmul(x_RD, cpu_kernels.pack_panels(w_FD), features)

    y_RF = np.asarray(multiplied(x_RD, w_FD))
    exact_RF, size_RF = x_RD.astype(float) @ w_FD.T.astype(float), abs(x_RD) @ abs(w_FD).T
    assert (abs(y_RF - exact_RF) <= 1e-6 * size_RF).all()
    for at in range(0, count, 5):  # to the bit: a row does not know what is beside it
        np.testing.assert_array_equal(multiplied(x_RD[at : at + 1], w_FD)[0], y_RF[at])
    np.testing.assert_array_equal(cpu_kernels.unpack_panels(cpu_kernels.pack_panels(w_FD), features), w_FD)


@needs_kernels
@pytest.mark.parametrize(("count", "groups", "queries", "width", "keys", "masks"), ATTENTIONS)
def test_attention(count, groups, queries, width, keys, masks):
    rng = np.random.default_rng(keys)
    query_BGRH = rng.standard_normal((count, groups, queries, width), np.float32)
    key_BGHS = rng.standard_normal((count, groups, width, keys), np.float32)
    value_BGSH = rng.standard_normal((count, groups, keys, width), np.float32)
    mask_BQS = rng.random((count, masks, keys)) < 0.4
    mask_BQS[0, 0] = False  # masked completely
    mixed, total, highest = jax.jit(cpu_kernels.partial_attention)(query_BGRH, key_BGHS, value_BGSH, mask_BQS)
    seen_B1RS = np.tile(mask_BQS, (1, queries // masks, 1))[:, None]
    score_BGRS = np.where(seen_B1RS, np.einsum("bgrh,bghs->bgrs", query_BGRH, key_BGHS, dtype=float), -np.inf)
    most_BGR = np.maximum(score_BGRS.max(-1), np.finfo(np.float32).min)
    weight_BGRS = np.exp(score_BGRS - most_BGR[..., None])
    np.testing.assert_allclose(highest, most_BGR, rtol=1e-5)
    np.testing.assert_allclose(total, weight_BGRS.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(mixed, np.einsum("bgrs,bgsh->bgrh", weight_BGRS, value_BGSH), rtol=1e-4, atol=2e-5)
    assert (np.asarray(total)[0, :, ::masks] == 0).all() and np.isfinite(mixed).all()


@needs_kernels
@pytest.mark.parametrize(("slots", "tokens"), [(1, 1), (4, 1), (1, 5), (3, 2)])
def test_write_and_attend(slots, tokens, monkeypatch):
    rng = np.random.default_rng(slots)
    rows, groups, heads, width, room = 3, 2, 4, 5, 7

    def drawn(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    layer = LayerCache(drawn(rows, groups, width, room, slots), drawn(rows, groups, room, slots, width))
    query, (key, value) = drawn(rows * slots, tokens, heads, width), drawn(2, rows * slots, tokens, groups, width)
    position_BT = np.stack(
        [np.arange(at, at + tokens) for at in (0, 2, room - 1)]
    )  # the last row is full: its writes are dropped
    mask_BQC = jnp.asarray(rng.random((rows, slots * tokens, room * slots)) < 0.5)
    view = CacheView(jnp.asarray(np.minimum(position_BT, room), jnp.int32), mask_BQC, None)
    mixed, cache = jax.jit(cached.update_cache_and_attend, static_argnums=5)(query, key, value, layer, view, 0.5)
    monkeypatch.setattr(cpu_kernels, "supports", lambda *given: False)
    expected, rewritten = cached.update_cache_and_attend(query, key, value, layer, view, 0.5)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(rewritten), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_kernels
def test_packed_weights():
    rng = np.random.default_rng(1)
    kernels = [
        jnp.asarray(rng.standard_normal((12, width), np.float32)) for width in (7, 40, cpu_kernels.panel_width(), 9)
    ]
    x_RD, ids = jnp.asarray(rng.standard_normal((5, 12), np.float32)), jnp.array([[3, 3], [0, 39]])
    for some in (kernels, kernels[2:]):  # the first panels are full, or not
        made = concat_kernels(tuple(to_cpu_format(kernel) for kernel in some))
        assert isinstance(made, PackedKernel) and to_cpu_format(made) is made
        np.testing.assert_allclose(
            kernel_matmul(x_RD, made, jnp.float32), x_RD @ jnp.concatenate(some, 1), rtol=2e-5, atol=1e-6
        )
    table = to_cpu_format(kernels[1].T, is_table=True)
    np.testing.assert_array_equal(embed_ids(table, ids), kernels[1].T[ids])
    np.testing.assert_allclose(vocab_logits(x_RD, table), x_RD @ kernels[1], rtol=2e-5, atol=1e-6)
    narrow = kernel_matmul(x_RD.astype(jnp.bfloat16), table, jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16


@needs_kernels
def test_gradients_of_products():
    rng = np.random.default_rng(2)
    x_RD, w_DF, y_RF = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((3, 5), (5, 37), (3, 37)))
    expected = jax.grad(lambda x, w: ((x @ w - y_RF) ** 2).sum(), (0, 1))(x_RD, w_DF)
    actual = jax.grad(lambda x, w: ((kernel_matmul(x, to_cpu_format(w), jnp.float32) - y_RF) ** 2).sum(), (0, 1))(
        x_RD, w_DF
    )
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("name", ["pre", "t5", "llama", "lstm_lm", "feedforward_lm", "elman_lm", "seq2seq_dot"])
def test_models_give_the_same_logits(name):
    model = ZOO[name].model
    params, batch = params_of(model), batch_of(examples(6), 6, 6)
    changed = prepare_params(model, params)
    assert any(
        isinstance(leaf, PackedKernel)
        for leaf in jax.tree.leaves(changed, is_leaf=lambda x: isinstance(x, PackedKernel))
    )
    expected_BTV = logits(model, params, batch)
    np.testing.assert_allclose(logits(model, changed, batch), expected_BTV, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize(("march", "width"), [("x86-64", 8), ("haswell", 16)])
def test_smaller_instruction_sets(march, width, tmp_path):
    """Of the same processor family, in a process of its own."""
    if platform.machine() not in ("x86_64", "AMD64") or cpu_kernels.panel_width() < width:
        pytest.skip("has no smaller instruction set to try")
    program = (
        "from jaxlm.nn.weights import cpu_kernels\n"
        f"cpu_kernels.FLAGS = tuple('-march={march}' if flag.startswith('-march') else flag for flag in "
        "cpu_kernels.FLAGS)\n"
        f"import test_cpu_kernels as t; assert cpu_kernels.panel_width() == {width}, cpu_kernels.panel_width()\n"
        "[t.test_product(*case) for case in t.PRODUCTS]; [t.test_attention(*case) for case in t.ATTENTIONS]\n"
        "print('well')"
    )
    here = Path(__file__).parent
    actual = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    where = {"env": {**os.environ, "JAXLM_CACHE": str(tmp_path), "PYTHONPATH": actual}}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, **where)
    assert done.stdout.strip() == "well", done.stderr


@needs_kernels
@pytest.mark.parametrize("name, tied, apart", [("llama", True, False), ("seq2seq_dot", "all", "none")])
def test_only_the_table_of_the_logits_is_packed(name, tied, apart):
    """With tied embeddings that is the table of the input. What is packed already stays."""
    for tie, packed, plain in ((tied, {"embedding"}, set()), (apart, {"output"}, {"embedding", "source_embedding"})):
        model = ZOO[name].model.clone(tie_embeddings=tie)
        params = prepare_params(model, params_of(model))
        assert all(isinstance(params[table], PackedKernel) for table in packed)
        assert all(isinstance(params[table], jax.Array) for table in plain & set(params))
        jax.tree.map(np.testing.assert_array_equal, prepare_params(model, params), params)


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    asked = cpu_kernels.panel_width.__wrapped__
    monkeypatch.setenv("JAXLM_NATIVE", "0")
    assert asked() == 0
    monkeypatch.delenv("JAXLM_NATIVE")
    monkeypatch.setattr(cpu_kernels, "_find_compiler", lambda: None)
    assert asked() == 0
    monkeypatch.setattr(cpu_kernels, "_find_compiler", lambda: "false")  # one that fails
    assert asked() == 0 and not list(tmp_path.iterdir())
    monkeypatch.setattr(cpu_kernels, "panel_width", lambda: 0)
    kernel = jnp.ones((3, 5))
    assert to_cpu_format(kernel) is kernel and to_cpu_format(kernel, is_table=True) is kernel


@needs_kernels
def test_the_library_is_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "new"))
    compiler = cpu_kernels._find_compiler()
    cpu_kernels._load_library(compiler)
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".so"]
    monkeypatch.setattr(cpu_kernels.subprocess, "run", lambda *args, **options: pytest.fail("compiled again"))
    assert cpu_kernels._load_library(compiler).jaxlm_panel_width() == cpu_kernels.panel_width()


def test_weights_on_a_mesh_use_xla():
    mesh = make_mesh({"tensor": 2}, jax.devices()[:2])
    kernel = jax.device_put(jnp.ones((4, 8)), jax.NamedSharding(mesh, jax.P(None, "tensor")))
    assert isinstance(jax.jit(to_cpu_format)(kernel), jax.Array)


def test_a_compiler_is_enough():
    """If a compiler exists, the tests above are not skipped for another reason."""
    if cpu_kernels._find_compiler() is None or os.environ.get("JAXLM_NATIVE") == "0":
        pytest.skip("there is no C compiler here, or it is not to be used")
    assert cpu_kernels.panel_width() in (8, 16, 32)

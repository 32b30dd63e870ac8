"""Attention kernels against the plain computation: the TPU kernel interpreted, the cuDNN call with XLA's engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.attention import mask, splash
from jaxlm.nn.attention.cudnn import cudnn_attention
from jaxlm.nn.attention.kernels import find_attention_kernel
from jaxlm.nn.attention.mask import MaskRule, attention_mask, causal_attention_mask, causal_mask, segment_mask
from jaxlm.nn.attention.multi_head import dot_product_attention
from jaxlm.nn.attention.splash import splash_attention

B, T, N, H = 2, 132, 4, 8


def kernels():
    return {
        "splash": lambda *x: splash_attention(*x, interpret=True),
        "cudnn": lambda *x: cudnn_attention(*x, implementation="xla"),
    }


def draw(groups: int, source: int = T):
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, source, groups, H), (B, source, groups, H)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def rows(case: str):
    """valid_BT and segment_BT: rows padded on the right and on the left, or packed rows."""
    valid_BT = np.ones((B, T), bool)
    valid_BT[0, 100:] = False
    valid_BT[1, :30] = False
    if case != "packed":
        return jnp.asarray(valid_BT), None
    segment_BT = np.repeat([[1, 2, 3, 0]], B, 0).repeat(T // 4, 1)
    return jnp.asarray(segment_BT > 0), jnp.asarray(segment_BT, jnp.int32)


CASES = {"shared keys, packed": ("packed", 2, None), "window": ("padded", 1, 20)}


@pytest.fixture
def on_accelerator(monkeypatch):
    """Pretend that the program is compiled for an accelerator."""
    monkeypatch.setattr(mask, "platform_of", lambda x: "gpu")


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("case", CASES)
def test_self_attention(case, kernel, on_accelerator):
    kind, groups, window = CASES[case]
    valid_BT, segment_BT = rows(kind)
    plain, seen = (see(valid_BT, segment_BT, window) for see in (causal_mask, causal_attention_mask))
    _same(kernels()[kernel], draw(groups), plain, seen, valid_BT)


@pytest.mark.parametrize("kernel", [pytest.param("splash", marks=pytest.mark.slow), "cudnn"])
@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_cross_attention(packed, kernel, on_accelerator):
    """To a source of another length; one row is masked completely."""
    valid_BT, segment_BT = rows("packed" if packed else "padded")
    segment_BS = None if segment_BT is None else segment_BT[:, :129]
    valid_BS = (jnp.arange(129)[None] < jnp.array([[90], [0]])) & (segment_BS is None or segment_BS > 0)
    plain = valid_BS[:, None] & segment_mask(segment_BT, segment_BS, valid_BT)
    seen = attention_mask(valid_BS, segment_BS, target=(valid_BT, segment_BT))
    _same(kernels()[kernel], draw(2, 129), plain, seen, valid_BT)


FORMS = {"causal": (256, None), "causal, odd": (251, None), "window": (256, 20), "window, odd": (251, 20)}


@pytest.mark.parametrize("form", FORMS)
def test_tokens_before_padding(form, on_accelerator):
    """The arguments that replace the mask: the same values as with it, of rows with any padding, after sorting."""
    length, window = FORMS[form]
    order, valid_BT, given = sorted_rows(length)
    seen = causal_attention_mask(valid_BT, None, window, order)
    assert seen.tokens_first
    _same(kernels()["cudnn"], given, causal_mask(valid_BT, None, window), seen, valid_BT)


@pytest.mark.parametrize("source", [None, 129])
def test_tokens_before_padding_without_causality(source, on_accelerator):
    """By lengths, to itself and to a source, of which one row is empty."""
    order, valid_BT, given = sorted_rows(251, source)
    if source is None:
        _same(kernels()["cudnn"], given, valid_BT[:, None], attention_mask(valid_BT, None, order), valid_BT)
        return
    valid_BS = jnp.arange(source)[None] < jnp.array([[90], [0]])
    seen = attention_mask(valid_BS, None, order, (valid_BT, None))
    _same(kernels()["cudnn"], given, valid_BS[:, None], seen, valid_BT)


def sorted_rows(length: int, source: int | None = None):
    """An order of tokens before padding, valid positions in it, and queries, keys and values."""
    order = mask.token_order(jnp.asarray(np.random.default_rng(1).random((B, length)) < 0.8), None)
    valid_BT = order.sort(jnp.asarray(np.random.default_rng(1).random((B, length)) < 0.8))
    assert order.tokens_first and not (valid_BT[:, 1:] & ~valid_BT[:, :-1]).any()
    query, *_ = draw(2, length)
    return order, valid_BT, [jnp.resize(query, (B, length, N, H)), *draw(2, source or length)[1:]]


@pytest.mark.parametrize("partial_sums", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_blocks_of_splash_attention(partial_sums, on_accelerator, monkeypatch):
    """Three blocks, of which causality excludes some, with either backward kernel."""
    monkeypatch.setattr(splash, "SPLASH_BLOCKS", {"default": splash.SplashBlocks(128, 0.0)})
    monkeypatch.setattr(splash, "MAX_PARTIAL_SUMS", partial_sums)
    valid_BT = jnp.ones((1, 384), bool).at[:, 300:].set(False)
    given = [x[:1, :, :2] for x in draw(2, 384)]
    given[0] = jnp.resize(given[0], (1, 384, 2, H))
    _same(kernels()["splash"], given, causal_mask(valid_BT, None), causal_attention_mask(valid_BT, None), valid_BT)


def test_the_size_of_a_block():
    """Large blocks of many positions, but not one alone whose upper half a causal mask excludes."""
    causal, full = MaskRule(None, None, causal=True), MaskRule(None, None)
    v5p, v6e = (functools.partial(splash.SPLASH_BLOCKS[name].best_size, head_bytes=128) for name in ("v5p", "v6e"))
    lengths = (128, 640, 1024, 2048, 8192)
    assert [v5p(length, mask_rule=causal) for length in lengths] == [128, 640, 512, 1024, 1024]
    assert [v6e(length, mask_rule=causal) for length in lengths[2:]] == [1024, 1024, 2048]
    assert v5p(1024, mask_rule=full) == 1024 and v5p(1152, mask_rule=full) == 384
    assert v6e(8192, mask_rule=causal.replace(window=1024)) == 1024
    assert v6e(8192, mask_rule=causal, head_bytes=512) == 1024


def _same(kernel, given, mask_BTS, seen, valid_BT):
    """Compare values and gradients at the valid positions; the others are undefined."""
    assert isinstance(seen, MaskRule)
    asked = valid_BT[:, :, None, None]
    np.testing.assert_array_equal(np.broadcast_to(mask_BTS, seen.mask().shape)[valid_BT], seen.mask()[valid_BT])

    def total(attention):
        def sums(*given):
            mixed = jnp.where(asked, attention(*given), 0.0)
            return (mixed * jnp.cos(given[0])).sum(), mixed

        return jax.jit(jax.value_and_grad(sums, argnums=(0, 1, 2), has_aux=True))(*given)

    (_, plain), expected = total(lambda *x: dot_product_attention(*x, mask_BTS, scale=0.3))
    (_, actual), gradients = total(lambda *x: kernel(*x, seen, 0.3))
    np.testing.assert_allclose(actual, plain, atol=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_cpu_uses_no_kernel():
    query, key, value = draw(4)
    valid_BT, segment_BT = rows("packed")
    assert isinstance(causal_attention_mask(valid_BT, segment_BT), jax.Array)
    assert isinstance(attention_mask(valid_BT, segment_BT), jax.Array)
    assert find_attention_kernel(query, key) is None


def test_a_mask_rule_without_a_kernel():
    query, key, value = draw(2)
    valid_BT, segment_BT = rows("packed")
    seen = MaskRule(segment_BT, jnp.where(valid_BT, segment_BT, -1), causal=True)
    expected = dot_product_attention(query, key, value, causal_mask(valid_BT, segment_BT))
    np.testing.assert_allclose(dot_product_attention(query, key, value, seen), expected, atol=1e-6)

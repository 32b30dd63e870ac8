"""Attention kernels against the plain computation: the TPU kernel interpreted, the cuDNN call with XLA's engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.attention import mask
from jaxlm.nn.attention.cudnn import cudnn_attention
from jaxlm.nn.attention.kernels import find_attention_kernel
from jaxlm.nn.attention.mask import (
    MaskRule,
    attention_mask,
    causal_attention_mask,
    causal_mask,
    cross_attention_mask,
    segment_mask,
)
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
    monkeypatch.setattr(mask, "platform_of", lambda x: "tpu")


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
    seen = cross_attention_mask((valid_BT, segment_BT), (valid_BS, segment_BS))
    _same(kernels()[kernel], draw(2, 129), plain, seen, valid_BT)


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

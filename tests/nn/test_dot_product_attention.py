"""Attention against its formula: values and gradients, with grouped queries, a bias and another scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.attention.multi_head import dot_product_attention

B, T, S, N, H = 2, 5, 6, 4, 3


def plain(query_BTNH, key_BSGH, value_BSGH, mask_BTS, scale, bias_BNTS):
    """Key heads repeated for the query heads that share them; one softmax over the allowed keys."""
    share = N // key_BSGH.shape[2]
    key_BSNH, value_BSNH = jnp.repeat(key_BSGH, share, axis=2), jnp.repeat(value_BSGH, share, axis=2)
    score_BNTS = jnp.einsum("btnh,bsnh->bnts", query_BTNH, key_BSNH) * scale + bias_BNTS
    weight_BNTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], score_BNTS, -1e30), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weight_BNTS, value_BSNH)


def draw(groups: int):
    rng = np.random.default_rng(0)
    query, *keys = (rng.normal(size=shape).astype(np.float32) for shape in ((B, T, N, H), *2 * [(B, S, groups, H)]))
    mask_BTS = rng.random((B, T, S)) < 0.6
    mask_BTS[..., 0] = True
    return query, *keys, mask_BTS, rng.normal(size=(B, N, T, S)).astype(np.float32)


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_values_and_gradients(groups):
    query, key, value, mask, bias = draw(groups)

    def ours(query, key, value, bias):
        return dot_product_attention(query, key, value, mask, scale=0.7, bias_BNTS=bias)

    def formula(query, key, value, bias):
        return plain(query, key, value, mask, 0.7, bias)

    given = query, key, value, bias
    np.testing.assert_allclose(ours(*given), formula(*given), rtol=1e-5, atol=1e-5)
    sums = [lambda *x, f=f: (f(*x) * query).sum() for f in (ours, formula)]
    actual, expected = (jax.grad(total, argnums=(0, 1, 2, 3))(*given) for total in sums)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [4, 2])
def test_dropout_preserves_the_mean(groups):
    """The mean over many masks equals the output without dropout."""
    query, key, value, mask, bias = draw(groups)
    keys = jax.random.split(jax.random.key(0), 600)
    actual = jax.vmap(lambda k: dot_product_attention(query, key, value, mask, bias_BNTS=bias, dropout=(k, 0.3)))(keys)
    expected = dot_product_attention(query, key, value, mask, bias_BNTS=bias)
    assert actual.shape == (600, *expected.shape) and float(jnp.std(actual, axis=0).min()) > 0.01
    np.testing.assert_allclose(actual.mean(0), expected, atol=0.25)

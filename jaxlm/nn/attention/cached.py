"""Attention while decoding: few queries, over a cache and over whatever else was read before it.

On a CPU the kernels of `jaxlm.nn.weights.cpu_kernels` do it where they can.
"""

import functools
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxlm.nn.attention.kv_cache import CacheView, LayerCache, readable_parts, write_kv
from jaxlm.nn.weights import cpu_kernels
from jaxlm.types import Array

KeyValueMask = tuple[Array, Array, Array]
"""Keys (B, G, H, S), values (B, G, S, H) and the mask (B, T or 1, S) of what is seen of them."""


def cached_attention(
    query_RTNH: Array, *parts: KeyValueMask, scale: float | None = None, biases: tuple[Array, ...] = ()
) -> Array:
    """`dot_product_attention` for decoding, over several sets of keys as if they were one -> (R, T, N, H).

    Each set has its own B rows, and R = B * K: K slots share a row of keys, whose mask has K * T queries. There may be
    fewer heads of keys than of queries: N / G queries in a row share one (Ainslie et al. 2023). `biases`, where given,
    are added to the scores of each set of keys: (B, N, K * T, S), or 1 in the place of B.
    """
    scale = query_RTNH.shape[-1] ** -0.5 if scale is None else scale
    several = zip(parts, biases or (None,) * len(parts), strict=True)
    return _combine_partials(
        [_partial_attention(query_RTNH, *part, bias, scale) for part, bias in several], query_RTNH.dtype
    )


def update_cache_and_attend(
    query_RTNH, key_RTGH, value_RTGH, cache: LayerCache, view: CacheView, scale: float | None
) -> tuple[Array, LayerCache]:
    """Write T new keys and values a slot, look at all that each query sees -> (R, T, N, H) and the new cache."""
    if view.biases or not cpu_kernels.supports(query_RTNH, key_RTGH, value_RTGH, cache.key_BGHCK):
        cache = write_kv(cache, key_RTGH, value_RTGH, view)
        return cached_attention(query_RTNH, *readable_parts(cache, view), scale=scale, biases=view.biases), cache
    rows, width = view.position_BT.shape[0], query_RTNH.shape[-1]
    scale = width**-0.5 if scale is None else scale
    key_BKTGH, value_BKTGH = (x.reshape(rows, -1, *x.shape[1:]) for x in (key_RTGH, value_RTGH))
    query_BGMQH = _group_queries(query_RTNH, *cache.key_BGHCK.shape[:2]) * scale
    query_BGRH = query_BGMQH.reshape(*query_BGMQH.shape[:2], -1, width)
    caches = cache.key_BGHCK, cache.value_BGCKH
    news = view.mask_BQC, key_BKTGH, value_BKTGH, view.position_BT
    looked, caches = cpu_kernels.write_and_attend(query_BGRH, *caches, *news)
    cache = replace(cache, key_BGHCK=caches[0], value_BGCKH=caches[1])
    prefix = [_partial_attention(query_RTNH, *part, None, scale) for part in readable_parts(cache, view)[1:]]
    return _combine_partials([_ungroup_queries(looked, query_RTNH), *prefix], query_RTNH.dtype), cache


def _combine_partials(partials: list[cpu_kernels.PartialAttention], dtype: Any) -> Array:
    """What `_partial_attention` gives for several sets of keys, as if they were one."""
    mixed, total, highest = partials[0]
    if len(partials) > 1:
        highest = functools.reduce(jnp.maximum, (one[2] for one in partials))
        shares = [jnp.exp(one[2] - highest) for one in partials]
        mixed, total = (
            functools.reduce(jnp.add, [s * one[at] for s, one in zip(shares, partials, strict=True)]) for at in (0, 1)
        )
    return (mixed / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)).astype(dtype)


def _group_queries(query_RTNH: Array, rows: int, groups: int) -> Array:
    """The queries by the row and the head of the keys that they look at: (B, G, N / G, K * T, H)."""
    _, tokens, queries, width = query_RTNH.shape
    query_BKTGMH = query_RTNH.reshape(rows, -1, tokens, groups, queries // groups, width)
    return jnp.transpose(query_BKTGMH, (0, 3, 4, 1, 2, 5)).reshape(rows, groups, queries // groups, -1, width)


def _ungroup_queries(partial_result: cpu_kernels.PartialAttention, query_RTNH: Array) -> cpu_kernels.PartialAttention:
    """From (B, G, N / G * K * T, ...) to the order of the queries: (R, T, N, H), (R, T, N, 1) twice."""
    _, tokens, heads, _ = query_RTNH.shape

    def each(x: Array) -> Array:
        rows, groups = x.shape[:2]
        x_BGMKTX = x.reshape(rows, groups, heads // groups, -1, tokens, x.shape[3] if x.ndim == 4 else 1)
        return jnp.transpose(x_BGMKTX, (0, 3, 4, 1, 2, 5)).reshape(-1, tokens, heads, x_BGMKTX.shape[-1])

    mixed, total, highest = (each(x) for x in partial_result)
    return mixed, total, highest


def _partial_attention(
    query_RTNH, key_BGHS, value_BGSH, mask_BQS, bias_BNQS, scale: float
) -> cpu_kernels.PartialAttention:
    """With w = exp(score - highest): sum of w * value (R, T, N, H), sum of w, highest, both (R, T, N, 1)."""
    query_BGMQH = _group_queries(query_RTNH, *key_BGHS.shape[:2])
    flat = (*query_BGMQH.shape[:2], -1)
    if bias_BNQS is None and cpu_kernels.supports(query_BGMQH, key_BGHS, value_BGSH):
        query_BGRH = (query_BGMQH * scale).reshape(*flat, query_BGMQH.shape[-1])
        return _ungroup_queries(cpu_kernels.partial_attention(query_BGRH, key_BGHS, value_BGSH, mask_BQS), query_RTNH)
    score_BGMQS = jnp.einsum("bgmqh,bghs->bgmqs", query_BGMQH, key_BGHS, preferred_element_type=jnp.float32) * scale
    if bias_BNQS is not None:
        score_BGMQS = score_BGMQS + bias_BNQS.reshape(bias_BNQS.shape[0], *score_BGMQS.shape[1:])
    score_BGMQS = jnp.where(mask_BQS[:, None, None], score_BGMQS, -jnp.inf)
    highest = jnp.maximum(score_BGMQS.max(-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weight_BGMQS = jnp.exp(score_BGMQS - highest)
    mixed = jnp.einsum(
        "bgmqs,bgsh->bgmqh", weight_BGMQS.astype(value_BGSH.dtype), value_BGSH, preferred_element_type=jnp.float32
    )
    found = mixed, weight_BGMQS.sum(-1), highest[..., 0]
    mixed, total, highest = (x.reshape(*flat, *x.shape[4:]) for x in found)
    return _ungroup_queries((mixed, total, highest), query_RTNH)

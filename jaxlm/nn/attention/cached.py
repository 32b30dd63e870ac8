"""Attention during decoding: few queries, over the KV cache and an optional shared prefix.

On a CPU it is computed by the C kernels of `jaxlm.nn.weights.cpu_kernels` if they support the case.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxlm.nn.attention.kv_cache import CacheView, KeysValues, LayerCache, readable_parts, write_kv
from jaxlm.nn.weights import cpu_kernels
from jaxlm.types import Array


def cached_attention(query_RTNH: Array, parts: Sequence[KeysValues], scale: float) -> Array:
    """Return `dot_product_attention` for decoding over several sets of keys as if they were concatenated: (R, T, N, H).

    Each set has its own number of rows B, and R = B * K: K beams share a row of keys, whose mask has Q = K * T queries.
    """
    return _combine_partials([_partial_attention(query_RTNH, part, scale) for part in parts], query_RTNH.dtype)


def update_cache_and_attend(
    query_RTNH: Array, key_RTGH: Array, value_RTGH: Array, cache: LayerCache, view: CacheView, scale: float
) -> tuple[Array, LayerCache]:
    """Write T new keys and values per beam, attend to all that the view allows -> (R, T, N, H), the new cache."""
    if view.biases or not cpu_kernels.supports(query_RTNH, key_RTGH, value_RTGH, cache.key_BGHCK):
        cache = write_kv(cache, key_RTGH, value_RTGH, view)
        return cached_attention(query_RTNH, readable_parts(cache, view), scale), cache
    rows = view.position_BT.shape[0]
    key_BKTGH, value_BKTGH = (x.reshape(rows, -1, *x.shape[1:]) for x in (key_RTGH, value_RTGH))
    query_BGMQH = _group_queries(query_RTNH, *cache.key_BGHCK.shape[:2]) * scale
    query_BGRH = query_BGMQH.reshape(*query_BGMQH.shape[:2], -1, query_RTNH.shape[-1])  # (B, G, N / G * K * T, H)
    partial, (key_BGHCK, value_BGCKH) = cpu_kernels.write_and_attend(
        query_BGRH, cache.key_BGHCK, cache.value_BGCKH, view.mask_BQC, key_BKTGH, value_BKTGH, view.position_BT
    )
    cache = replace(cache, key_BGHCK=key_BGHCK, value_BGCKH=value_BGCKH)
    prefix = [_partial_attention(query_RTNH, part, scale) for part in readable_parts(cache, view)[1:]]
    return _combine_partials([_ungroup_queries(partial, query_RTNH), *prefix], query_RTNH.dtype), cache


def _combine_partials(partials: list[cpu_kernels.PartialAttention], dtype: Any) -> Array:
    """The softmax over all sets of keys from the partial results of each: rescale to a common maximum, add, divide."""
    mixed, total, _ = partials[0]
    if len(partials) > 1:
        all_mixed, all_total, all_highest = zip(*partials, strict=True)
        highest = functools.reduce(jnp.maximum, all_highest)
        factors = [jnp.exp(part - highest) for part in all_highest]
        mixed, total = (functools.reduce(jnp.add, map(jnp.multiply, factors, x)) for x in (all_mixed, all_total))
    return (mixed / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)).astype(dtype)


def _group_queries(query_RTNH: Array, rows: int, kv_heads: int) -> Array:
    """The queries by the row and the head of the keys that they attend to: (B, G, M = N / G, Q = K * T, H)."""
    _, tokens, heads, width = query_RTNH.shape
    query_BKTGMH = query_RTNH.reshape(rows, -1, tokens, kv_heads, heads // kv_heads, width)
    return jnp.transpose(query_BKTGMH, (0, 3, 4, 1, 2, 5)).reshape(rows, kv_heads, heads // kv_heads, -1, width)


def _ungroup_queries(partial: cpu_kernels.PartialAttention, query_RTNH: Array) -> cpu_kernels.PartialAttention:
    """From (B, G, M * K * T, ...) to the order of the queries: (R, T, N, H), (R, T, N, 1) twice."""
    _, tokens, heads, _ = query_RTNH.shape

    def ungroup(x: Array) -> Array:
        rows, kv_heads = x.shape[:2]
        x_BGMKTX = x.reshape(rows, kv_heads, heads // kv_heads, -1, tokens, x.shape[3] if x.ndim == 4 else 1)
        return jnp.transpose(x_BGMKTX, (0, 3, 4, 1, 2, 5)).reshape(-1, tokens, heads, x_BGMKTX.shape[-1])

    mixed, total, highest = (ungroup(x) for x in partial)
    return mixed, total, highest


def _partial_attention(query_RTNH: Array, part: KeysValues, scale: float) -> cpu_kernels.PartialAttention:
    """With w = exp(score - highest): sum of w * value (R, T, N, H), sum of w and highest, both (R, T, N, 1)."""
    query_BGMQH = _group_queries(query_RTNH, *part.key_BGHS.shape[:2])
    grouped = (*query_BGMQH.shape[:2], -1)  # merges M and Q
    if part.bias_BNQS is None and cpu_kernels.supports(query_BGMQH, part.key_BGHS, part.value_BGSH):
        query_BGRH = (query_BGMQH * scale).reshape(*grouped, query_BGMQH.shape[-1])
        partial = cpu_kernels.partial_attention(query_BGRH, part.key_BGHS, part.value_BGSH, part.mask_BQS)
        return _ungroup_queries(partial, query_RTNH)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    score_BGMQS = product("bgmqh,bghs->bgmqs", query_BGMQH, part.key_BGHS) * scale
    if part.bias_BNQS is not None:
        score_BGMQS = score_BGMQS + part.bias_BNQS.reshape(part.bias_BNQS.shape[0], *score_BGMQS.shape[1:])
    score_BGMQS = jnp.where(part.mask_BQS[:, None, None], score_BGMQS, -jnp.inf)
    # Finite even if a query sees no key, so that exp(-inf - highest) is 0 and not NaN.
    highest_BGMQ1 = jnp.maximum(score_BGMQS.max(-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weight_BGMQS = jnp.exp(score_BGMQS - highest_BGMQ1)
    mixed_BGMQH = product("bgmqs,bgsh->bgmqh", weight_BGMQS.astype(part.value_BGSH.dtype), part.value_BGSH)
    partial = (mixed_BGMQH, weight_BGMQS.sum(-1), highest_BGMQ1[..., 0])
    mixed, total, highest = (x.reshape(*grouped, *x.shape[4:]) for x in partial)
    return _ungroup_queries((mixed, total, highest), query_RTNH)

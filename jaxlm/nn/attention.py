"""Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2), with and without a cache."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.nn.cache import Layer, View, seen, write
from jaxlm.nn.dropout import keep_mask
from jaxlm.nn.linear import Linear, joint
from jaxlm.types import Array

Keys = tuple[Array, Array, Array]
"""Keys (B, G, H, S), values (B, G, S, H) and the mask (B, T or 1, S) of what is seen of them."""


def attend(query_BTNH: Array, key_BSNH: Array, value_BSNH: Array, mask_BTS: Array, drop_key=None, drop=0.0) -> Array:
    """softmax(Q K^T / sqrt(H)) V over the allowed keys -> (B, T, N, H).

    `mask_BTS` is True where query t may see key s (T may be 1 in the mask, for all queries alike). Scores and softmax
    are float32; a query that may see nothing gives zeros, so padding leaves no trace and no NaN.
    """
    query_BNTH, key_BNSH, value_BNSH = (jnp.swapaxes(x, 1, 2) for x in (query_BTNH, key_BSNH, value_BSNH))
    if drop_key is None or drop == 0.0:
        return jnp.swapaxes(_mix(query_BNTH, key_BNSH, value_BNSH, mask_BTS), 1, 2)
    weight_BNTS = _weights(query_BNTH, key_BNSH, mask_BTS)
    weight_BNTS = jnp.where(keep_mask(drop_key, drop, weight_BNTS.shape), weight_BNTS / (1.0 - drop), 0.0)
    return jnp.einsum("bnts,bnsh->btnh", weight_BNTS.astype(value_BSNH.dtype), value_BNSH)


def _weights(query_BNTH: Array, key_BNSH: Array, mask_BTS: Array) -> Array:
    """softmax(Q K^T / sqrt(H)) over the allowed keys, float32."""
    score_BNTS = jnp.einsum("bnth,bnsh->bnts", query_BNTH, key_BNSH, preferred_element_type=jnp.float32)
    score_BNTS = jnp.where(mask_BTS[:, None], score_BNTS * query_BNTH.shape[-1] ** -0.5, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.maximum(score_BNTS.max(-1, keepdims=True), jnp.finfo(jnp.float32).min))
    weight_BNTS = jnp.exp(score_BNTS - highest)
    return weight_BNTS / jnp.maximum(weight_BNTS.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


@jax.custom_vjp
def _mix(query_BNTH: Array, key_BNSH: Array, value_BNSH: Array, mask_BTS: Array) -> Array:
    """weights V -> (B, N, T, H). Its own gradient keeps the weights and nothing else of size T x S."""
    return _mix_forward(query_BNTH, key_BNSH, value_BNSH, mask_BTS)[0]


def _mix_forward(query_BNTH, key_BNSH, value_BNSH, mask_BTS):
    weight_BNTS = _weights(query_BNTH, key_BNSH, mask_BTS).astype(value_BNSH.dtype)
    return jnp.einsum("bnts,bnsh->bnth", weight_BNTS, value_BNSH), (query_BNTH, key_BNSH, value_BNSH, weight_BNTS)


def _mix_backward(kept, d_mixed_BNTH):
    query_BNTH, key_BNSH, value_BNSH, weight_BNTS = kept
    d_value_BNSH = jnp.einsum("bnst,bnth->bnsh", _turned(weight_BNTS), d_mixed_BNTH)
    d_weight_BNTS = jnp.einsum("bnth,bnsh->bnts", d_mixed_BNTH, value_BNSH, preferred_element_type=jnp.float32)
    inner_BNT1 = (weight_BNTS * d_weight_BNTS).sum(-1, keepdims=True)
    d_score_BNTS = weight_BNTS * (d_weight_BNTS - inner_BNT1) * query_BNTH.shape[-1] ** -0.5
    d_score_BNTS = d_score_BNTS.astype(query_BNTH.dtype)
    d_query_BNTH = jnp.einsum("bnts,bnsh->bnth", d_score_BNTS, key_BNSH)
    d_key_BNSH = jnp.einsum("bnst,bnth->bnsh", _turned(d_score_BNTS), query_BNTH)
    return d_query_BNTH, d_key_BNSH, d_value_BNSH, None


def _turned(x_BNTS: Array) -> Array:
    """(B, N, S, T). On a CPU as a copy: a product that takes its left side transposed costs twice as much there."""

    def turn(x_BNTS):
        return jnp.swapaxes(x_BNTS, 2, 3)

    return jax.lax.platform_dependent(x_BNTS, cpu=lambda x: jax.lax.optimization_barrier(turn(x)), default=turn)


_mix.defvjp(_mix_forward, _mix_backward)


def look(query_RTNH: Array, *parts: Keys) -> Array:
    """`attend` for decoding, over several sets of keys as if they were one -> (R, T, N, H).

    Each set has its own B rows, and R = B * K: K slots share a row of keys, whose mask has K * T queries. There may be
    fewer heads of keys than of queries: N / G queries in a row share one (Ainslie et al. 2023).
    """
    if len(parts) == 1:
        mixed, total, _ = _look(query_RTNH, *parts[0])
    else:
        found = [_look(query_RTNH, *part) for part in parts]
        highest = functools.reduce(jnp.maximum, (one[2] for one in found))
        shares = [jnp.exp(one[2] - highest) for one in found]
        mixed = sum(share * one[0] for share, one in zip(shares, found, strict=True))
        total = sum(share * one[1] for share, one in zip(shares, found, strict=True))
    return (mixed / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)).astype(query_RTNH.dtype)


def _look(query_RTNH: Array, key_BGHS: Array, value_BGSH: Array, mask_BQS: Array) -> tuple[Array, Array, Array]:
    """With w = exp(score - highest): sum of w * value (R, T, N, H), sum of w, highest, both (R, T, N, 1)."""
    (rows, heads), (_, tokens, queries, width) = key_BGHS.shape[:2], query_RTNH.shape
    query_BKTGMH = query_RTNH.reshape(rows, -1, tokens, heads, queries // heads, width)
    query_BGMQH = jnp.transpose(query_BKTGMH, (0, 3, 4, 1, 2, 5)).reshape(rows, heads, queries // heads, -1, width)
    score_BGMQS = jnp.einsum("bgmqh,bghs->bgmqs", query_BGMQH, key_BGHS, preferred_element_type=jnp.float32)
    score_BGMQS = jnp.where(mask_BQS[:, None, None], score_BGMQS * width**-0.5, -jnp.inf)
    highest = jnp.maximum(score_BGMQS.max(-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weight_BGMQS = jnp.exp(score_BGMQS - highest)
    mixed = jnp.einsum(
        "bgmqs,bgsh->bgmqh", weight_BGMQS.astype(value_BGSH.dtype), value_BGSH, preferred_element_type=jnp.float32
    )

    def back(x_BGMQX: Array) -> Array:
        x_BGMKTX = x_BGMQX.reshape(*x_BGMQX.shape[:3], -1, tokens, x_BGMQX.shape[-1])
        return jnp.transpose(x_BGMKTX, (0, 3, 4, 1, 2, 5)).reshape(-1, tokens, queries, x_BGMQX.shape[-1])

    return back(mixed), back(weight_BGMQS.sum(-1, keepdims=True)), back(highest)


class Attention(nn.Module):
    """Projections around `attend`: q, k, v of `heads` heads of width / heads each, and the output map."""

    width: int
    heads: int
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self) -> None:
        if self.width % self.heads:
            raise UserError(f"a width of {self.width} does not divide into {self.heads} heads: choose a multiple of it")
        self.query, self.key, self.value, self.out = (Linear(self.width, dtype=self.dtype) for _ in range(4))

    def project(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """The queries, keys and values of x, each (B, T, N, H): what attention of x to itself begins with."""
        query, key, value = joint(x_BTD, self.query, self.key, self.value)
        return self._heads(query), self._heads(key), self._heads(value)

    def keys_values(self, x_BSD: Array) -> tuple[Array, Array]:
        """The keys and the values of x, each (B, S, N, H)."""
        key, value = joint(x_BSD, self.key, self.value)
        return self._heads(key), self._heads(value)

    def __call__(self, x_BTD: Array, key_BSNH: Array, value_BSNH: Array, mask_BTS: Array) -> Array:
        """Queries from x, attention to the given keys and values -> (B, T, D)."""
        return self.mix(self._heads(self.query(x_BTD)), key_BSNH, value_BSNH, mask_BTS)

    def mix(self, query_BTNH: Array, key_BSNH: Array, value_BSNH: Array, mask_BTS: Array) -> Array:
        """Attention of the queries to the keys and values, and the output map -> (B, T, D)."""
        drop_key = self.make_rng("dropout") if self.dropout > 0.0 and self.has_rng("dropout") else None
        mixed_BTNH = attend(query_BTNH, key_BSNH, value_BSNH, mask_BTS, drop_key, self.dropout)
        return self._out(mixed_BTNH)

    def source(self, x_BSD: Array) -> tuple[Array, Array]:
        """The keys (B, N, H, S) and the values (B, N, S, H) of a source as `read_source` takes them."""
        key_BSNH, value_BSNH = self.keys_values(x_BSD)
        return jnp.transpose(key_BSNH, (0, 2, 3, 1)), jnp.swapaxes(value_BSNH, 1, 2)

    def read_source(self, x_RTD: Array, key_BNHS: Array, value_BNSH: Array, mask_B1S: Array) -> Array:
        """Queries from x, attention to the source of each slot's row -> (R, T, D)."""
        return self._out(look(self._heads(self.query(x_RTD)), (key_BNHS, value_BNSH, mask_B1S)))

    def read(self, x_RTD: Array, cache: Layer, view: View) -> tuple[Array, Layer]:
        """Write the keys and values of T more tokens a slot, look at all that each sees -> (R, T, D), the new cache."""
        query_RTNH, key_RTNH, value_RTNH = self.project(x_RTD)
        cache = write(cache, key_RTNH, value_RTNH, view)
        return self._out(look(query_RTNH, *seen(cache, view))), cache

    def _out(self, mixed_BTNH: Array) -> Array:
        return self.out(mixed_BTNH.reshape(*mixed_BTNH.shape[:2], self.width))

    def _heads(self, x_BTD: Array) -> Array:
        return x_BTD.reshape(*x_BTD.shape[:2], self.heads, -1)

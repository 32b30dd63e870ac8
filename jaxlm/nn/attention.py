"""Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2), with and without a cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.dropout import keep_mask
from jaxlm.nn.linear import Linear
from jaxlm.types import Array


@struct.dataclass
class Cache:
    """Keys and values of the positions read so far; slot c holds position c."""

    key_BCNH: Array
    value_BCNH: Array


def empty_cache(batch: int, capacity: int, heads: int, head_width: int, dtype: str) -> Cache:
    """A cache of `capacity` zeroed slots for each of `batch` rows."""
    zeros = jnp.zeros((batch, capacity, heads, head_width), jnp.dtype(dtype))
    return Cache(zeros, zeros)


def write(cache: Cache, key_BTNH: Array, value_BTNH: Array, slot_BT: Array) -> Cache:
    """Put T new keys and values into their slots; a slot >= capacity (an invalid token's) is dropped."""
    row_BT = jnp.broadcast_to(jnp.arange(slot_BT.shape[0])[:, None], slot_BT.shape)
    return Cache(
        cache.key_BCNH.at[row_BT, slot_BT].set(key_BTNH.astype(cache.key_BCNH.dtype), mode="drop"),
        cache.value_BCNH.at[row_BT, slot_BT].set(value_BTNH.astype(cache.value_BCNH.dtype), mode="drop"),
    )


def attend(query_BTNH: Array, key_BSNH: Array, value_BSNH: Array, mask_BTS: Array, drop_key=None, drop=0.0) -> Array:
    """softmax(Q K^T / sqrt(H)) V over the allowed keys -> (B, T, N, H).

    `mask_BTS` is True where query t may see key s (T may be 1 in the mask, for all queries alike). Scores and softmax
    are float32; a query that may see nothing gives zeros, so padding leaves no trace and no NaN.
    """
    scale = query_BTNH.shape[-1] ** -0.5
    score_BNTS = jnp.einsum("btnh,bsnh->bnts", query_BTNH * jnp.asarray(scale, query_BTNH.dtype), key_BSNH)
    score_BNTS = jnp.where(mask_BTS[:, None], score_BNTS.astype(jnp.float32), -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.maximum(score_BNTS.max(-1, keepdims=True), jnp.finfo(jnp.float32).min))
    weight_BNTS = jnp.exp(score_BNTS - highest)
    weight_BNTS = weight_BNTS / jnp.maximum(weight_BNTS.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    if drop_key is not None and drop > 0.0:
        weight_BNTS = jnp.where(keep_mask(drop_key, drop, weight_BNTS.shape), weight_BNTS / (1.0 - drop), 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weight_BNTS.astype(value_BSNH.dtype), value_BSNH)


class Attention(nn.Module):
    """Projections around `attend`: q, k, v of `heads` heads of width / heads each, and the output map."""

    width: int
    heads: int
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self) -> None:
        self.query, self.key, self.value, self.out = (Linear(self.width, dtype=self.dtype) for _ in range(4))

    def keys_values(self, x_BSD: Array) -> tuple[Array, Array]:
        """The keys and the values of x, each (B, S, N, H)."""
        return self._heads(self.key(x_BSD)), self._heads(self.value(x_BSD))

    def __call__(self, x_BTD: Array, key_BSNH: Array, value_BSNH: Array, mask_BTS: Array) -> Array:
        """Queries from x, attention to the given keys and values -> (B, T, D)."""
        drop_key = self.make_rng("dropout") if self.dropout > 0.0 and self.has_rng("dropout") else None
        mixed_BTNH = attend(self._heads(self.query(x_BTD)), key_BSNH, value_BSNH, mask_BTS, drop_key, self.dropout)
        return self.out(mixed_BTNH.reshape(x_BTD.shape))

    def _heads(self, x_BTD: Array) -> Array:
        return x_BTD.reshape(*x_BTD.shape[:2], self.heads, -1)

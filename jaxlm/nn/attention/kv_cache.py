"""The KV cache: keys and values of the tokens that a decoder has read, written once and never moved.

A search has K beams per row, which the model reads as R = B * K rows. The beams of a row share what they have in
common: the prompt (the prefix of the cache) and all `BeamInvariant` parts of a state (the encoded source). Beams
that are never reordered, such as samples, are then rows of their own, K = 1. Those of a beam search stand side by
side, C positions with K entries each, and

    writer_BKC      the beam that wrote what beam k of row b sees at position c; -1 where it sees nothing

says which entries belong to a beam. Reordering beams permutes `writer_BKC` only: all queries of a row attend to all
C * K entries under the mask `writer == beam`, which reads as many bytes as gathered caches would, and copies none.

A node of a state may define `expand_beams`, `reorder` and `enlarge` for itself; every other leaf has one row per
beam (`jaxlm.decode.prefill`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct

from jaxlm.types import Array


@struct.dataclass
class BeamInvariant:
    """A part of a state that the beams of a row share and that no token changes: one per row, always."""

    value: Any

    def expand_beams(self, *_: Any) -> "BeamInvariant":
        return self

    reorder = enlarge = expand_beams


class KeysValues(NamedTuple):
    """Keys and values, the mask of the queries Q = K * T (or 1) of a row, and a bias of the scores (1 or B rows)."""

    key_BGHS: Array
    value_BGSH: Array
    mask_BQS: Array
    bias_BNQS: Array | None = None


@struct.dataclass
class LayerCache:
    """The keys and values of one layer, G heads (fewer than query heads with grouped-query attention).

    Keys have H before C: the product with the queries then needs no transpose of the cache at each step.
    """

    key_BGHCK: Array
    value_BGCKH: Array
    prefix_key_BGHP: Array | None = None
    prefix_value_BGPH: Array | None = None


@struct.dataclass
class CacheView:
    """The positions of T new tokens, the masks of their Q = K * T queries per row, and biases of cache and prefix."""

    position_BT: Array
    mask_BQC: Array
    prefix_mask_BQP: Array | None
    biases: tuple[Array, ...] = ()


@struct.dataclass
class KVCache:
    """The cache of all layers. length_B: positions of each row that are in use."""

    length_B: Array
    writer_BKC: Array
    layers: tuple[LayerCache, ...]
    prefix_valid_BP: Array | None = None

    @classmethod
    def empty(cls, rows: int, capacity: int, depth: int, heads: int, head_dim: int, dtype: str) -> "KVCache":
        """Return a cache with room for `capacity` tokens in each of `rows` rows, one beam each."""
        layers = tuple(_empty_layer((rows, heads, head_dim), capacity, 1, jnp.dtype(dtype)) for _ in range(depth))
        return cls(jnp.zeros(rows, jnp.int32), jnp.full((rows, 1, capacity), -1, jnp.int32), layers)

    def advance(self, valid_RT: Array, window: int | None = None) -> tuple["KVCache", CacheView]:
        """Allocate positions for T more tokens per beam; a position is skipped if the token is invalid in all beams.

        With a window a token attends to the last `window` tokens, itself included.
        """
        rows, beams, capacity = self.writer_BKC.shape
        valid_BKT = valid_RT.reshape(rows, beams, -1)
        any_BT = valid_BKT.any(1)
        position_BT = self.length_B[:, None] + jnp.cumsum(any_BT, axis=1, dtype=jnp.int32) - 1
        position_BT = jnp.where(any_BT, position_BT, capacity)  # position C does not exist: writes to it are dropped
        beam_1K1 = jnp.arange(beams, dtype=jnp.int32)[None, :, None]
        new_writer_BTK = jnp.swapaxes(jnp.where(valid_BKT, beam_1K1, -1), 1, 2)
        row_B1 = jnp.arange(rows)[:, None]
        writer_BKC = self.writer_BKC.at[row_B1, :, position_BT].set(new_writer_BTK, mode="drop")
        # Beam k, query t sees entry (c, j) if beam j wrote it for k, and if c is not after t.
        is_own_BKCK = writer_BKC[..., None] == jnp.arange(beams)[None, None, None]
        not_after_BTC = jnp.arange(capacity)[None, None] <= position_BT[..., None]
        sees_BKTCK = is_own_BKCK[:, :, None] & not_after_BTC[:, None, :, :, None]
        mask_BQC = sees_BKTCK.reshape(rows, -1, capacity * beams)  # Q = K * T queries, C * K entries
        prefix_mask_BQP = None if self.prefix_valid_BP is None else self.prefix_valid_BP[:, None]
        length_B = self.length_B + any_BT.sum(1, dtype=jnp.int32)
        cache = replace(self, length_B=length_B, writer_BKC=writer_BKC)
        if window is not None:
            distance_BQC, distance_BQP = cache.distances(valid_RT)
            mask_BQC &= distance_BQC < window
            prefix_mask_BQP = None if distance_BQP is None else prefix_mask_BQP & (distance_BQP < window)
        return cache, CacheView(position_BT, mask_BQC, prefix_mask_BQP=prefix_mask_BQP)

    def distances(self, valid_RT: Array) -> tuple[Array, Array | None]:
        """Return the distance in tokens of each of the T newest ones to what its beam sees, after `advance`.

        (B, Q, C * K) for the cache and (B, Q, P) for the prefix, if there is one; undefined at masked entries.
        """
        rows, beams, capacity = self.writer_BKC.shape
        new_BKT = jnp.cumsum(valid_RT.reshape(rows, beams, -1), axis=2, dtype=jnp.int32)
        # Tokens are counted from 1 in each beam; the T newest ones are the last of them.
        key_count_BKC = jnp.cumsum(self.writer_BKC >= 0, axis=2, dtype=jnp.int32)
        query_count_BKT = key_count_BKC[..., -1:] - new_BKT[..., -1:] + new_BKT
        distance_BQC = (query_count_BKT[..., None] - key_count_BKC[:, :, None]).reshape(rows, -1, capacity)
        distance_BQC = jnp.repeat(distance_BQC, beams, axis=2)  # all K entries of a position
        if self.prefix_valid_BP is None:
            return distance_BQC, None
        after_BP = jnp.cumsum(self.prefix_valid_BP[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1] - 1
        return distance_BQC, query_count_BKT.reshape(after_BP.shape[0], -1, 1) + after_BP[:, None]

    def expand_beams(self, beams: int, prefix_length: int, capacity: int, share_cache: bool) -> "KVCache":
        """Return a cache of `beams` beams per row: the first `prefix_length` positions become the prefix.

        There is room for `capacity` more tokens. Without `share_cache`, beams are rows that share the prefix only.
        """
        rows, beams = (self.length_B.shape[0], beams) if share_cache else (self.length_B.shape[0] * beams, 1)
        layers = tuple(_expand_layer(layer, rows, beams, prefix_length, capacity) for layer in self.layers)
        valid_BP = self.writer_BKC[:, 0, :prefix_length] >= 0 if prefix_length else None
        writer_BKC = jnp.full((rows, beams, capacity), -1, jnp.int32)
        return KVCache(jnp.zeros(rows, jnp.int32), writer_BKC, layers, prefix_valid_BP=valid_BP)

    def enlarge(self, capacity: int) -> "KVCache":
        """Return the cache with room for `capacity` tokens in all, the prefix not counted."""
        more = capacity - self.writer_BKC.shape[2]

        def pad(leaf: Array, axis: int, value: int = 0) -> Array:
            return jnp.pad(leaf, [(0, more * (i == axis)) for i in range(leaf.ndim)], constant_values=value)

        layers = self._map_layers(lambda key_BGHCK: pad(key_BGHCK, 3), lambda value_BGCKH: pad(value_BGCKH, 2))
        return replace(self, writer_BKC=pad(self.writer_BKC, 2, -1), layers=layers)

    def reorder(self, parent_BK: Array) -> "KVCache":
        """Return the cache in which beam k sees what beam parent_BK[b, k] saw; beams that are rows are gathered."""
        rows, beams = parent_BK.shape
        if self.length_B.shape[0] == rows:
            writer_BKC = jnp.take_along_axis(self.writer_BKC, parent_BK[:, :, None], axis=1, mode="clip")
            return replace(self, writer_BKC=writer_BKC)
        row_R = (jnp.arange(rows)[:, None] * beams + parent_BK).reshape(-1)

        def take(leaf: Array) -> Array:
            return jnp.take(leaf, row_R, axis=0, mode="clip")

        layers = self._map_layers(take, take)
        return replace(self, length_B=take(self.length_B), writer_BKC=take(self.writer_BKC), layers=layers)

    def _map_layers(self, change_key: Callable, change_value: Callable) -> tuple[LayerCache, ...]:
        return tuple(
            replace(layer, key_BGHCK=change_key(layer.key_BGHCK), value_BGCKH=change_value(layer.value_BGCKH))
            for layer in self.layers
        )


def _empty_layer(shape_BGH: tuple[int, ...], capacity: int, beams: int, dtype: Any) -> LayerCache:
    rows, heads, head_dim = shape_BGH
    key_BGHCK = jnp.zeros((rows, heads, head_dim, capacity, beams), dtype)
    return LayerCache(key_BGHCK, jnp.zeros((rows, heads, capacity, beams, head_dim), dtype))


def _expand_layer(layer: LayerCache, rows: int, beams: int, prefix_length: int, capacity: int) -> LayerCache:
    empty = _empty_layer((rows, *layer.key_BGHCK.shape[1:3]), capacity, beams, layer.key_BGHCK.dtype)
    if not prefix_length:
        return empty
    key_BGHP, value_BGPH = layer.key_BGHCK[:, :, :, :prefix_length, 0], layer.value_BGCKH[:, :, :prefix_length, 0]
    return replace(empty, prefix_key_BGHP=key_BGHP, prefix_value_BGPH=value_BGPH)


def write_kv(layer: LayerCache, key_RTGH: Array, value_RTGH: Array, view: CacheView) -> LayerCache:
    """Write T new keys and values per beam to the positions of `view`; a position >= C is dropped."""
    rows, tokens = view.position_BT.shape
    row_B1 = jnp.arange(rows)[:, None]
    key_BKTGH, value_BKTGH = (
        new_RTGH.reshape(rows, -1, tokens, *new_RTGH.shape[2:]).astype(layer.key_BGHCK.dtype)
        for new_RTGH in (key_RTGH, value_RTGH)
    )
    # Indexing by (row, position) moves these two axes to the front, so the new entries are (B, T, rest of the cache).
    key_BTGHK = jnp.transpose(key_BKTGH, (0, 2, 3, 4, 1))
    value_BTGKH = jnp.transpose(value_BKTGH, (0, 2, 3, 1, 4))
    key_BGHCK = layer.key_BGHCK.at[row_B1, :, :, view.position_BT].set(key_BTGHK, mode="drop")
    value_BGCKH = layer.value_BGCKH.at[row_B1, :, view.position_BT].set(value_BTGKH, mode="drop")
    return replace(layer, key_BGHCK=key_BGHCK, value_BGCKH=value_BGCKH)


def readable_parts(layer: LayerCache, view: CacheView) -> list[KeysValues]:
    """Return what the queries of a view read: the cache, S = C * K, and the prefix if there is one."""
    rows, heads, width = layer.key_BGHCK.shape[:3]
    key_BGHS = layer.key_BGHCK.reshape(rows, heads, width, -1)
    value_BGSH = layer.value_BGCKH.reshape(rows, heads, -1, width)
    biases = view.biases or (None, None)
    parts = [KeysValues(key_BGHS, value_BGSH, view.mask_BQC, biases[0])]
    if view.prefix_mask_BQP is not None:
        parts.append(KeysValues(layer.prefix_key_BGHP, layer.prefix_value_BGPH, view.prefix_mask_BQP, biases[1]))
    return parts


def merge_beams(x_RT: Array, rows: int) -> Array:
    """(B * K, T, ...) -> (B, Q = K * T, ...)."""
    return x_RT.reshape(rows, -1, *x_RT.shape[2:])

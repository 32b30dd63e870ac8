"""What a decoder keeps of the tokens it has read: keys and values, written once and never moved.

A search has K slots a row, which the model sees as B * K rows. Everything that the slots of a row have in common is
kept once a row: the prompt's part of the cache (the prefix) and whatever is wrapped in `BeamInvariant` (the
source). Slots that do not take each other's places, such as samples, then have rows of their own. Those of a
beam search lie side by side, C positions of K entries, and

    writer_BKC      the slot that wrote what slot k of row b sees at position c; -1 where it sees nothing

says which entries are a slot's own. To reorder slots is to permute `writer_BKC`: all queries of a row look at all
C * K entries under the mask `writer == slot`, which reads the bytes that gathered caches would read, and copies none.

A node of a state may define `expand_beams`, `reorder` and `enlarge` for itself; every other leaf has one row a slot
(`jaxlm.decode.prefill`).
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxlm.types import Array


@struct.dataclass
class BeamInvariant:
    """A part of a state that all slots of a row have in common and that no token changes."""

    value: Any

    def expand_beams(self, slots: int, prefix_length: int, capacity: int, share_cache: bool) -> "BeamInvariant":
        """The same: it stays one a row."""
        return self

    def reorder(self, parent_BK: Array) -> "BeamInvariant":
        """The same."""
        return self

    def enlarge(self, capacity: int) -> "BeamInvariant":
        """The same."""
        return self


@struct.dataclass
class LayerCache:
    """One layer's keys and values; G heads of keys (as many as of queries, or fewer: grouped queries).

    Keys have their width before their positions: a product with the queries then need not turn the cache at each step.
    """

    key_BGHCK: Array
    value_BGCKH: Array
    prefix_key_BGHP: Array | None = None
    prefix_value_BGPH: Array | None = None


@struct.dataclass
class CacheView:
    """Where T new tokens are written, and what their queries (Q = K * T a row) see of the cache and of the prefix.

    `biases` are added to the scores of the cache and of the prefix, where a model has such: see
    `jaxlm.nn.attention.cached`.
    """

    position_BT: Array
    mask_BQC: Array
    prefix_mask_BQP: Array | None
    biases: tuple[Array, ...] = ()


@struct.dataclass
class KVCache:
    """The cache of all layers. length_B: the positions of each row that are taken."""

    length_B: Array
    writer_BKC: Array
    layers: tuple[LayerCache, ...]
    prefix_valid_BP: Array | None = None

    @classmethod
    def empty(cls, rows: int, capacity: int, depth: int, heads: int, head_dim: int, dtype: str) -> "KVCache":
        """Room for `capacity` tokens in each of `rows` rows, one slot each."""
        layers = tuple(_empty_layer(rows, heads, head_dim, capacity, 1, jnp.dtype(dtype)) for _ in range(depth))
        return cls(jnp.zeros(rows, jnp.int32), jnp.full((rows, 1, capacity), -1, jnp.int32), layers)

    def advance(self, valid_RT: Array, window: int | None = None) -> tuple["KVCache", CacheView]:
        """Take positions for T more tokens a slot (R = B * K); invalid ones get none where no slot has a valid one.

        With a window a token sees itself and the window - 1 before it.
        """
        rows, slots, capacity = self.writer_BKC.shape
        valid_BKT = valid_RT.reshape(rows, slots, -1)
        any_BT = valid_BKT.any(1)
        position_BT = self.length_B[:, None] + jnp.cumsum(any_BT, axis=1, dtype=jnp.int32) - 1
        position_BT = jnp.where(any_BT, position_BT, capacity)
        slot_1K1 = jnp.arange(slots, dtype=jnp.int32)[None, :, None]
        writer_BTK = jnp.swapaxes(jnp.where(valid_BKT, slot_1K1, -1), 1, 2)
        row_B1 = jnp.arange(rows)[:, None]
        ancestor_BKC = self.writer_BKC.at[row_B1, :, position_BT].set(writer_BTK, mode="drop")
        own_BKCK = ancestor_BKC[..., None] == jnp.arange(slots)[None, None, None]
        past_BTC = jnp.arange(capacity)[None, None] <= position_BT[..., None]
        seen_BKTCK = own_BKCK[:, :, None] & past_BTC[:, None, :, :, None]
        mask_BQC = seen_BKTCK.reshape(rows, -1, capacity * slots)
        prefix_mask_BQP = None if self.prefix_valid_BP is None else self.prefix_valid_BP[:, None]
        taken_B = self.length_B + any_BT.sum(1, dtype=jnp.int32)
        past = replace(self, length_B=taken_B, writer_BKC=ancestor_BKC)
        if window is not None:
            back_BQC, back_BQP = past.distances(valid_RT)
            mask_BQC &= back_BQC < window
            prefix_mask_BQP = None if back_BQP is None else prefix_mask_BQP & (back_BQP < window)
        return past, CacheView(position_BT, mask_BQC, prefix_mask_BQP)

    def distances(self, valid_RT: Array) -> tuple[Array, Array | None]:
        """How many tokens before each of the T newest ones, as its slot counts, lies what it sees (after `advance`).

        (B, Q, C * K) for the cache and (B, Q, P) for the prefix, if there is one; what is not seen counts as anything.
        """
        rows, slots, capacity = self.writer_BKC.shape
        valid_BKT = valid_RT.reshape(rows, slots, -1)
        place_BKC = jnp.cumsum(self.writer_BKC >= 0, axis=2, dtype=jnp.int32)
        new_BKT = jnp.cumsum(valid_BKT, axis=2, dtype=jnp.int32)
        place_BKT = place_BKC[..., -1:] - new_BKT[..., -1:] + new_BKT
        back_BQC = (place_BKT[..., None] - place_BKC[:, :, None]).reshape(rows, -1, capacity)
        back_BQC = jnp.repeat(back_BQC, slots, axis=2)
        if self.prefix_valid_BP is None:
            return back_BQC, None
        after_BP = jnp.cumsum(self.prefix_valid_BP[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1] - 1
        return back_BQC, place_BKT.reshape(after_BP.shape[0], -1, 1) + after_BP[:, None]

    def expand_beams(self, slots: int, prefix_length: int, capacity: int, share_cache: bool) -> "KVCache":
        """From one slot a row to `slots`: the first `prefix` positions become the prefix, with room for
        `capacity` more.

        Not side by side, the slots are rows of their own which share nothing but the prefix.
        """
        rows, slots = (self.length_B.shape[0], slots) if share_cache else (self.length_B.shape[0] * slots, 1)
        layers = tuple(_expand_layer(layer, rows, slots, prefix_length, capacity) for layer in self.layers)
        valid_BP = self.writer_BKC[:, 0, :prefix_length] >= 0 if prefix_length else None
        ancestor_BKC = jnp.full((rows, slots, capacity), -1, jnp.int32)
        return KVCache(jnp.zeros(rows, jnp.int32), ancestor_BKC, layers, valid_BP)

    def enlarge(self, capacity: int) -> "KVCache":
        """The same with room for `room` tokens in all, the prefix not counted."""
        more = capacity - self.writer_BKC.shape[2]

        def padded(leaf: Array, axis: int, value: int = 0) -> Array:
            return jnp.pad(leaf, [(0, more if at == axis else 0) for at in range(leaf.ndim)], constant_values=value)

        layers = tuple(
            replace(layer, key_BGHCK=padded(layer.key_BGHCK, 3), value_BGCKH=padded(layer.value_BGCKH, 2))
            for layer in self.layers
        )
        return replace(self, writer_BKC=padded(self.writer_BKC, 2, -1), layers=layers)

    def reorder(self, parent_BK: Array) -> "KVCache":
        """Slot k sees what slot parent_BK[b, k] saw. Slots that are rows of their own are gathered."""
        rows, slots = parent_BK.shape
        if self.length_B.shape[0] == rows:
            taken_BKC = jnp.take_along_axis(self.writer_BKC, parent_BK[:, :, None], axis=1, mode="clip")
            return replace(self, writer_BKC=taken_BKC)
        row_R = (jnp.arange(rows)[:, None] * slots + parent_BK).reshape(-1)

        def take(leaf: Array) -> Array:
            return jnp.take(leaf, row_R, axis=0, mode="clip")

        layers = tuple(
            replace(layer, key_BGHCK=take(layer.key_BGHCK), value_BGCKH=take(layer.value_BGCKH))
            for layer in self.layers
        )
        return replace(self, length_B=take(self.length_B), writer_BKC=take(self.writer_BKC), layers=layers)


def _empty_layer(rows: int, heads: int, head_dim: int, capacity: int, slots: int, dtype: Any) -> LayerCache:
    keys, values = (rows, heads, head_dim, capacity, slots), (rows, heads, capacity, slots, head_dim)
    return LayerCache(jnp.zeros(keys, dtype), jnp.zeros(values, dtype))


def _expand_layer(layer: LayerCache, rows: int, slots: int, prefix_length: int, capacity: int) -> LayerCache:
    heads, width = layer.key_BGHCK.shape[1:3]
    empty = _empty_layer(rows, heads, width, capacity, slots, layer.key_BGHCK.dtype)
    if not prefix_length:
        return empty
    key_BGHP, value_BGPH = layer.key_BGHCK[:, :, :, :prefix_length, 0], layer.value_BGCKH[:, :, :prefix_length, 0]
    return replace(empty, prefix_key_BGHP=key_BGHP, prefix_value_BGPH=value_BGPH)


def write_kv(layer: LayerCache, key_RTGH: Array, value_RTGH: Array, view: CacheView) -> LayerCache:
    """Put T new keys and values a slot into the positions of `view`; a position >= capacity is dropped."""
    rows, tokens = view.position_BT.shape
    row_B1 = jnp.arange(rows)[:, None]

    def by_slot(new_RTGH: Array, *order: int) -> Array:
        new_BKTGH = new_RTGH.reshape(rows, -1, tokens, *new_RTGH.shape[2:])
        return jnp.transpose(new_BKTGH, order).astype(layer.key_BGHCK.dtype)

    new_BTGHK, new_BTGKH = by_slot(key_RTGH, 0, 2, 3, 4, 1), by_slot(value_RTGH, 0, 2, 3, 1, 4)
    key_BGHCK = layer.key_BGHCK.at[row_B1, :, :, view.position_BT].set(new_BTGHK, mode="drop")
    value_BGCKH = layer.value_BGCKH.at[row_B1, :, view.position_BT].set(new_BTGKH, mode="drop")
    return replace(layer, key_BGHCK=key_BGHCK, value_BGCKH=value_BGCKH)


def readable_parts(layer: LayerCache, view: CacheView) -> list[tuple[Array, Array, Array]]:
    """Keys (B, G, H, S), values (B, G, S, H), masks (B, Q, S) of the cache and, where there is one, of the prefix."""
    rows, heads, width = layer.key_BGHCK.shape[:3]
    key_BGHS = layer.key_BGHCK.reshape(rows, heads, width, -1)
    parts = [(key_BGHS, layer.value_BGCKH.reshape(rows, heads, -1, width), view.mask_BQC)]
    if view.prefix_mask_BQP is not None:
        parts.append((layer.prefix_key_BGHP, layer.prefix_value_BGPH, view.prefix_mask_BQP))
    return parts


def merge_beams(x_RT: Array, rows: int) -> Array:
    """(B * K, T, ...) -> (B, K * T, ...): the slots of a row side by side."""
    return x_RT.reshape(rows, -1, *x_RT.shape[2:])

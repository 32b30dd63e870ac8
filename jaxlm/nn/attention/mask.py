"""Attention masks and token positions of rows with padding and of packed rows, and the order of tokens before padding.

Padding may stand anywhere in a row of a `Batch`, but cuDNN's attention needs no mask only if it comes last: causality
and lengths then say everything. On a GPU a model therefore sorts its ids on the way in and its features on the way out.
That costs one gather of the features, once for all layers; a mask (B, T, S) would be read in each of them.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.sharding import num_shards, platform_of
from jaxlm.types import Array

PAD_SEGMENT = -1
"""The segment of a key that is padding."""

KERNEL_PLATFORMS = ("tpu", "gpu")
"""Platforms that have attention kernels, which take a `MaskRule` instead of a mask."""


@struct.dataclass
class TokenOrder:
    """A permutation of the positions of each row; without indices the identity.

    Attributes:
      index_BT: the given position of each sorted position.
      inverse_BT: the sorted position of each given position.
    """

    index_BT: Array | None = None
    inverse_BT: Array | None = None

    @property
    def tokens_first(self) -> bool:
        """True if sorted rows have their padding at the end."""
        return self.index_BT is not None

    def sort(self, x_BT: Array) -> Array:
        """Return ids or masks (B, T) in this order."""
        return x_BT if self.index_BT is None else jnp.take_along_axis(jnp.asarray(x_BT), self.index_BT, axis=1)

    def sort_features(self, x_BTD: Array) -> Array:
        """Return features (B, T, D) in this order."""
        return x_BTD if self.index_BT is None else _permute(x_BTD, self.index_BT, self.inverse_BT)

    def restore(self, x_BTD: Array) -> Array:
        """Return the features of sorted positions in the given order."""
        return x_BTD if self.index_BT is None else _permute(x_BTD, self.inverse_BT, self.index_BT)


UNSORTED = TokenOrder()


def token_order(valid_BT: Array, segment_BT: Array | None) -> TokenOrder:
    """Return the order of tokens before padding for a GPU; for other platforms and for packed rows the identity."""
    if platform_of(valid_BT) != "gpu" or segment_BT is not None or num_shards(valid_BT, "sequence") > 1:
        return UNSORTED
    return tokens_before_padding(valid_BT)


def tokens_before_padding(valid_BT: Array) -> TokenOrder:
    """Return the order in which the tokens of each row come first, each part in the given order."""
    valid_BT = jnp.asarray(valid_BT)
    rank_BT, padding_rank_BT = (jnp.cumsum(x_BT, axis=1, dtype=jnp.int32) for x_BT in (valid_BT, ~valid_BT))
    inverse_BT = jnp.where(valid_BT, rank_BT, rank_BT[:, -1:] + padding_rank_BT) - 1
    row_BT, position_BT = (jax.lax.broadcasted_iota(jnp.int32, valid_BT.shape, axis) for axis in (0, 1))
    index_BT = jnp.zeros_like(position_BT).at[row_BT, inverse_BT].set(position_BT, unique_indices=True)
    return TokenOrder(index_BT, inverse_BT)


@jax.custom_vjp
def _permute(x_BTD: Array, index_BT: Array, inverse_BT: Array) -> Array:
    """x[b, index[b, t]]. The gradient is a gather too: that of indexing would add up rows."""
    return jnp.take_along_axis(x_BTD, index_BT[:, :, None], axis=1)


_permute.defvjp(
    lambda x_BTD, index_BT, inverse_BT: (_permute(x_BTD, index_BT, inverse_BT), (index_BT, inverse_BT)),
    lambda indices, d_BTD: (_permute(d_BTD, *reversed(indices)), None, None),
)


@struct.dataclass
class MaskRule:
    """An attention mask as a rule instead of an array (B, T, S).

    A query attends to the keys of its own segment; with `causal` to none after it, with `window` to the last
    `window` positions only. A window counts positions, not valid tokens: the same if valid tokens are adjacent.

    Attributes:
      query_BT, key_BS: segments; PAD_SEGMENT on keys that are padding.
      to_itself: self-attention, where each valid query is a key too; the output at padding is then undefined.
      tokens_first: no row has segments or padding before a token: causality and lengths say the same as the segments.
    """

    query_BT: Array
    key_BS: Array
    causal: bool = struct.field(pytree_node=False, default=False)
    window: int | None = struct.field(pytree_node=False, default=None)
    to_itself: bool = struct.field(pytree_node=False, default=False)
    tokens_first: bool = struct.field(pytree_node=False, default=False)

    def mask(self) -> Array:
        """Return the mask (B, T, S)."""
        mask_BTS = self.query_BT[:, :, None] == self.key_BS[:, None]
        distance_TS = jnp.arange(mask_BTS.shape[1])[:, None] - jnp.arange(mask_BTS.shape[2])[None]
        if self.causal:
            mask_BTS &= (distance_TS >= 0)[None]
        if self.window is not None:
            mask_BTS &= (distance_TS < self.window)[None]
        return mask_BTS

    def zero_unseeing(self, mixed_BTNH: Array) -> Array:
        """Return a kernel's output with zeros for the queries that may attend to nothing."""
        sees_BT = (self.key_BS > 0).any(1, keepdims=True) if self.tokens_first else self.mask().any(-1)
        return jnp.where(sees_BT[:, :, None, None], mixed_BTNH, 0)

    def __or__(self, mask_BTS: Array) -> Array:
        return self.mask() | mask_BTS


def attention_mask(
    valid_BS: Array, segment_BS: Array | None, order: TokenOrder = UNSORTED,
    target: tuple[Array, Array | None] | None = None,
) -> Array | MaskRule:  # fmt: skip
    """Return the mask (B, S or 1, S) of the valid keys of a query's segment; on an accelerator, the rule.

    target: the valid positions and the segments of the queries; None: those of the keys, self-attention.
    """
    valid_BT, segment_BT = target or (valid_BS, segment_BS)
    if platform_of(valid_BT) in KERNEL_PLATFORMS:
        return _mask_rule((valid_BT, segment_BT), (valid_BS, segment_BS), order, to_itself=target is None)
    return valid_BS[:, None] & segment_mask(segment_BT, segment_BS, valid_BT)


def causal_attention_mask(
    valid_BT: Array, segment_BT: Array | None, window: int | None = None, order: TokenOrder = UNSORTED
) -> Array | MaskRule:
    """Return `causal_mask`; on an accelerator, the rule. `order`: in which the positions have been sorted."""
    if platform_of(valid_BT) in KERNEL_PLATFORMS:
        target = valid_BT, segment_BT
        return _mask_rule(target, target, order, causal=True, window=window, to_itself=True)
    return causal_mask(valid_BT, segment_BT, window)


def _mask_rule(
    target: tuple[Array, Array | None], source: tuple[Array, Array | None], order: TokenOrder, **fields: Any
) -> MaskRule:
    (valid_BT, segment_BT), (valid_BS, segment_BS) = target, source
    if segment_BT is None or segment_BS is None:
        segment_BT, segment_BS = (jnp.ones(valid.shape, jnp.int32) for valid in (valid_BT, valid_BS))
        if order.tokens_first:  # queries have a length too: padding is then not computed
            segment_BT = jnp.where(valid_BT, segment_BT, 0)
    key_BS = jnp.where(valid_BS, segment_BS, PAD_SEGMENT)
    return MaskRule(segment_BT, key_BS, tokens_first=order.tokens_first, **fields)


def token_positions(valid_BT: Array, segment_BT: Array | None) -> Array:
    """Return the positions of valid tokens, from 0 in each row or segment; an invalid token repeats the last one."""
    position_BT = jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)
    if segment_BT is None:
        return position_BT
    starts_BT = jnp.diff(segment_BT, axis=1, prepend=-1) != 0
    return position_BT - jax.lax.cummax(jnp.where(starts_BT, position_BT, 0), axis=1)


def segment_mask(segment_BT: Array | None, segment_BS: Array | None, valid_BT: Array) -> Array:
    """Return (B, T, S), True if both positions are of one segment; without segments True, (B, 1, 1)."""
    if segment_BT is None or segment_BS is None:
        return jnp.ones((valid_BT.shape[0], 1, 1), bool)
    return segment_BT[:, :, None] == segment_BS[:, None, :]


def causal_mask(valid_BT: Array, segment_BT: Array | None, window: int | None = None) -> Array:
    """Return (B, T, T), True if key s is valid, not after t, of its segment, and less than `window` tokens back."""
    length = valid_BT.shape[1]
    causal_TT = jnp.tril(jnp.ones((length, length), bool))
    mask_BTT = causal_TT[None] & valid_BT[:, None] & segment_mask(segment_BT, segment_BT, valid_BT)
    if window is None:
        return mask_BTT
    position_BT = jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32)
    return mask_BTT & (position_BT[:, :, None] - position_BT[:, None] < window)


def pad_to_multiple(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, multiple: int
) -> tuple[Array, Array, Array, MaskRule]:
    """Return a kernel's inputs with more padding: T and S are multiples of this number."""
    target, source = -query_BTNH.shape[1] % multiple, -key_BSGH.shape[1] % multiple

    def pad(x: Array, count: int, value: int = 0) -> Array:
        return jnp.pad(x, ((0, 0), (0, count)) + ((0, 0),) * (x.ndim - 2), constant_values=value) if count else x

    query_BT, key_BS = pad(mask_rule.query_BT, target), pad(mask_rule.key_BS, source, PAD_SEGMENT)
    mask_rule = replace(mask_rule, query_BT=query_BT, key_BS=key_BS)
    return pad(query_BTNH, target), pad(key_BSGH, source), pad(value_BSGH, source), mask_rule

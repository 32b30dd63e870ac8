"""Attention masks and token positions of rows with padding and of packed rows."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.sharding import platform_of
from jaxlm.types import Array

PAD_SEGMENT = -1
"""The segment of a key that is padding."""

KERNEL_PLATFORMS = ("tpu", "gpu")
"""Platforms that have attention kernels, which take a `MaskRule` instead of a mask."""


@struct.dataclass
class MaskRule:
    """An attention mask as a rule instead of an array (B, T, S).

    A query attends to the keys of its own segment; with `causal` to none after it, with `window` to the last
    `window` positions only. A window counts positions, not valid tokens: the same if valid tokens are adjacent.
    """

    query_BT: Array
    key_BS: Array
    causal: bool = struct.field(pytree_node=False, default=False)
    window: int | None = struct.field(pytree_node=False, default=None)

    def mask(self) -> Array:
        """Return the mask (B, T, S)."""
        mask_BTS = self.query_BT[:, :, None] == self.key_BS[:, None]
        distance_TS = jnp.arange(mask_BTS.shape[1])[:, None] - jnp.arange(mask_BTS.shape[2])[None]
        if self.causal:
            mask_BTS &= (distance_TS >= 0)[None]
        if self.window is not None:
            mask_BTS &= (distance_TS < self.window)[None]
        return mask_BTS

    def __or__(self, mask_BTS: Array) -> Array:
        return self.mask() | mask_BTS


def attention_mask(
    segment_BT: Array | None, segment_BS: Array | None, valid_BT: Array, valid_BS: Array
) -> Array | MaskRule:
    """Return the mask (B, T or 1, S) of the valid keys of a query's segment; on an accelerator, the rule."""
    if platform_of(valid_BT) in KERNEL_PLATFORMS:
        return MaskRule(*_segment_ids(segment_BT, segment_BS, valid_BT, valid_BS))
    return valid_BS[:, None] & segment_mask(segment_BT, segment_BS, valid_BT)


def causal_attention_mask(valid_BT: Array, segment_BT: Array | None, window: int | None = None) -> Array | MaskRule:
    """Return `causal_mask`; on an accelerator, the rule."""
    if platform_of(valid_BT) in KERNEL_PLATFORMS:
        return MaskRule(*_segment_ids(segment_BT, segment_BT, valid_BT, valid_BT), causal=True, window=window)
    return causal_mask(valid_BT, segment_BT, window)


def _segment_ids(
    segment_BT: Array | None, segment_BS: Array | None, valid_BT: Array, valid_BS: Array
) -> tuple[Array, Array]:
    if segment_BT is None or segment_BS is None:
        segment_BT, segment_BS = (jnp.ones(valid.shape, jnp.int32) for valid in (valid_BT, valid_BS))
    return segment_BT, jnp.where(valid_BS, segment_BS, PAD_SEGMENT)


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

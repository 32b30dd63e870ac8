"""Where a token stands and which others it may see, in rows with padding and in packed rows."""

import jax
import jax.numpy as jnp

from jaxlm.types import Array


def positions(valid_BT: Array, segment_BT: Array | None) -> Array:
    """Positions of the valid tokens, counted from 0 in each row or segment; an invalid token repeats the last one."""
    position_BT = jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)
    if segment_BT is None:
        return position_BT
    first_BT = jnp.diff(segment_BT, axis=1, prepend=-1) != 0
    return position_BT - jax.lax.cummax(jnp.where(first_BT, position_BT, 0), axis=1)


def same_segment(segment_BT: Array | None, segment_BS: Array | None, valid_BT: Array) -> Array:
    """(B, T, S) True where both positions belong to one segment; (B, 1, 1) True where nothing is packed."""
    if segment_BT is None or segment_BS is None:
        return jnp.ones((valid_BT.shape[0], 1, 1), bool)
    return segment_BT[:, :, None] == segment_BS[:, None, :]


def causal_mask(valid_BT: Array, segment_BT: Array | None, window: int | None = None) -> Array:
    """(B, T, T) True where query t may see key s: not after t, valid, of its segment, and less than `window` back."""
    length = valid_BT.shape[1]
    causal_TT = jnp.tril(jnp.ones((length, length), bool))
    mask_BTT = causal_TT[None] & valid_BT[:, None] & same_segment(segment_BT, segment_BT, valid_BT)
    if window is None:
        return mask_BTT
    position_BT = jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32)
    return mask_BTT & (position_BT[:, :, None] - position_BT[:, None] < window)

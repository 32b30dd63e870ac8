"""The last K words: the state of every model with a memory of fixed length."""

from dataclasses import replace

import jax.numpy as jnp
from flax import struct

from jaxlm.types import Array, ArrayOrNone

NO_TOKEN = -1
"""The id of a place before the first word."""


@struct.dataclass
class Window:
    """token_BK: the last K valid tokens of each row, the newest last. segment_BT: of the tokens to come, if packed."""

    token_BK: Array
    segment_BT: ArrayOrNone = None


def initial_window(rows: int, length: int, fill: int, segment_BT: ArrayOrNone = None) -> Window:
    """What there is before the first token: K times `fill`."""
    return Window(jnp.full((rows, length), fill, jnp.int32), segment_BT)


def slide_window(window: Window, tokens_BT: Array, valid_BT: Array, fill: int) -> tuple[Array, Window]:
    """The window after each token, context_BTK, and after the last one; all T at once.

    Invalid tokens are in no window. Where segments are packed, a window sees `fill` for what belongs to another one.
    """
    length = window.token_BK.shape[1]
    row_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    seen_BT = jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32)
    # all valid tokens side by side behind the old window; the others go to a place that does not exist
    slot_BT = jnp.where(valid_BT, length + seen_BT - 1, length + tokens_BT.shape[1])
    at_BTK = seen_BT[:, :, None] + jnp.arange(length)[None, None]

    def gather(old_BK: Array, new_BT: Array) -> tuple[Array, Array]:
        joined = jnp.concatenate([old_BK, jnp.zeros_like(new_BT, jnp.int32)], axis=1)
        joined = joined.at[row_B1, slot_BT].set(new_BT.astype(jnp.int32), mode="drop")
        last_BK = seen_BT[:, -1:] + jnp.arange(length)[None]
        return joined[row_B1[..., None], at_BTK], joined[row_B1, last_BK]

    context_BTK, last_BK = gather(window.token_BK, tokens_BT)
    if window.segment_BT is not None:
        segment_BTK, _ = gather(jnp.full_like(window.token_BK, NO_TOKEN), window.segment_BT)
        context_BTK = jnp.where(segment_BTK == window.segment_BT[..., None], context_BTK, fill)
    return context_BTK, replace(window, token_BK=last_BK)

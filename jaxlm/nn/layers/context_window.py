"""The last K words: the state of a model with a fixed-size context (n-gram, feed-forward)."""

from dataclasses import replace

import jax.numpy as jnp
from flax import struct

from jaxlm.types import Array, ArrayOrNone

NO_TOKEN = -1
"""The id of a position before the first word."""


@struct.dataclass
class Window:
    """The last K valid tokens of each row, the newest last, and the segments of a packed batch, else None."""

    token_BK: Array
    segment_BT: ArrayOrNone = None


def initial_window(rows: int, length: int, fill: int, segment_BT: ArrayOrNone = None) -> Window:
    """Return the window before the first token: K times `fill`."""
    return Window(jnp.full((rows, length), fill, jnp.int32), segment_BT)


def slide_window(window: Window, tokens_BT: Array, valid_BT: Array, fill: int) -> tuple[Array, Window]:
    """Return the window after each token, context_BTK, and after the last one, for all T tokens at once.

    Windows skip invalid tokens. In a packed row, tokens of other segments are replaced by `fill`.
    """
    length = window.token_BK.shape[1]
    row_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    count_BT = jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32)
    # Valid tokens are compacted behind the old window; invalid ones go to a position that does not exist.
    target_BT = jnp.where(valid_BT, length + count_BT - 1, length + tokens_BT.shape[1])
    source_BTK = count_BT[:, :, None] + jnp.arange(length)[None, None]

    def gather(old_BK: Array, new_BT: Array) -> tuple[Array, Array]:
        history = jnp.concatenate([old_BK, jnp.zeros_like(new_BT, jnp.int32)], axis=1)  # (B, K + T)
        history = history.at[row_B1, target_BT].set(new_BT.astype(jnp.int32), mode="drop")
        last_BK = count_BT[:, -1:] + jnp.arange(length)[None]
        return history[row_B1[..., None], source_BTK], history[row_B1, last_BK]

    context_BTK, last_BK = gather(window.token_BK, tokens_BT)
    if window.segment_BT is not None:
        segment_BTK, _ = gather(jnp.full_like(window.token_BK, NO_TOKEN), window.segment_BT)
        context_BTK = jnp.where(segment_BTK == window.segment_BT[..., None], context_BTK, fill)
    return context_BTK, replace(window, token_BK=last_BK)

"""The order of a row's positions in which its tokens come before its padding.

Padding may stand anywhere in a row of a `Batch`, but cuDNN's attention needs no mask only if it comes last: causality
and lengths then say everything. On a GPU a model therefore sorts its ids on the way in and its features on the way out.
That costs one gather of the features, once for all layers; a mask (B, T, S) would be read in each of them.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.sharding import num_shards, platform_of
from jaxlm.types import Array


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

"""Masks that are drawn once a call and hold for all its positions: what keeps a recurrent net regular.

As in `jaxlm.nn.dropout`, they are on if and only if a dropout key is passed.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.nn.dropout import keep_mask
from jaxlm.types import Array


class LockedDropout(nn.Module):
    """Dropout with one mask a row, the same at every position (variational: Gal and Ghahramani 2016, section 4)."""

    rate: float

    def __call__(self, x_BTD: Array) -> Array:
        """(B, T, D) -> (B, T, D)."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x_BTD
        keep_B1D = keep_mask(self.make_rng("dropout"), self.rate, (x_BTD.shape[0], 1, x_BTD.shape[2]))
        scale_B1D = jnp.where(keep_B1D, 1.0 / (1.0 - self.rate), 0.0).astype(x_BTD.dtype)
        return x_BTD * jnp.broadcast_to(scale_B1D, x_BTD.shape)


class TypeDropout(nn.Module):
    """Drops whole word types: each with probability `rate`, at all its places (Gal and Ghahramani 2016, section 4.2).

    The mask is over the vocabulary, the work over the tokens: a row of the table is scaled where it is looked up.
    """

    rate: float
    vocab: int

    def __call__(self, x_BTD: Array, tokens_BT: Array) -> Array:
        """Embeddings (B, T, D) of `tokens_BT` -> the same, those of dropped types zero."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x_BTD
        keep_V = keep_mask(self.make_rng("dropout"), self.rate, (self.vocab,))
        scale_BT = jnp.where(keep_V[tokens_BT], 1.0 / (1.0 - self.rate), 0.0).astype(x_BTD.dtype)
        return x_BTD * jnp.broadcast_to(scale_BT[..., None], x_BTD.shape)


class DropConnect(nn.Module):
    """Zeroes each weight of a matrix with probability `rate` and scales the rest (Wan et al. 2013; Merity et al. 2018).

    On the recurrent matrix of an LSTM it is the weight drop of the AWD-LSTM: it acts on h_{t-1} without a mask that
    changes from position to position.
    """

    rate: float

    def __call__(self, W: Array) -> Array:
        """Any shape in, the same shape out."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return W
        keep = keep_mask(self.make_rng("dropout"), self.rate, W.shape)
        return jnp.where(keep, W * (1.0 / (1.0 - self.rate)), 0.0)

"""Transformer layers: self-attention and a feed-forward layer, each in a residual sub-layer.

pre-norm:   x <- x + attention(norm(x)),  x <- x + FFN(norm(x))
post-norm:  x <- norm(x + attention(x)),  x <- norm(x + FFN(x))
"""

from typing import Any

import flax.linen as nn

from jaxlm.nn.attention.kv_cache import CacheView, LayerCache
from jaxlm.nn.attention.multi_head import Attention
from jaxlm.nn.layers.linear import FeedForward
from jaxlm.nn.layers.norm import Norm, Residual
from jaxlm.types import Array


class TransformerBlock(nn.Module):
    """The layer of an encoder and, with a causal mask, of a decoder. Rotation, bias: of `jaxlm.nn.layers.positions`."""

    attention: Attention
    ffn: FeedForward
    norm: Norm
    dropout: float
    dtype: str

    def setup(self) -> None:
        self.attention_residual = Residual(self.norm, self.dropout, dtype=self.dtype)
        self.ffn_residual = Residual(self.norm, self.dropout, dtype=self.dtype)

    def __call__(self, x_BTD: Array, mask_BTT: Array, rotation: Any = None, bias_BNTT: Array | None = None) -> Array:
        """Read all positions at once: (B, T, D) -> (B, T, D)."""
        x_BTD = self.attention_residual(x_BTD, lambda y: self.attention.self_attend(y, mask_BTT, rotation, bias_BNTT))
        return self.ffn_residual(x_BTD, self.ffn)

    def with_attention_weights(self, x_BTD: Array, mask_BTT: Array, rotation: Any = None) -> tuple[Array, Array]:
        """Like `__call__`, but also return the attention weights (B, N, T, T)."""

        def self_attention(y_BTD: Array) -> tuple[Array, Array]:
            inputs = y_BTD, mask_BTT, rotation
            return self.attention.self_attend(*inputs), self.attention.self_weights(*inputs)

        x_BTD, weight_BNTT = self.attention_residual.with_output(x_BTD, self_attention)
        return self.ffn_residual(x_BTD, self.ffn), weight_BNTT

    def step(self, x_RTD: Array, cache: LayerCache, view: CacheView, rotation: Any = None) -> tuple[Array, LayerCache]:
        """Read T more positions per beam and write them to the cache: (R, T, D) -> (R, T, D), the new cache."""
        x_RTD, cache = self.attention_residual.with_output(
            x_RTD, lambda y: self.attention.self_attend_cached(y, cache, view, rotation)
        )
        return self.ffn_residual(x_RTD, self.ffn), cache


class CrossAttentionBlock(TransformerBlock):
    """The layer of the decoder of an encoder-decoder: cross-attention to the source between the two sub-layers."""

    source_attention: Attention

    def setup(self) -> None:
        super().setup()
        self.source_residual = Residual(self.norm, self.dropout, dtype=self.dtype)

    def __call__(
        self, x_BTD: Array, mask_BTT: Array, memory_BSD: Array, source_mask_BTS: Array, bias_BNTT: Array | None = None
    ) -> Array:
        """Read the whole target at once: (B, T, D) -> (B, T, D)."""
        cross_kv = self.source_attention.project_kv(memory_BSD)
        x_BTD = self.attention_residual(x_BTD, lambda y: self.attention.self_attend(y, mask_BTT, None, bias_BNTT))
        x_BTD = self.source_residual(x_BTD, lambda y: self.source_attention(y, *cross_kv, source_mask_BTS))
        return self.ffn_residual(x_BTD, self.ffn)

    def cross_kv(self, memory_BSD: Array) -> tuple[Array, Array]:
        """Return the source's keys (B, G, H, S) and values (B, G, S, H)."""
        return self.source_attention.cross_kv(memory_BSD)

    def step(
        self, x_RTD: Array, cache: LayerCache, view: CacheView, return_weights: bool, *source: Array
    ) -> tuple[Array, LayerCache, Array | None]:
        """Like that of `TransformerBlock`, with keys, values and mask of a source; also return the cross-attention."""

        def cross_attention(y_RTD: Array) -> tuple[Array, Array | None]:
            weight_RTS = self.source_attention.cross_weights(y_RTD, *source) if return_weights else None
            return self.source_attention.cross_attend_cached(y_RTD, *source), weight_RTS

        x_RTD, cache = self.attention_residual.with_output(
            x_RTD, lambda y: self.attention.self_attend_cached(y, cache, view)
        )
        x_RTD, weight_RTS = self.source_residual.with_output(x_RTD, cross_attention)
        return self.ffn_residual(x_RTD, self.ffn), cache, weight_RTS

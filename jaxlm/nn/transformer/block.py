"""One layer of a Transformer: self-attention, then the feed-forward net, each in a residual sub-layer.

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
    """Self-attention, then the feed-forward net: the layer of an encoder and, with a causal mask, of a decoder.

    `rotation` turns queries and keys (`jaxlm.nn.layers.positions`), `bias` is added to the scores
    (`jaxlm.nn.layers.positions`).
    """

    attention: Attention
    ffn: FeedForward
    norm: Norm
    dropout: float
    dtype: str

    def setup(self) -> None:
        self.attention_residual = Residual(self.norm, self.dropout, self.dtype)
        self.ffn_residual = Residual(self.norm, self.dropout, self.dtype)

    def __call__(self, x_BTD: Array, mask_BTT: Array, rotation: Any = None, bias_BNTT: Array | None = None) -> Array:
        """All positions at once: (B, T, D) -> (B, T, D)."""
        x_BTD = self.attention_residual(x_BTD, lambda y: self.attention.self_attend(y, mask_BTT, rotation, bias_BNTT))
        return self.ffn_residual(x_BTD, self.ffn)

    def with_attention_weights(self, x_BTD: Array, mask_BTT: Array, rotation: Any = None) -> tuple[Array, Array]:
        """As all positions at once, and how much each looked at each, by head (B, N, T, T)."""
        weight_BNTT = None

        def self_attention(y_BTD: Array) -> Array:
            nonlocal weight_BNTT
            weight_BNTT = self.attention.self_weights(y_BTD, mask_BTT, rotation)
            return self.attention.self_attend(y_BTD, mask_BTT, rotation)

        x_BTD = self.ffn_residual(self.attention_residual(x_BTD, self_attention), self.ffn)
        return x_BTD, weight_BNTT

    def step(self, x_RTD: Array, cache: LayerCache, view: CacheView, rotation: Any = None) -> tuple[Array, LayerCache]:
        """T more positions a slot, written to the cache: (R, T, D) -> (R, T, D), new cache."""
        x_RTD, cache = self.self_attend_cached(x_RTD, cache, view, rotation)
        return self.ffn_residual(x_RTD, self.ffn), cache

    def self_attend_cached(
        self, x_RTD: Array, cache: LayerCache, view: CacheView, rotation: Any = None
    ) -> tuple[Array, LayerCache]:
        """The first half of `step`."""

        def self_attention(y_RTD: Array) -> Array:
            nonlocal cache
            mixed_RTD, cache = self.attention.self_attend_cached(y_RTD, cache, view, rotation)
            return mixed_RTD

        return self.attention_residual(x_RTD, self_attention), cache


class CrossAttentionBlock(TransformerBlock):
    """A decoder's layer that also looks at a source, between the two."""

    source_attention: Attention

    def setup(self) -> None:
        super().setup()
        self.source_residual = Residual(self.norm, self.dropout, self.dtype)

    def __call__(
        self, x_BTD: Array, mask_BTT: Array, memory_BSD: Array, source_mask_BTS: Array, bias_BNTT: Array | None = None
    ) -> Array:
        """The whole target at once: (B, T, D) -> (B, T, D)."""
        keys_values = self.source_attention.project_kv(memory_BSD)
        x_BTD = self.attention_residual(x_BTD, lambda y: self.attention.self_attend(y, mask_BTT, None, bias_BNTT))
        x_BTD = self.source_residual(x_BTD, lambda y: self.source_attention(y, *keys_values, source_mask_BTS))
        return self.ffn_residual(x_BTD, self.ffn)

    def cross_kv(self, memory_BSD: Array) -> tuple[Array, Array]:
        """The source's keys (B, G, H, S) and values (B, G, S, H)."""
        return self.source_attention.cross_kv(memory_BSD)

    def step(
        self, x_RTD: Array, cache: LayerCache, view: CacheView, return_weights: bool, *source: Array
    ) -> tuple[Array, LayerCache, Array | None]:
        """T more positions a slot: (R, T, D) -> (R, T, D), new cache, attention to the source (R, T, S) if asked."""
        weight_RTS = None

        def source_attention(y_RTD: Array) -> Array:
            nonlocal weight_RTS
            if return_weights:
                weight_RTS = self.source_attention.cross_weights(y_RTD, *source)
            return self.source_attention.cross_attend_cached(y_RTD, *source)

        x_RTD, cache = self.self_attend_cached(x_RTD, cache, view)
        x_RTD = self.source_residual(x_RTD, source_attention)
        return self.ffn_residual(x_RTD, self.ffn), cache, weight_RTS

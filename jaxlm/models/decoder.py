"""The decoder-only Transformer, from GPT-2 (Radford et al. 2019) to Llama 3, Mistral and Qwen: one module with options.

    x_t = E w_t (+ a position)       E the embeddings
    layer:  x <- x + attention(norm(x), positions <= t),  x <- x + FFN(norm(x))         (pre-norm)
    y_t = softmax(V norm(x_t))       V the output, or E again (tied)

| family  | position | norm  | activation | kv_heads | biases | window | qk_norm |
|---------|----------|-------|------------|----------|--------|--------|---------|
| GPT-2   | learned  | layer | gelu_tanh  | all      | all    |        |         |
| Llama 3 | rotary   | rms   | swiglu     | fewer    | none   |        |         |
| Mistral | rotary   | rms   | swiglu     | fewer    | none   | 4096   |         |
| Qwen2   | rotary   | rms   | swiglu     | fewer    | qkv    |        |         |
| Qwen3   | rotary   | rms   | swiglu     | fewer    | none   |        | yes     |
"""

from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.platforms import resolve_dtype
from jaxlm.nn.attention.kv_cache import KVCache
from jaxlm.nn.attention.mask import UNSORTED, causal_attention_mask, causal_mask, token_order, token_positions
from jaxlm.nn.attention.multi_head import Attention
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import FeedForward
from jaxlm.nn.layers.norm import Norm
from jaxlm.nn.layers.positions import PositionalEncoding, Rotary, Rotation
from jaxlm.nn.transformer.block import TransformerBlock
from jaxlm.nn.transformer.layer_stack import Stack
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch, SequenceModel


@struct.dataclass
class State:
    """Tokens read, the segments of a packed batch, and the keys and values of the tokens read.

    With capacity 0 there is no cache, and a stream is not carried from batch to batch: nothing is kept after `extend`.
    """

    length_B: Array
    segment_BT: Array | None = None
    kv_cache: KVCache | None = None


class Decoder(SequenceModel):
    """p(next token | tokens so far); a source is ignored.

    Attributes:
      vocab: size of the vocabulary, V.
      width, heads, hidden, layers: model width D (`d_model`), heads N, feed-forward width F (`d_ff`), layers L.
      kv_heads: number G of key and value heads, each shared by N / G query heads; None: N.
      head_dim: width H of an attention head; None: D / N.
      position, max_length: "learned" (up to `max_length` tokens), "sinusoidal", "rotary" (options: `rotary`) or "none".
      norm, norm_kind, norm_epsilon: position, kind and epsilon of the norm, see `jaxlm.nn.layers.norm.Norm`.
      activation: activation function of the feed-forward layer; "swiglu" and "geglu" are gated.
      qkv_bias, out_bias, ffn_bias: whether the projections into attention, out of it, and in the FFN have biases.
      qk_norm: whether every query and key head has an RMS norm.
      window: sliding window attention to the last `window` tokens in every layer (Beltagy et al. 2020); None: all.
      tie_embeddings: whether the embedding table is also the output table.
      embedding_scale: factor that multiplies the embeddings (sqrt(D) in Gemma).
      logit_soft_cap: logits become cap tanh(logits / cap) (Gemma 2); None: no cap.
      dropout: dropout rate of the embeddings and of each sub-layer's output.
      attention_dropout, activation_dropout: dropout rate of the attention weights, and inside the feed-forward layer.
      init_std: standard deviation of the normal initialization; divided by sqrt(2 L) for projections into the residual
        stream (Radford et al. 2019).
      dtype: dtype of activations and matrix products, "auto": bfloat16 on accelerators and float32 on a CPU;
        parameters, scores, softmax and logits are always float32.
      scan, remat: compile one layer and scan over all; recompute activations in the backward pass, see `Stack`.
    """

    vocab: int
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    layers: int = 12
    kv_heads: int | None = None
    head_dim: int | None = None
    position: Literal["learned", "sinusoidal", "rotary", "none"] = "learned"
    max_length: int = 1024
    rotary: Rotary = Rotary()
    norm: Literal["pre", "post"] = "pre"
    norm_kind: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"] = "gelu_tanh"
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    qk_norm: bool = False
    window: int | None = None
    tie_embeddings: bool = True
    embedding_scale: float = 1.0
    logit_soft_cap: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    scan: bool = False
    remat: bool = False

    def setup(self) -> None:
        dtype = resolve_dtype(self.dtype)
        init: Any = {"init_std": self.init_std, "out_init_std": self.init_std * (2 * self.layers) ** -0.5}
        attention = Attention(
            self.width, self.heads, dropout=self.attention_dropout, dtype=dtype, kv_heads=self.kv_heads,
            head_dim=self.head_dim, qkv_bias=self.qkv_bias, out_bias=self.out_bias,
            qk_norm=self.norm_epsilon if self.qk_norm else None, parent=None, **init,
        )  # fmt: skip
        ffn = FeedForward(
            self.width, self.hidden, activation=self.activation, dropout=self.activation_dropout, dtype=dtype,
            bias=self.ffn_bias, parent=None, **init,
        )  # fmt: skip
        norm = Norm(self.norm, self.norm_kind, epsilon=self.norm_epsilon)
        block = TransformerBlock(attention, ffn, norm=norm, dropout=self.dropout, dtype=dtype, parent=None)
        self.stack = Stack(block, self.layers, scan=self.scan, remat=self.remat)
        init_table = nn.initializers.normal(self.init_std)
        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        if not self.tie_embeddings:
            self.output = param_or_quantized(self, "output", init_table, (self.vocab, self.width))
        self.absolute_position = PositionalEncoding(
            self.width, self.position, max_length=self.max_length, init_std=self.init_std
        )
        self.embedding_dropout = Dropout(self.dropout)
        if self.norm == "pre":
            self.last_norm = norm.make_layer(dtype)

    def max_target_tokens(self, source_tokens: Any = 0) -> int | None:
        return self.max_length if self.position == "learned" else None

    def start(self, batch: Batch, capacity: int) -> State:
        length_B = jnp.zeros(batch.num_rows, jnp.int32)
        if capacity == 0:
            return State(length_B, batch.target_segment_BT)
        return State(length_B, kv_cache=self.stack.empty_cache(batch.num_rows, capacity))

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array, prefix: int = 0) -> tuple[Array, State]:
        """See `SequenceModel`. The first `prefix` tokens, with a cache all that it then holds, attend to each other."""
        # The prefix is a number of given positions, and a cache is written in the given order.
        order = UNSORTED if state.kv_cache or prefix else token_order(valid_BT, state.segment_BT)
        tokens_BT, valid_BT = order.sort(tokens_BT), order.sort(valid_BT)
        x_BTD, rotation = self._embed_tokens(tokens_BT, state, valid_BT)
        if state.kv_cache:
            kv_cache, view = state.kv_cache.advance(valid_BT, self.window)
            if prefix:
                view = replace(view, mask_BQC=jnp.broadcast_to(kv_cache.writer_BKC >= 0, view.mask_BQC.shape))
            caches = []
            for layer, cache in zip(self.stack.layers(), kv_cache.layers, strict=True):
                x_BTD, cache = layer("step", x_BTD, cache, view, rotation)
                caches.append(cache)
            length_B = state.length_B + valid_BT.sum(1, dtype=jnp.int32)
            state = replace(state, length_B=length_B, kv_cache=replace(kv_cache, layers=tuple(caches)))
        else:
            mask_BTT = causal_attention_mask(valid_BT, state.segment_BT, self.window, order)
            if prefix:
                in_prefix_T = jnp.arange(valid_BT.shape[1]) < prefix
                mask_BTT |= valid_BT[:, None] & (in_prefix_T[None] & in_prefix_T[:, None])[None]
            x_BTD = self.stack(x_BTD, mask_BTT, rotation)
        return order.restore(self.last_norm(x_BTD) if self.norm == "pre" else x_BTD), state

    def self_attention_weights(self, tokens_BT: Array, state: State, valid_BT: Array) -> Array:
        """Return the attention weights of all layers and heads, (B, L, N, T, T), without a cache."""
        x_BTD, rotation = self._embed_tokens(tokens_BT, state, valid_BT)
        return self.stack.attention_weights(x_BTD, causal_mask(valid_BT, state.segment_BT, self.window), rotation)

    def _embed_tokens(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, Rotation | None]:
        """The input of the first layer, and the rotation of queries and keys."""
        position_BT = state.length_B[:, None] + token_positions(valid_BT, state.segment_BT)
        bound = None if state.kv_cache else tokens_BT.shape[1]  # without a cache this is the only call: positions < T
        encoding_BTD = self.absolute_position(position_BT, valid_BT, bound)
        x_BTD = embed_ids(self.embedding, tokens_BT) * self.embedding_scale + encoding_BTD
        x_BTD = self.embedding_dropout(x_BTD.astype(jnp.dtype(resolve_dtype(self.dtype))))
        if self.position != "rotary":
            return x_BTD, None
        return x_BTD, self.rotary.rotation(position_BT, self.head_dim or self.width // self.heads)

    def readout(self, features: Array) -> Array:
        logits = vocab_logits(features, self.embedding if self.tie_embeddings else self.output)
        cap = self.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

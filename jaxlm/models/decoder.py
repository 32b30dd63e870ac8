"""The decoder-only Transformer, from GPT-2 (Radford et al. 2019) to Llama 3, Mistral and Qwen: one module, and options.

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
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.attention.kv_cache import KVCache
from jaxlm.nn.attention.mask import causal_attention_mask, causal_mask, token_positions
from jaxlm.nn.attention.multi_head import Attention, resolve_heads
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import FeedForward
from jaxlm.nn.layers.norm import Norm
from jaxlm.nn.layers.positions import PositionalEncoding, Rotary, Rotation, check_capacity
from jaxlm.nn.transformer.block import TransformerBlock
from jaxlm.nn.transformer.layer_stack import Stack
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch


@struct.dataclass
class State:
    """What was read. There is no `past` with capacity 0 (training: one `extend`, nothing kept).

    Whoever hands such a state on, from window to window of a stream, reads each window from nothing.

    `segment_BT` numbers the examples of packed rows, else None; length_B counts the tokens read.
    """

    length_B: Array
    segment_BT: Array | None = None
    kv_cache: KVCache | None = None


class Decoder(nn.Module):
    """p(next token | tokens so far) under the contract of `jaxlm.types.SequenceModel`; a source is not looked at.

    Attributes:
      vocab: ids in the vocabulary.
      width, heads, hidden, layers: model width D, attention heads N, width of the feed-forward net F, depth L.
      kv_heads: heads of keys and values, each shared by heads / kv_heads of queries; None: as many as `heads`.
      head_width: width H of a head; None: width / heads.
      position: "learned" (up to `max_length` tokens), "sinusoidal", "rotary" (as `rotary` says) or "none".
      norm, norm_kind, norm_epsilon: see `jaxlm.nn.layers.norm.Norm`.
      activation: of the feed-forward net; "swiglu" and "geglu" are gated.
      qkv_bias, out_bias, ffn_bias: whether the maps into attention, out of it, and of the feed-forward net have a bias.
      qk_norm: each head of the queries and keys goes through a root mean square norm.
      window: a token sees itself and the window - 1 before it, in every layer (Beltagy et al. 2020); None: all.
      tie: the output is the table of embeddings.
      embedding_scale: embeddings are multiplied by it (sqrt(D) in Gemma).
      logit_cap: logits become cap tanh(logits / cap) (Gemma 2); None: they are as they are.
      dropout: on embeddings and on the output of every sub-layer.
      attention_dropout, activation_dropout: on attention weights and inside the feed-forward net.
      deviation: of the normal that all maps and tables start from; the maps into the residual stream are divided by
        sqrt(2 layers) (Radford et al. 2019).
      dtype: of activations and products; parameters, scores, softmax and logits are float32 whatever it says.
      scan, remat: see `jaxlm.nn.transformer.layer_stack.Stack`.
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = False
    remat: bool = False

    def setup(self) -> None:
        starts = (self.init_std, self.init_std * (2 * self.layers) ** -0.5)
        attention = Attention(
            self.width, self.heads, self.attention_dropout, self.dtype, self.kv_heads, self.head_dim, self.qkv_bias,
            self.out_bias, True, self.norm_epsilon if self.qk_norm else None, *starts, parent=None,
        )  # fmt: skip
        ffn = FeedForward(
            self.width, self.hidden, self.activation, self.activation_dropout, self.dtype, self.ffn_bias, *starts,
            parent=None,
        )  # fmt: skip
        norm = Norm(self.norm, self.norm_kind, self.norm_epsilon)
        block = TransformerBlock(attention, ffn, norm, self.dropout, self.dtype, parent=None)
        self.stack = Stack(block, self.layers, self.scan, self.remat)
        table = nn.initializers.normal(self.init_std)
        self.embedding = param_or_quantized(self, "embedding", table, (self.vocab, self.width))
        if not self.tie_embeddings:
            self.output = param_or_quantized(self, "output", table, (self.vocab, self.width))
        absolute = "none" if self.position == "rotary" else self.position
        self.absolute_position = PositionalEncoding(self.width, absolute, self.max_length, self.init_std)
        self.embedding_dropout = Dropout(self.dropout)
        if self.norm == "pre":
            self.last_norm = norm.make_layer(self.dtype)

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next token: start, extend over the whole target, readout."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> State:
        """Nothing read; with capacity, an empty cache. Raises UserError beyond what learned positions reach."""
        check_capacity(self.position, capacity, self.max_length)
        length_B = jnp.zeros(jax.tree.leaves(batch)[0].shape[:1], jnp.int32)
        if capacity == 0:
            return State(length_B, batch.target_segment_BT)
        head_width, groups = resolve_heads(self.width, self.heads, self.kv_heads, self.head_dim)
        past = KVCache.empty(length_B.shape[0], capacity, self.layers, groups, head_width, self.dtype)
        return State(length_B, None, past)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array, prefix: int = 0) -> tuple[Array, State]:
        """Read T more tokens -> features (B, T, D) and the new state.

        The first `prefix` of them see each other both ways; with a cache, these are all tokens that it holds then.
        """
        x_BTD, rotation = self._embed_tokens(tokens_BT, state, valid_BT)
        past = state.kv_cache
        if past:
            past, view = past.advance(valid_BT, self.window)
            if prefix:
                view = replace(view, mask_BQC=jnp.broadcast_to(past.writer_BKC >= 0, view.mask_BQC.shape))
            caches = []
            for layer, cache in zip(self.stack.layers(), past.layers, strict=True):
                x_BTD, cache = layer("step", x_BTD, cache, view, rotation)
                caches.append(cache)
            past = replace(past, layers=tuple(caches))
        else:
            seen = causal_attention_mask(valid_BT, state.segment_BT, self.window)
            if prefix:
                both_T = jnp.arange(valid_BT.shape[1]) < prefix
                seen |= valid_BT[:, None] & (both_T[None] & both_T[:, None])[None]
            x_BTD = self.stack(x_BTD, seen, rotation)
        if self.norm == "pre":
            x_BTD = self.last_norm(x_BTD)
        if not past:
            return x_BTD, state
        return x_BTD, replace(state, length_B=state.length_B + valid_BT.sum(1, dtype=jnp.int32), kv_cache=past)

    def self_attention_weights(self, tokens_BT: Array, state: State, valid_BT: Array) -> Array:
        """How much each position looks at each, by layer and head: (B, L, N, T, T), without a cache."""
        x_BTD, rotation = self._embed_tokens(tokens_BT, state, valid_BT)
        return self.stack.attention_weights(x_BTD, causal_mask(valid_BT, state.segment_BT, self.window), rotation)

    def _embed_tokens(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, Rotation | None]:
        """What the layers read, and how queries and keys are turned."""
        position_BT = state.length_B[:, None] + token_positions(valid_BT, state.segment_BT)
        bound = None if state.kv_cache else tokens_BT.shape[1]  # without a cache this is the one call: lengths are 0
        x_BTD = embed_ids(self.embedding, tokens_BT) * self.embedding_scale + self.absolute_position(position_BT, bound)
        x_BTD = self.embedding_dropout(x_BTD.astype(jnp.dtype(self.dtype)))
        if self.position != "rotary":
            return x_BTD, None
        return x_BTD, self.rotary.rotation(position_BT, self.head_dim or self.width // self.heads)

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V)."""
        table = self.embedding if self.tie_embeddings else self.output
        flat = features.reshape(-1, self.width)
        logits = vocab_logits(flat, table)
        if self.logit_soft_cap is not None:
            logits = self.logit_soft_cap * jnp.tanh(logits / self.logit_soft_cap)
        return logits.reshape(*features.shape[:-1], self.vocab)

"""The encoder-decoder Transformer of Vaswani et al. 2017, "Attention Is All You Need".

    encoder layer:  x <- LN(x + attention(x, x)),  x <- LN(x + FFN(x))                                   (post-norm)
    decoder layer:  x <- LN(x + attention(x, x<=t)),  x <- LN(x + attention(x, memory)),  x <- LN(x + FFN(x))

Pre-norm puts LN before each sub-layer instead and once more at the end of each stack.
"""

from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.nn.attention import Attention
from jaxlm.nn.cache import Layer, Past, Shared, View
from jaxlm.nn.dropout import Dropout
from jaxlm.nn.linear import FeedForward
from jaxlm.nn.position import Position
from jaxlm.nn.stack import Stack
from jaxlm.types import Array, Batch


@struct.dataclass
class Source:
    """What is known of the source: as memory (training), or as each decoder layer's keys and values (decoding)."""

    valid_BS: Array
    segment_BS: Array | None
    memory_BSD: Array | None = None
    keys_values: tuple[tuple[Array, Array], ...] = ()


@struct.dataclass
class State:
    """Decoder state. There is no `past` with capacity 0 (training: one `extend`, nothing kept)."""

    source: Shared
    target_segment_BT: Array | None
    length_B: Array
    past: Past | None = None


class Residual(nn.Module):
    """x + dropout(f(x)) with the layer norm before f ("pre") or after the sum ("post")."""

    norm: str
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array, sublayer: Any) -> Array:
        """Any shape; `sublayer` maps it to the same shape."""
        norm, dropout = nn.LayerNorm(epsilon=1e-5, dtype=jnp.dtype(self.dtype), name="norm"), Dropout(self.dropout)
        flat = x.reshape(-1, x.shape[-1])
        if self.norm == "pre":
            return (flat + dropout(sublayer(norm(flat).reshape(x.shape)).reshape(flat.shape))).reshape(x.shape)
        return norm(flat + dropout(sublayer(x).reshape(flat.shape))).reshape(x.shape)


class EncoderBlock(nn.Module):
    """Self-attention, then the feed-forward net."""

    width: int
    heads: int
    hidden: int
    norm: str
    activation: str
    dropout: float
    attention_dropout: float
    activation_dropout: float
    dtype: str

    def setup(self) -> None:
        self.attention = Attention(self.width, self.heads, self.attention_dropout, self.dtype)
        self.ffn = FeedForward(self.width, self.hidden, self.activation, self.activation_dropout, self.dtype)
        self.attention_residual = Residual(self.norm, self.dropout, self.dtype)
        self.ffn_residual = Residual(self.norm, self.dropout, self.dtype)

    def __call__(self, x_BSD: Array, mask_BSS: Array) -> Array:
        """(B, S, D) -> (B, S, D)."""
        x_BSD = self.attention_residual(x_BSD, lambda y: self.attention.mix(*self.attention.project(y), mask_BSS))
        return self.ffn_residual(x_BSD, self.ffn)


class DecoderBlock(EncoderBlock):
    """Causal self-attention, attention to the source, then the feed-forward net."""

    def setup(self) -> None:
        super().setup()
        self.source_attention = Attention(self.width, self.heads, self.attention_dropout, self.dtype)
        self.source_residual = Residual(self.norm, self.dropout, self.dtype)

    def __call__(self, x_BTD: Array, mask_BTT: Array, memory_BSD: Array, source_mask_BTS: Array) -> Array:
        """The whole target at once: (B, T, D) -> (B, T, D)."""
        keys_values = self.source_attention.keys_values(memory_BSD)
        x_BTD = self.attention_residual(x_BTD, lambda y: self.attention.mix(*self.attention.project(y), mask_BTT))
        x_BTD = self.source_residual(x_BTD, lambda y: self.source_attention(y, *keys_values, source_mask_BTS))
        return self.ffn_residual(x_BTD, self.ffn)

    def source_keys(self, memory_BSD: Array) -> tuple[Array, Array]:
        """The source's keys (B, N, H, S) and values (B, N, S, H)."""
        return self.source_attention.source(memory_BSD)

    def step(self, x_RTD: Array, cache: Layer, view: View, *source: Array) -> tuple[Array, Layer]:
        """T more positions a slot, written to the cache: (R, T, D) -> (R, T, D), new cache."""

        def self_attention(y_RTD: Array) -> Array:
            nonlocal cache
            mixed_RTD, cache = self.attention.read(y_RTD, cache, view)
            return mixed_RTD

        x_RTD = self.attention_residual(x_RTD, self_attention)
        x_RTD = self.source_residual(x_RTD, lambda y: self.source_attention.read_source(y, *source))
        return self.ffn_residual(x_RTD, self.ffn), cache


class EncoderDecoder(nn.Module):
    """Encoder-decoder Transformer under the contract of `jaxlm.types.Autoregressive`.

    Attributes:
      vocab: ids in the one vocabulary of source and target.
      width, heads, hidden: model width D, attention heads, width of the feed-forward net.
      encoder_layers, decoder_layers: depth of each stack.
      norm: "post" (the paper) or "pre" (with a last norm on each stack).
      activation: "relu", "gelu" or "gelu_tanh".
      position: "sinusoidal", "learned" (up to `max_length` tokens) or "none".
      dropout: on the sum of embeddings and positions and on the output of every sub-layer (section 5.4).
      attention_dropout, activation_dropout: on attention weights and inside the feed-forward net (0 in the paper).
      tie: what shares a table: "all" (source and target embedding, output), "target" (the last two) or "none".
      dtype: of activations and products; parameters, scores, softmax and logits are float32 whatever it says.
      scan, remat: see `jaxlm.nn.stack.Stack`.
    """

    vocab: int
    width: int = 512
    heads: int = 8
    hidden: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    norm: Literal["post", "pre"] = "post"
    activation: Literal["relu", "gelu", "gelu_tanh"] = "relu"
    position: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    max_length: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    tie: Literal["all", "target", "none"] = "all"
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = False
    remat: bool = False

    def setup(self) -> None:
        sizes = (self.width, self.heads, self.hidden, self.norm, self.activation)
        drops = (self.dropout, self.attention_dropout, self.activation_dropout, self.dtype)
        self.encoder = Stack(EncoderBlock(*sizes, *drops, parent=None), self.encoder_layers, self.scan, self.remat)
        self.decoder = Stack(DecoderBlock(*sizes, *drops, parent=None), self.decoder_layers, self.scan, self.remat)
        table = nn.initializers.normal(self.width**-0.5)
        self.embedding = self.param("embedding", table, (self.vocab, self.width))
        if self.tie != "all":
            self.source_embedding = self.param("source_embedding", table, (self.vocab, self.width))
        if self.tie == "none":
            self.output = self.param("output", table, (self.vocab, self.width))
        self.source_position = Position(self.width, self.position, self.max_length)
        self.target_position = Position(self.width, self.position, self.max_length)
        self.embedding_dropout = Dropout(self.dropout)
        if self.norm == "pre":
            self.encoder_norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.dtype(self.dtype))
            self.decoder_norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.dtype(self.dtype))

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token: start, extend over the whole target, readout."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> State:
        """Encode the source; with capacity, also compute each layer's source keys and values once."""
        if self.position == "learned" and capacity > self.max_length:
            raise UserError(
                f"room for {capacity} target tokens, but learned positions reach {self.max_length}: lower the length "
                "limit or train with a larger model.max_length"
            )
        valid_BS, segment_BS = batch.source_valid_BS, batch.source_segment_BS
        table = self.embedding if self.tie == "all" else self.source_embedding
        position_BS = _positions(valid_BS, segment_BS)
        x_BSD = self._embed(table, batch.source_BS, self.source_position(position_BS, valid_BS.shape[1]))
        x_BSD = self.encoder(x_BSD, valid_BS[:, None] & _same(segment_BS, segment_BS, valid_BS))
        if self.norm == "pre":
            x_BSD = self.encoder_norm(x_BSD)
        length_B = jnp.zeros(valid_BS.shape[:1], jnp.int32)
        if capacity == 0:
            return State(Shared(Source(valid_BS, segment_BS, x_BSD)), batch.target_segment_BT, length_B)
        keys_values = tuple(layer("source_keys", x_BSD) for layer in self.decoder.layers())
        head_width = self.width // self.heads
        past = Past.empty(length_B.shape[0], capacity, self.decoder_layers, self.heads, head_width, self.dtype)
        return State(Shared(Source(valid_BS, None, keys_values=keys_values)), None, length_B, past)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more target tokens -> features (B, T, D) and the new state."""
        segment_BT, source, length = state.target_segment_BT, state.source.value, tokens_BT.shape[1]
        position_BT = state.length_B[:, None] + _positions(valid_BT, segment_BT)
        bound = None if state.past else length  # without a cache this is the one call: lengths are 0
        x_BTD = self._embed(self.embedding, tokens_BT, self.target_position(position_BT, bound))
        if state.past:
            x_BTD, past = self._extend_cached(x_BTD, state.past, source, valid_BT)
            state = replace(state, past=past)
        else:
            source_mask_BTS = source.valid_BS[:, None] & _same(segment_BT, source.segment_BS, valid_BT)
            causal_TT = jnp.tril(jnp.ones((length, length), bool))
            mask_BTT = causal_TT[None] & valid_BT[:, None] & _same(segment_BT, segment_BT, valid_BT)
            x_BTD = self.decoder(x_BTD, mask_BTT, source.memory_BSD, source_mask_BTS)
        if self.norm == "pre":
            x_BTD = self.decoder_norm(x_BTD)
        return x_BTD, replace(state, length_B=state.length_B + valid_BT.sum(1, dtype=jnp.int32))

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V)."""
        table = self.output if self.tie == "none" else self.embedding
        flat = features.reshape(-1, self.width)
        logits = jnp.einsum("rd,vd->rv", flat, table.astype(flat.dtype), preferred_element_type=jnp.float32)
        return logits.reshape(*features.shape[:-1], self.vocab)

    def _extend_cached(self, x_RTD: Array, past: Past, source: Source, valid_RT: Array) -> tuple[Array, Past]:
        past, view = past.advance(valid_RT)
        caches = []
        for layer, cache, keys_values in zip(self.decoder.layers(), past.layers, source.keys_values, strict=True):
            x_RTD, cache = layer("step", x_RTD, cache, view, *keys_values, source.valid_BS[:, None])
            caches.append(cache)
        return x_RTD, replace(past, layers=tuple(caches))

    def _embed(self, table, tokens_BT, position_BTD):
        x_BTD = table[tokens_BT] * self.width**0.5 + position_BTD
        return self.embedding_dropout(x_BTD.astype(jnp.dtype(self.dtype)))


def _positions(valid_BT: Array, segment_BT: Array | None) -> Array:
    """Positions of the valid tokens, counted from 0 in each row or segment; an invalid token repeats the last one."""
    position_BT = jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)
    if segment_BT is None:
        return position_BT
    first_BT = jnp.diff(segment_BT, axis=1, prepend=-1) != 0
    return position_BT - jax.lax.cummax(jnp.where(first_BT, position_BT, 0), axis=1)


def _same(segment_BT: Array | None, segment_BS: Array | None, valid_BT: Array) -> Array:
    """(B, T, S) True where both positions belong to one segment; (B, 1, 1) True where nothing is packed."""
    if segment_BT is None or segment_BS is None:
        return jnp.ones((valid_BT.shape[0], 1, 1), bool)
    return segment_BT[:, :, None] == segment_BS[:, None, :]

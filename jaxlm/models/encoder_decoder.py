"""The encoder-decoder Transformer of Vaswani et al. 2017, "Attention Is All You Need".

    encoder layer:  x <- LN(x + attention(x, x)),  x <- LN(x + FFN(x))                                   (post-norm)
    decoder layer:  x <- LN(x + attention(x, x<=t)),  x <- LN(x + attention(x, memory)),  x <- LN(x + FFN(x))

Pre-norm puts LN before each sub-layer instead and once more at the end of each stack.
"""

from dataclasses import replace
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.attention import Attention
from jaxlm.nn.block import Block, SourceBlock
from jaxlm.nn.cache import Past, Shared
from jaxlm.nn.dropout import Dropout
from jaxlm.nn.linear import FeedForward
from jaxlm.nn.norm import Norm
from jaxlm.nn.position import Position, check_capacity
from jaxlm.nn.segments import causal_mask, positions, same_segment
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
        norm, how = Norm(self.norm), (self.scan, self.remat)
        attention = Attention(self.width, self.heads, self.attention_dropout, self.dtype, parent=None)
        ffn = FeedForward(self.width, self.hidden, self.activation, self.activation_dropout, self.dtype, parent=None)
        parts = (attention, ffn, norm, self.dropout, self.dtype)
        self.encoder = Stack(Block(*parts, parent=None), self.encoder_layers, *how)
        self.decoder = Stack(SourceBlock(*parts, attention.clone(), parent=None), self.decoder_layers, *how)
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
            self.encoder_norm, self.decoder_norm = norm.layer(self.dtype), norm.layer(self.dtype)

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token: start, extend over the whole target, readout."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> State:
        """Encode the source; with capacity, also compute each layer's source keys and values once."""
        check_capacity(self.position, capacity, self.max_length)
        valid_BS, segment_BS = batch.source_valid_BS, batch.source_segment_BS
        table = self.embedding if self.tie == "all" else self.source_embedding
        position_BS = positions(valid_BS, segment_BS)
        x_BSD = self._embed(table, batch.source_BS, self.source_position(position_BS, valid_BS.shape[1]))
        x_BSD = self.encoder(x_BSD, valid_BS[:, None] & same_segment(segment_BS, segment_BS, valid_BS))
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
        position_BT = state.length_B[:, None] + positions(valid_BT, segment_BT)
        bound = None if state.past else length  # without a cache this is the one call: lengths are 0
        x_BTD = self._embed(self.embedding, tokens_BT, self.target_position(position_BT, bound))
        if state.past:
            x_BTD, past = self._extend_cached(x_BTD, state.past, source, valid_BT)
            state = replace(state, past=past)
        else:
            source_mask_BTS = source.valid_BS[:, None] & same_segment(segment_BT, source.segment_BS, valid_BT)
            x_BTD = self.decoder(x_BTD, causal_mask(valid_BT, segment_BT), source.memory_BSD, source_mask_BTS)
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

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

from jaxlm.nn.attention import Attention, check_heads
from jaxlm.nn.block import Block, SourceBlock
from jaxlm.nn.cache import Layer, Past, Shared
from jaxlm.nn.dropout import Dropout
from jaxlm.nn.linear import FeedForward
from jaxlm.nn.norm import Norm
from jaxlm.nn.position import Position, check_capacity
from jaxlm.nn.quantized import rows, scores, weights
from jaxlm.nn.relative import RelativeBias
from jaxlm.nn.segments import causal_sight, positions, sight
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
    """Decoder state. There is no `past` with capacity 0 (training: one `extend`, nothing kept).

    covered_RS: how much attention each source position has got, if the model `covers`; padding is counted as covered.
    """

    source: Shared
    target_segment_BT: Array | None
    length_B: Array
    past: Past | None = None
    covered_RS: Array | None = None


class EncoderDecoder(nn.Module):
    """Encoder-decoder Transformer under the contract of `jaxlm.types.Autoregressive`.

    Attributes:
      vocab: ids in the one vocabulary of source and target.
      width, heads, hidden: model width D, attention heads, width of the feed-forward net.
      encoder_layers, decoder_layers: depth of each stack.
      norm: "post" (the paper) or "pre" (with a last norm on each stack).
      activation: of the feed-forward net; "swiglu" and "geglu" are gated.
      position: "sinusoidal", "sinusoidal_halves" (see `jaxlm.nn.position`), "learned" (up to `max_length` tokens),
        "relative" (see `jaxlm.nn.relative`) or "none".
      dropout: on the sum of embeddings and positions and on the output of every sub-layer (section 5.4).
      attention_dropout, activation_dropout: on attention weights and inside the feed-forward net (0 in the paper).
      tie: what shares a table: "all" (source and target embedding, output), "target" (the last two), "input" (the
        first two) or "none".
      dtype: of activations and products; parameters, scores, softmax and logits are float32 whatever it says.
      scan, remat: see `jaxlm.nn.stack.Stack`.
      source_vocab: ids in the source's own vocabulary, where it has one.
      head_width: width of a head; None: width / heads.
      norm_kind, norm_epsilon: see `jaxlm.nn.norm.Norm`.
      bias: whether the maps in attention and the feed-forward net have one.
      scaled: attention scores are divided by sqrt(head width).
      buckets, distance: of relative positions.
      embedding_scale: embeddings are multiplied by it; None: sqrt(width).
      logit_scale: features are multiplied by it before the output.
      logit_bias: the output has a bias.
      covers: keep the attention that each source position got in the last layer, mean of the heads, for a coverage
        penalty (decoding only).
    """

    vocab: int
    width: int = 512
    heads: int = 8
    hidden: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    norm: Literal["post", "pre"] = "post"
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"] = "relu"
    position: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative", "none"] = "sinusoidal"
    max_length: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    tie: Literal["all", "target", "input", "none"] = "all"
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = False
    remat: bool = False
    source_vocab: int | None = None
    head_width: int | None = None
    norm_kind: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    bias: bool = True
    scaled: bool = True
    buckets: int = 32
    distance: int = 128
    embedding_scale: float | None = None
    logit_scale: float = 1.0
    logit_bias: bool = False
    covers: bool = False

    def setup(self) -> None:
        norm, how = Norm(self.norm, self.norm_kind, self.norm_epsilon), (self.scan, self.remat)
        attention = Attention(
            self.width, self.heads, self.attention_dropout, self.dtype, None, self.head_width, self.bias, self.bias,
            self.scaled, parent=None,
        )  # fmt: skip
        ffn = FeedForward(
            self.width, self.hidden, self.activation, self.activation_dropout, self.dtype, self.bias, parent=None
        )
        parts = (attention, ffn, norm, self.dropout, self.dtype)
        self.encoder = Stack(Block(*parts, parent=None), self.encoder_layers, *how)
        self.decoder = Stack(SourceBlock(*parts, attention.clone(), parent=None), self.decoder_layers, *how)
        table = nn.initializers.normal(self.width**-0.5)
        self.embedding = weights(self, "embedding", table, (self.vocab, self.width))
        if self.tie in ("target", "none"):
            sources = self.vocab if self.source_vocab is None else self.source_vocab
            self.source_embedding = weights(self, "source_embedding", table, (sources, self.width))
        if self.tie in ("input", "none"):
            self.output = weights(self, "output", table, (self.vocab, self.width))
        if self.logit_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        if self.position == "relative":
            relative = (self.heads, self.buckets, self.distance)
            self.source_relative, self.target_relative = RelativeBias(*relative, True), RelativeBias(*relative)
        absolute = "none" if self.position == "relative" else self.position
        self.source_position, self.target_position = (Position(self.width, absolute, self.max_length) for _ in "st")
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
        table = self.source_embedding if self.tie in ("target", "none") else self.embedding
        position_BS = positions(valid_BS, segment_BS)
        x_BSD = self._embed(table, batch.source_BS, self.source_position(position_BS, valid_BS.shape[1]))
        mask_BSS, bias_BNSS = sight(segment_BS, segment_BS, valid_BS, valid_BS), None
        if self.position == "relative":
            bias_BNSS = self.source_relative(position_BS[:, :, None] - position_BS[:, None])
        x_BSD = self.encoder(x_BSD, mask_BSS, None, bias_BNSS)
        if self.norm == "pre":
            x_BSD = self.encoder_norm(x_BSD)
        length_B = jnp.zeros(valid_BS.shape[:1], jnp.int32)
        if capacity == 0:
            return State(Shared(Source(valid_BS, segment_BS, x_BSD)), batch.target_segment_BT, length_B)
        keys_values = tuple(layer("source_keys", x_BSD) for layer in self.decoder.layers())
        head_width, _ = check_heads(self.width, self.heads, None, self.head_width)
        past = Past.empty(length_B.shape[0], capacity, self.decoder_layers, self.heads, head_width, self.dtype)
        covered_BS = (~valid_BS).astype(jnp.float32) if self.covers else None
        return State(Shared(Source(valid_BS, None, keys_values=keys_values)), None, length_B, past, covered_BS)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more target tokens -> features (B, T, D) and the new state."""
        features_BTD, _, state = self._read(tokens_BT, state, valid_BT, self.covers)
        return features_BTD, state

    def attention(self, batch: Batch) -> Array:
        """How much each target position looks at each source position (B, T, S): last layer, mean of the heads."""
        state = self.start(batch, batch.target_BT.shape[1])
        _, weight_BTS, _ = self._read(batch.target_BT, state, batch.target_valid_BT, True)
        return jnp.where(batch.target_valid_BT[:, :, None], weight_BTS, 0.0)

    def _read(self, tokens_BT: Array, state: State, valid_BT: Array, weigh: bool) -> tuple[Array, Array | None, State]:
        """Features (B, T, D), the attention to the source (B, T, S) if asked for and cached, and the new state."""
        weight_BTS = None
        segment_BT, source, length = state.target_segment_BT, state.source.value, tokens_BT.shape[1]
        position_BT = state.length_B[:, None] + positions(valid_BT, segment_BT)
        bound = None if state.past else length  # without a cache this is the one call: lengths are 0
        x_BTD = self._embed(self.embedding, tokens_BT, self.target_position(position_BT, bound))
        if state.past:
            x_BTD, weight_BTS, past = self._read_cached(x_BTD, state.past, source, valid_BT, weigh)
            state = replace(state, past=past)
        else:
            source_mask_BTS = sight(segment_BT, source.segment_BS, valid_BT, source.valid_BS)
            mask_BTT, bias_BNTT = causal_sight(valid_BT, segment_BT), None
            if self.position == "relative":
                bias_BNTT = self.target_relative(position_BT[:, :, None] - position_BT[:, None])
            x_BTD = self.decoder(x_BTD, mask_BTT, source.memory_BSD, source_mask_BTS, bias_BNTT)
        if self.norm == "pre":
            x_BTD = self.decoder_norm(x_BTD)
        if state.covered_RS is not None:
            state = replace(state, covered_RS=state.covered_RS + jnp.where(valid_BT[..., None], weight_BTS, 0.0).sum(1))
        return x_BTD, weight_BTS, replace(state, length_B=state.length_B + valid_BT.sum(1, dtype=jnp.int32))

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V)."""
        table = self.output if self.tie in ("input", "none") else self.embedding
        flat = features.reshape(-1, self.width)
        if self.logit_scale != 1.0:
            flat = flat * self.logit_scale
        logits = scores(flat, table)
        if self.logit_bias:
            logits = logits + self.output_bias[None]
        return logits.reshape(*features.shape[:-1], self.vocab)

    def _read_cached(self, x_RTD: Array, past: Past, source: Source, valid_RT: Array, weigh: bool):
        past, view = past.advance(valid_RT)
        if self.position == "relative":
            back = [one for one in past.distances(valid_RT) if one is not None]
            view = replace(view, biases=tuple(self.target_relative(back_BQC) for back_BQC in back))
        caches: list[Layer] = []
        for layer, cache, keys_values in zip(self.decoder.layers(), past.layers, source.keys_values, strict=True):
            last = weigh and len(caches) == self.decoder_layers - 1
            x_RTD, cache, weight_RTS = layer("step", x_RTD, cache, view, last, *keys_values, source.valid_BS[:, None])
            caches.append(cache)
        return x_RTD, weight_RTS, replace(past, layers=tuple(caches))

    def _embed(self, table, tokens_BT, position_BTD):
        scale = self.width**0.5 if self.embedding_scale is None else self.embedding_scale
        x_BTD = rows(table, tokens_BT) * scale + position_BTD
        return self.embedding_dropout(x_BTD.astype(jnp.dtype(self.dtype)))

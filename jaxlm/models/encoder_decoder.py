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

from jaxlm.nn.attention.kv_cache import BeamInvariant, KVCache, LayerCache
from jaxlm.nn.attention.mask import attention_mask, causal_attention_mask, token_positions
from jaxlm.nn.attention.multi_head import Attention, resolve_heads
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import FeedForward
from jaxlm.nn.layers.norm import Norm
from jaxlm.nn.layers.positions import PositionalEncoding, RelativePositionBias, check_capacity
from jaxlm.nn.transformer.block import CrossAttentionBlock, TransformerBlock
from jaxlm.nn.transformer.layer_stack import Stack
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch


@struct.dataclass
class EncodedSource:
    """What is known of the source: as memory (training), or as each decoder layer's keys and values (decoding)."""

    valid_BS: Array
    segment_BS: Array | None
    memory_BSD: Array | None = None
    cross_kv: tuple[tuple[Array, Array], ...] = ()


@struct.dataclass
class State:
    """Decoder state. There is no `past` with capacity 0 (training: one `extend`, nothing kept).

    covered_RS: how much attention each source position has got, if the model `covers`; padding is counted as covered.
    """

    source: BeamInvariant
    target_segment_BT: Array | None
    length_B: Array
    kv_cache: KVCache | None = None
    coverage_RS: Array | None = None


class EncoderDecoder(nn.Module):
    """Encoder-decoder Transformer under the contract of `jaxlm.types.SequenceModel`.

    Attributes:
      vocab: ids in the one vocabulary of source and target.
      width, heads, hidden: model width D, attention heads, width of the feed-forward net.
      encoder_layers, decoder_layers: depth of each stack.
      norm: "post" (the paper) or "pre" (with a last norm on each stack).
      activation: of the feed-forward net; "swiglu" and "geglu" are gated.
      position: "sinusoidal", "sinusoidal_halves" (see `jaxlm.nn.layers.positions`), "learned" (up to
        `max_length` tokens), "relative" (see `jaxlm.nn.layers.positions`) or "none".
      dropout: on the sum of embeddings and positions and on the output of every sub-layer (section 5.4).
      attention_dropout, activation_dropout: on attention weights and inside the feed-forward net (0 in the paper).
      tie: what shares a table: "all" (source and target embedding, output), "target" (the last two), "input" (the
        first two) or "none".
      dtype: of activations and products; parameters, scores, softmax and logits are float32 whatever it says.
      scan, remat: see `jaxlm.nn.transformer.layer_stack.Stack`.
      source_vocab: ids in the source's own vocabulary, where it has one.
      head_width: width of a head; None: width / heads.
      norm_kind, norm_epsilon: see `jaxlm.nn.layers.norm.Norm`.
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
    tie_embeddings: Literal["all", "target", "input", "none"] = "all"
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = False
    remat: bool = False
    source_vocab: int | None = None
    head_dim: int | None = None
    norm_kind: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    bias: bool = True
    scale_scores: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    embedding_scale: float | None = None
    logit_scale: float = 1.0
    logit_bias: bool = False
    track_coverage: bool = False

    def setup(self) -> None:
        norm, how = Norm(self.norm, self.norm_kind, self.norm_epsilon), (self.scan, self.remat)
        attention = Attention(
            self.width, self.heads, self.attention_dropout, self.dtype, None, self.head_dim, self.bias, self.bias,
            self.scale_scores, parent=None,
        )  # fmt: skip
        ffn = FeedForward(
            self.width, self.hidden, self.activation, self.activation_dropout, self.dtype, self.bias, parent=None
        )
        parts = (attention, ffn, norm, self.dropout, self.dtype)
        self.encoder = Stack(TransformerBlock(*parts, parent=None), self.encoder_layers, *how)
        self.decoder = Stack(CrossAttentionBlock(*parts, attention.clone(), parent=None), self.decoder_layers, *how)
        table = nn.initializers.normal(self.width**-0.5)
        self.embedding = param_or_quantized(self, "embedding", table, (self.vocab, self.width))
        if self.tie_embeddings in ("target", "none"):
            sources = self.vocab if self.source_vocab is None else self.source_vocab
            self.source_embedding = param_or_quantized(self, "source_embedding", table, (sources, self.width))
        if self.tie_embeddings in ("input", "none"):
            self.output = param_or_quantized(self, "output", table, (self.vocab, self.width))
        if self.logit_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        if self.position == "relative":
            relative = (self.heads, self.num_buckets, self.max_distance)
            self.source_relative, self.target_relative = (
                RelativePositionBias(*relative, True),
                RelativePositionBias(*relative),
            )
        absolute = "none" if self.position == "relative" else self.position
        self.source_position, self.target_position = (
            PositionalEncoding(self.width, absolute, self.max_length) for _ in "st"
        )
        self.embedding_dropout = Dropout(self.dropout)
        if self.norm == "pre":
            self.encoder_norm, self.decoder_norm = norm.make_layer(self.dtype), norm.make_layer(self.dtype)

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token: start, extend over the whole target, readout."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> State:
        """Encode the source; with capacity, also compute each layer's source keys and values once."""
        check_capacity(self.position, capacity, self.max_length)
        valid_BS, segment_BS = batch.source_valid_BS, batch.source_segment_BS
        table = self.source_embedding if self.tie_embeddings in ("target", "none") else self.embedding
        position_BS = token_positions(valid_BS, segment_BS)
        x_BSD = self._embed_tokens(table, batch.source_BS, self.source_position(position_BS, valid_BS.shape[1]))
        mask_BSS, bias_BNSS = attention_mask(segment_BS, segment_BS, valid_BS, valid_BS), None
        if self.position == "relative":
            bias_BNSS = self.source_relative(position_BS[:, :, None] - position_BS[:, None])
        x_BSD = self.encoder(x_BSD, mask_BSS, None, bias_BNSS)
        if self.norm == "pre":
            x_BSD = self.encoder_norm(x_BSD)
        length_B = jnp.zeros(valid_BS.shape[:1], jnp.int32)
        if capacity == 0:
            return State(BeamInvariant(EncodedSource(valid_BS, segment_BS, x_BSD)), batch.target_segment_BT, length_B)
        keys_values = tuple(layer("cross_kv", x_BSD) for layer in self.decoder.layers())
        head_width, _ = resolve_heads(self.width, self.heads, None, self.head_dim)
        past = KVCache.empty(length_B.shape[0], capacity, self.decoder_layers, self.heads, head_width, self.dtype)
        covered_BS = (~valid_BS).astype(jnp.float32) if self.track_coverage else None
        return State(
            BeamInvariant(EncodedSource(valid_BS, None, cross_kv=keys_values)), None, length_B, past, covered_BS
        )

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more target tokens -> features (B, T, D) and the new state."""
        features_BTD, _, state = self._decode(tokens_BT, state, valid_BT, self.track_coverage)
        return features_BTD, state

    def cross_attention_weights(self, batch: Batch) -> Array:
        """How much each target position looks at each source position (B, T, S): last layer, mean of the heads."""
        state = self.start(batch, batch.target_BT.shape[1])
        _, weight_BTS, _ = self._decode(batch.target_BT, state, batch.target_valid_BT, True)
        return jnp.where(batch.target_valid_BT[:, :, None], weight_BTS, 0.0)

    def _decode(
        self, tokens_BT: Array, state: State, valid_BT: Array, return_weights: bool
    ) -> tuple[Array, Array | None, State]:
        """Features (B, T, D), the attention to the source (B, T, S) if asked for and cached, and the new state."""
        weight_BTS = None
        segment_BT, source, length = state.target_segment_BT, state.source.value, tokens_BT.shape[1]
        position_BT = state.length_B[:, None] + token_positions(valid_BT, segment_BT)
        bound = None if state.kv_cache else length  # without a cache this is the one call: lengths are 0
        x_BTD = self._embed_tokens(self.embedding, tokens_BT, self.target_position(position_BT, bound))
        if state.kv_cache:
            x_BTD, weight_BTS, past = self._decode_cached(x_BTD, state.kv_cache, source, valid_BT, return_weights)
            state = replace(state, kv_cache=past)
        else:
            source_mask_BTS = attention_mask(segment_BT, source.segment_BS, valid_BT, source.valid_BS)
            mask_BTT, bias_BNTT = causal_attention_mask(valid_BT, segment_BT), None
            if self.position == "relative":
                bias_BNTT = self.target_relative(position_BT[:, :, None] - position_BT[:, None])
            x_BTD = self.decoder(x_BTD, mask_BTT, source.memory_BSD, source_mask_BTS, bias_BNTT)
        if self.norm == "pre":
            x_BTD = self.decoder_norm(x_BTD)
        if state.coverage_RS is not None:
            state = replace(
                state, coverage_RS=state.coverage_RS + jnp.where(valid_BT[..., None], weight_BTS, 0.0).sum(1)
            )
        return x_BTD, weight_BTS, replace(state, length_B=state.length_B + valid_BT.sum(1, dtype=jnp.int32))

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V)."""
        table = self.output if self.tie_embeddings in ("input", "none") else self.embedding
        flat = features.reshape(-1, self.width)
        if self.logit_scale != 1.0:
            flat = flat * self.logit_scale
        logits = vocab_logits(flat, table)
        if self.logit_bias:
            logits = logits + self.output_bias[None]
        return logits.reshape(*features.shape[:-1], self.vocab)

    def _decode_cached(
        self, x_RTD: Array, kv_cache: KVCache, source: EncodedSource, valid_RT: Array, return_weights: bool
    ):
        kv_cache, view = kv_cache.advance(valid_RT)
        if self.position == "relative":
            back = [one for one in kv_cache.distances(valid_RT) if one is not None]
            view = replace(view, biases=tuple(self.target_relative(back_BQC) for back_BQC in back))
        caches: list[LayerCache] = []
        for layer, cache, keys_values in zip(self.decoder.layers(), kv_cache.layers, source.cross_kv, strict=True):
            last = return_weights and len(caches) == self.decoder_layers - 1
            x_RTD, cache, weight_RTS = layer("step", x_RTD, cache, view, last, *keys_values, source.valid_BS[:, None])
            caches.append(cache)
        return x_RTD, weight_RTS, replace(kv_cache, layers=tuple(caches))

    def _embed_tokens(self, table, tokens_BT, position_BTD):
        scale = self.width**0.5 if self.embedding_scale is None else self.embedding_scale
        x_BTD = embed_ids(table, tokens_BT) * scale + position_BTD
        return self.embedding_dropout(x_BTD.astype(jnp.dtype(self.dtype)))

"""The encoder-decoder Transformer of Vaswani et al. 2017, "Attention Is All You Need".

    encoder layer:  x <- LN(x + attention(x, x)),  x <- LN(x + FFN(x))                                   (post-norm)
    decoder layer:  x <- LN(x + attention(x, x<=t)),  x <- LN(x + attention(x, memory)),  x <- LN(x + FFN(x))

Pre-norm puts LN before each sub-layer instead and once more at the end of each stack.

With `aligned` the decoder also reads the encoder's output at the next word, a deterministic attention (Ma et al. 2017;
Liu et al. 2018): if k leaves are among the tokens up to t, W memory[first piece of word k + 1] is added to embedding t.
"""

from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.platforms import resolve_dtype
from jaxlm.nn.attention.kv_cache import BeamInvariant, KVCache, LayerCache
from jaxlm.nn.attention.mask import UNSORTED, attention_mask, causal_attention_mask, token_order, token_positions
from jaxlm.nn.attention.multi_head import Attention
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import FeedForward, Linear
from jaxlm.nn.layers.norm import Norm
from jaxlm.nn.layers.positions import PositionalEncoding, RelativePositionBias
from jaxlm.nn.layers.word_embedding import require_unpacked
from jaxlm.nn.transformer.block import CrossAttentionBlock, TransformerBlock
from jaxlm.nn.transformer.layer_stack import Stack
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch, SequenceModel


@struct.dataclass
class EncodedSource:
    """The encoded source: `memory_BSD` for training; the keys and values of every decoder layer for decoding.

    word_BS, word_memory_BSD: with `aligned`, the words that have begun up to a position, and W memory.
    """

    valid_BS: Array
    segment_BS: Array | None = None
    memory_BSD: Array | None = None
    cross_kv: tuple[tuple[Array, Array], ...] = ()
    word_BS: Array | None = None
    word_memory_BSD: Array | None = None


@struct.dataclass
class State:
    """The `EncodedSource`, target tokens read, the target segments of a packed batch, and, with capacity, the cache.

    coverage_RS: with `track_coverage`, the attention that each source position received so far; 1 on padding.
    leaves_B: with `aligned`, the leaves among the target tokens.
    """

    source: BeamInvariant
    length_B: Array
    target_segment_BT: Array | None = None
    kv_cache: KVCache | None = None
    coverage_RS: Array | None = None
    leaves_B: Array | None = None


class EncoderDecoder(SequenceModel):
    """p(target | source) by an encoder-decoder Transformer.

    Attributes:
      vocab: size of the vocabulary V of the target, and of the source unless `source_vocab` is given.
      width, heads, hidden: model width D (`d_model`), heads N, feed-forward width F (`d_ff`).
      encoder_layers, decoder_layers: number of layers of each stack.
      norm: "post" (as in the paper) or "pre" (with one more norm after each stack).
      activation: activation function of the feed-forward layer; "swiglu" and "geglu" are gated.
      position, max_length: "sinusoidal", "sinusoidal_halves", "learned" (up to `max_length` tokens), "relative" (T5)
        or "none", see `jaxlm.nn.layers.positions`.
      dropout: dropout rate of the sum of embeddings and positions and of each sub-layer's output (section 5.4).
      attention_dropout, activation_dropout: dropout rate of attention weights, and inside the FFN (paper: 0).
      tie_embeddings: the tables that are shared: "all" (source embedding, target embedding, output), "target" (the
        last two), "input" (the first two) or "none".
      dtype: dtype of activations and matrix products, "auto": bfloat16 on accelerators and float32 on a CPU;
        parameters, scores, softmax and logits are always float32.
      scan, remat: compile one layer and scan over all; recompute activations in the backward pass, see `Stack`.
      source_vocab: size of the source vocabulary, if it differs (`tie_embeddings` "target" or "none").
      head_dim: width H of an attention head; None: D / N.
      norm_kind, norm_epsilon: layer norm or RMS norm, and its epsilon, see `jaxlm.nn.layers.norm.Norm`.
      bias: whether all projections in attention and the feed-forward layer have biases.
      scale_scores: whether attention scores are divided by sqrt(H).
      num_buckets, max_distance: buckets of relative positions; all distances from `max_distance` share the last one.
      embedding_scale: factor that multiplies the embeddings; None: sqrt(D).
      logit_scale: factor that multiplies the features before the output layer.
      logit_bias: whether the output layer has a bias.
      track_coverage: sum up the last layer's cross-attention, averaged over heads, for a coverage penalty (decoding
        only).
      aligned: the first target id that is a word's, such as a leaf of a tree, and the id after the last one; the
        decoder then reads the next word. A source id plus the size of the source vocabulary begins a word.
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
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
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
    aligned: tuple[int, int] | None = None

    def setup(self) -> None:
        dtype = resolve_dtype(self.dtype)
        norm = Norm(self.norm, self.norm_kind, epsilon=self.norm_epsilon)
        attention = Attention(
            self.width, self.heads, dropout=self.attention_dropout, dtype=dtype, head_dim=self.head_dim,
            qkv_bias=self.bias, out_bias=self.bias, scale_scores=self.scale_scores, parent=None,
        )  # fmt: skip
        ffn = FeedForward(
            self.width, self.hidden, activation=self.activation, dropout=self.activation_dropout, dtype=dtype,
            bias=self.bias, parent=None,
        )  # fmt: skip
        shared: Any = {"norm": norm, "dropout": self.dropout, "dtype": dtype, "parent": None}
        encoder_block = TransformerBlock(attention, ffn, **shared)
        decoder_block = CrossAttentionBlock(attention, ffn, source_attention=attention.clone(), **shared)
        self.encoder = Stack(encoder_block, self.encoder_layers, scan=self.scan, remat=self.remat)
        self.decoder = Stack(decoder_block, self.decoder_layers, scan=self.scan, remat=self.remat)
        init_table = nn.initializers.normal(self.width**-0.5)
        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        if self.tie_embeddings in ("target", "none"):
            source_vocab = self.vocab if self.source_vocab is None else self.source_vocab
            self.source_embedding = param_or_quantized(self, "source_embedding", init_table, (source_vocab, self.width))
        if self.tie_embeddings in ("input", "none"):
            self.output = param_or_quantized(self, "output", init_table, (self.vocab, self.width))
        zeros = nn.initializers.zeros_init()
        self.output_bias = self.param("output_bias", zeros, (self.vocab,)) if self.logit_bias else None
        if self.position == "relative":
            buckets: Any = {"num_buckets": self.num_buckets, "max_distance": self.max_distance}
            self.source_relative = RelativePositionBias(self.heads, **buckets, bidirectional=True)
            self.target_relative = RelativePositionBias(self.heads, **buckets)
        self.source_position = PositionalEncoding(self.width, self.position, max_length=self.max_length)
        self.target_position = PositionalEncoding(self.width, self.position, max_length=self.max_length)
        self.embedding_dropout = Dropout(self.dropout)
        if self.aligned:
            self.next_word = Linear(self.width, bias=False, dtype=dtype)
        if self.norm == "pre":
            self.encoder_norm, self.decoder_norm = norm.make_layer(dtype), norm.make_layer(dtype)

    def max_target_tokens(self, source_tokens: Any = 0) -> int | None:
        return self.max_length if self.position == "learned" else None

    def start(self, batch: Batch, capacity: int) -> State:
        """Encode the source; with capacity, also compute the source keys and values of every decoder layer."""
        valid_BS, segment_BS = batch.source_valid_BS, batch.source_segment_BS
        order = UNSORTED if capacity else token_order(valid_BS, segment_BS)  # of keys and values, that of queries
        valid_BS = order.sort(valid_BS)
        table = self.source_embedding if self.tie_embeddings in ("target", "none") else self.embedding
        position_BS, source_BS, word_BS = token_positions(valid_BS, segment_BS), order.sort(batch.source_BS), None
        if self.aligned:
            require_unpacked(batch)
            size = self.source_vocab or self.vocab
            source_BS, word_BS = source_BS % size, ((source_BS >= size) & valid_BS).cumsum(1)
        x_BSD = self._embed_tokens(table, source_BS, self.source_position(position_BS, valid_BS, valid_BS.shape[1]))
        mask_BSS, bias_BNSS = attention_mask(valid_BS, segment_BS, order), None
        if self.position == "relative":
            bias_BNSS = self.source_relative(position_BS[:, :, None] - position_BS[:, None])
        x_BSD = self.encoder(x_BSD, mask_BSS, None, bias_BNSS)
        if self.norm == "pre":
            x_BSD = self.encoder_norm(x_BSD)
        length_B = jnp.zeros(valid_BS.shape[:1], jnp.int32)
        words: Any = {"word_BS": word_BS, "word_memory_BSD": self.next_word(x_BSD)} if self.aligned else {}
        leaves_B = length_B if self.aligned else None
        if capacity == 0:
            source = EncodedSource(valid_BS, segment_BS, memory_BSD=x_BSD, **words)
            return State(BeamInvariant(source), length_B, batch.target_segment_BT, leaves_B=leaves_B)
        cross_kv = tuple(layer("cross_kv", x_BSD) for layer in self.decoder.layers())
        source = EncodedSource(valid_BS, cross_kv=cross_kv, **words)
        kv_cache = self.decoder.empty_cache(length_B.shape[0], capacity)
        coverage_RS = (~valid_BS).astype(jnp.float32) if self.track_coverage else None
        return State(BeamInvariant(source), length_B, None, kv_cache, coverage_RS, leaves_B)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        features_BTD, _, state = self._decode(tokens_BT, state, valid_BT, self.track_coverage)
        return features_BTD, state

    def cross_attention_weights(self, batch: Batch) -> Array:
        """Return the cross-attention weights of the last layer, mean over heads, (B, T, S); 0 on padding."""
        state = self.start(batch, batch.target_BT.shape[1])
        _, weight_BTS, _ = self._decode(batch.target_BT, state, batch.target_valid_BT, True)
        return jnp.where(batch.target_valid_BT[:, :, None], weight_BTS, 0.0)

    def _decode(self, tokens_BT: Array, state: State, valid_BT: Array, return_weights: bool):
        """Features (B, T, D), cross-attention weights (B, T, S) if requested and cached, and the new state."""
        weight_BTS, segment_BT, source = None, state.target_segment_BT, state.source.value
        order = UNSORTED if state.kv_cache else token_order(valid_BT, segment_BT)
        tokens_BT, valid_BT = order.sort(tokens_BT), order.sort(valid_BT)
        position_BT = state.length_B[:, None] + token_positions(valid_BT, segment_BT)
        bound = None if state.kv_cache else tokens_BT.shape[1]  # without a cache this is the only call: positions < T
        added_BTD = self.target_position(position_BT, valid_BT, bound)
        if self.aligned:
            leaf_BT = (tokens_BT >= self.aligned[0]) & (tokens_BT < self.aligned[1]) & valid_BT
            count_BT = state.leaves_B[:, None] + leaf_BT.cumsum(1, dtype=jnp.int32)
            added_BTD += _memory_at_word(source, count_BT)
            state = replace(state, leaves_B=count_BT[:, -1])
        x_BTD = self._embed_tokens(self.embedding, tokens_BT, added_BTD)
        if state.kv_cache:
            kv_cache, view = state.kv_cache.advance(valid_BT)
            if self.position == "relative":
                distances = [distance for distance in kv_cache.distances(valid_BT) if distance is not None]
                view = replace(view, biases=tuple(self.target_relative(distance_BQC) for distance_BQC in distances))
            caches: list[LayerCache] = []
            for layer, cache, cross_kv in zip(self.decoder.layers(), kv_cache.layers, source.cross_kv, strict=True):
                inputs = view, return_weights and len(caches) == self.decoder_layers - 1, *cross_kv
                x_BTD, cache, weight_BTS = layer("step", x_BTD, cache, *inputs, source.valid_BS[:, None])
                caches.append(cache)
            state = replace(state, kv_cache=replace(kv_cache, layers=tuple(caches)))
        else:
            both_orders = order if source.segment_BS is None else UNSORTED
            target = valid_BT, segment_BT
            source_mask_BTS = attention_mask(source.valid_BS, source.segment_BS, both_orders, target)
            mask_BTT, bias_BNTT = causal_attention_mask(valid_BT, segment_BT, order=order), None
            if self.position == "relative":
                bias_BNTT = self.target_relative(position_BT[:, :, None] - position_BT[:, None])
            x_BTD = self.decoder(x_BTD, mask_BTT, source.memory_BSD, source_mask_BTS, bias_BNTT)
        if self.norm == "pre":
            x_BTD = self.decoder_norm(x_BTD)
        x_BTD = order.restore(x_BTD)
        if state.coverage_RS is not None:
            received_RS = jnp.where(valid_BT[..., None], weight_BTS, 0.0).sum(1)
            state = replace(state, coverage_RS=state.coverage_RS + received_RS)
        return x_BTD, weight_BTS, replace(state, length_B=state.length_B + valid_BT.sum(1, dtype=jnp.int32))

    def readout(self, features: Array) -> Array:
        if self.logit_scale != 1.0:
            features = features * self.logit_scale
        table = self.output if self.tie_embeddings in ("input", "none") else self.embedding
        return vocab_logits(features, table, self.output_bias)

    def _embed_tokens(self, table, tokens_BT, position_BTD):
        scale = self.width**0.5 if self.embedding_scale is None else self.embedding_scale
        x_BTD = embed_ids(table, tokens_BT) * scale + position_BTD
        return self.embedding_dropout(x_BTD.astype(jnp.dtype(resolve_dtype(self.dtype))))


def _memory_at_word(source: EncodedSource, count_RT: Array) -> Array:
    """W memory (R, T, D) where word count + 1 begins, 0 after the last one; the rows R are B or, in a beam, B * K."""
    word_BS, memory_BSD = source.word_BS, source.word_memory_BSD
    count_BQ = count_RT.reshape(len(word_BS), -1)
    place_BQ = (word_BS[:, None] <= count_BQ[:, :, None]).sum(-1)
    next_BQD = jnp.take_along_axis(memory_BSD, place_BQ[:, :, None], axis=1, mode="fill", fill_value=0)
    return next_BQD.reshape(*count_RT.shape, -1)

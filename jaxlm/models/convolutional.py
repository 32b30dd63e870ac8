"""Convolutional models: the gated language model (Dauphin et al. 2017) and ConvS2S (Gehring et al. 2017).

    z, e = encoder(x_1 .. x_S), embeddings of the source plus positions       keys z_s, values (z_s + e_s) / sqrt(2)
    h^l  = the gated convolution of layer l (`jaxlm.nn.layers.convolution`),  g the embeddings of the target
    d_t  = (W_q h_t^l + g_t) / sqrt(2),   a_ts = softmax_s(d_t . z_s)         attention in every layer of the decoder
    h^l <- (sqrt(S) W_o sum_s a_ts (z_s + e_s) / sqrt(2) + h^l) / sqrt(2)     S the number of source tokens
    p(y_{t+1} | y_<=t, x) = softmax(E W h_t + b)

All maps have weight normalization. Each layer's attention sends a gradient to the encoder, so this is divided by 2 L
for L layers. The state of a decoder is the last k - 1 inputs of each layer, so a token costs the same everywhere.
"""

from dataclasses import replace
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.distributed.platforms import resolve_dtype
from jaxlm.errors import UserError
from jaxlm.nn.attention.kv_cache import BeamInvariant, merge_beams
from jaxlm.nn.attention.mask import tokens_before_padding
from jaxlm.nn.layers.convolution import RESIDUAL_SCALE, GatedConvolutions, NormalizedLinear
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.positions import PositionalEncoding
from jaxlm.nn.rnn.attention import masked_softmax
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch, SequenceModel

INIT_STD = 0.1
"""Standard deviation of embeddings at first (Gehring et al. 2017, section 3.5)."""


@struct.dataclass
class SourceMemory:
    """The keys and values of a source, shared by the layers of the decoder."""

    valid_BS: Array
    key_BSD: Array
    value_BSD: Array


@struct.dataclass
class State:
    """The last inputs of each layer, the number of tokens read, the source, and the segments of a packed batch."""

    convolutions: tuple[Array, ...]
    length_B: Array
    source: BeamInvariant | None = None
    segment_BT: Array | None = None


class ConvLM(SequenceModel):
    """p(next token | tokens so far) by gated convolutions; a source is ignored.

    Attributes:
      vocab: size of the vocabulary, V.
      width: width of the embeddings and of the features.
      layers: the width and the kernel size of each convolution, in tokens.
      dropout: dropout rate of the embeddings, of the input of each convolution, and of the features.
      tie_embeddings: whether the output table is the embedding table.
      dtype: as of `jaxlm.models.encoder_decoder.EncoderDecoder`.
    """

    vocab: int
    width: int = 256
    layers: tuple[tuple[int, int], ...] = ((256, 4),) * 6
    dropout: float = 0.1
    tie_embeddings: bool = True
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def setup(self) -> None:
        init_table = nn.initializers.normal(INIT_STD)
        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        if not self.tie_embeddings:
            self.output = param_or_quantized(self, "output", init_table, (self.vocab, self.width))
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        dtype = resolve_dtype(self.dtype)
        self.convolutions = GatedConvolutions(self.layers, self.width, dropout=self.dropout, dtype=dtype)
        self.on_input, self.on_output = Dropout(self.dropout), Dropout(self.dropout)

    def start(self, batch: Batch, capacity: int) -> State:
        """Return zeros; the state has a fixed size, so `capacity` is ignored."""
        rows = batch.num_rows
        empty = self.convolutions.empty_state(rows)
        return State(empty, jnp.zeros(rows, jnp.int32), segment_BT=batch.target_segment_BT)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        order = tokens_before_padding(valid_BT)
        tokens_BT, valid_BT = order.sort(tokens_BT), order.sort(valid_BT)
        segment_BT = None if state.segment_BT is None else order.sort(state.segment_BT)
        x_BTD = self.on_input(embed_ids(self.embedding, tokens_BT)).astype(jnp.dtype(resolve_dtype(self.dtype)))
        features_BTD, convolutions = self.convolutions(x_BTD, state.convolutions, valid_BT, segment_BT)
        length_B = state.length_B + valid_BT.sum(1, dtype=jnp.int32)
        state = replace(state, convolutions=convolutions, length_B=length_B)
        return order.restore(self.on_output(features_BTD)), state

    def readout(self, features: Array) -> Array:
        return vocab_logits(features, self.embedding if self.tie_embeddings else self.output, self.output_bias)


class ConvSeq2Seq(SequenceModel):
    """p(target | source) by an encoder and a decoder of gated convolutions.

    Attributes:
      vocab: size of the vocabulary V of source and target.
      width: width of the embeddings, of keys and values, and of the features.
      encoder, decoder: the width and the kernel size of each convolution, in tokens; odd in the encoder.
      max_length: the number of learned positions of each side.
      dropout: dropout rate of the embeddings, of the input of each convolution, and of the features.
      tie_embeddings: the tables that are shared: "all" (source embedding, target embedding, output), "target" (the
        last two) or "none" (as in the paper).
      dtype: as of `jaxlm.models.encoder_decoder.EncoderDecoder`.
    """

    vocab: int
    width: int = 256
    encoder: tuple[tuple[int, int], ...] = ((256, 3),) * 4
    decoder: tuple[tuple[int, int], ...] = ((256, 3),) * 3
    max_length: int = 1024
    dropout: float = 0.1
    tie_embeddings: Literal["all", "target", "none"] = "none"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def setup(self) -> None:
        if even := [kernel for _, kernel in self.encoder if kernel % 2 == 0]:
            raise UserError(f"model.encoder has a kernel of {even[0]} tokens: expected odd ones, centered on a token")
        init_table = nn.initializers.normal(INIT_STD)
        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        if self.tie_embeddings != "all":
            self.source_embedding = param_or_quantized(self, "source_embedding", init_table, (self.vocab, self.width))
        if self.tie_embeddings == "none":
            self.output = param_or_quantized(self, "output", init_table, (self.vocab, self.width))
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        dtype = resolve_dtype(self.dtype)
        self.source_position, self.target_position = (
            PositionalEncoding(self.width, "learned", max_length=self.max_length, init_std=INIT_STD) for _ in range(2)
        )
        self.encode = GatedConvolutions(self.encoder, self.width, causal=False, dropout=self.dropout, dtype=dtype)
        self.decode = GatedConvolutions(self.decoder, self.width, dropout=self.dropout, dtype=dtype)
        self.queries = [NormalizedLinear(self.width, dtype=dtype, init_std=width**-0.5) for width, _ in self.decoder]
        self.contexts = [NormalizedLinear(width, dtype=dtype, init_std=self.width**-0.5) for width, _ in self.decoder]
        self.on_input, self.on_output = Dropout(self.dropout), Dropout(self.dropout)

    def max_target_tokens(self, source_tokens: int = 0) -> int:
        return self.max_length

    def start(self, batch: Batch, capacity: int) -> State:
        """Encode the source. The state of a convolution has a fixed size, so `capacity` is ignored."""
        if batch.source_BS is None:
            raise UserError("the batch has no source, which ConvSeq2Seq translates: use a language model (ConvLM)")
        if batch.source_segment_BS is not None or batch.target_segment_BT is not None:
            raise UserError("ConvSeq2Seq reads one example a row, and these rows are packed: use Buckets, not Packing")
        order = tokens_before_padding(batch.source_valid_BS)
        valid_BS = order.sort(batch.source_valid_BS)
        rows, length = valid_BS.shape
        table = self.embedding if self.tie_embeddings == "all" else self.source_embedding
        positions = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
        embedded_BSD = self._embed(table, order.sort(batch.source_BS), self.source_position(positions, valid_BS))
        key_BSD, _ = self.encode(embedded_BSD, self.encode.empty_state(rows), valid_BS)
        share = 1 / (2 * len(self.decoder))
        key_BSD = key_BSD * share + jax.lax.stop_gradient(key_BSD) * (1 - share)
        value_BSD = (key_BSD + embedded_BSD) * RESIDUAL_SCALE
        source = SourceMemory(batch.source_valid_BS, order.restore(key_BSD), order.restore(value_BSD))
        return State(self.decode.empty_state(rows), jnp.zeros(rows, jnp.int32), BeamInvariant(source))

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        features_BTD, _, state = self._decode(tokens_BT, state, valid_BT)
        return features_BTD, state

    def readout(self, features: Array) -> Array:
        table = self.output if self.tie_embeddings == "none" else self.embedding
        return vocab_logits(features, table, self.output_bias)

    def cross_attention_weights(self, batch: Batch) -> Array:
        """Return the attention weights, mean over the layers, (B, T, S); 0 on padding."""
        _, weight_BTS, _ = self._decode(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return jnp.where(batch.target_valid_BT[:, :, None], weight_BTS, 0.0)

    def _decode(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, Array, State]:
        """Features (B, T, D), attention weights (B, T, S), and the new state."""
        order = tokens_before_padding(valid_BT)
        tokens_BT, valid_BT = order.sort(tokens_BT), order.sort(valid_BT)
        position_BT = state.length_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
        embedded_BTD = self._embed(self.embedding, tokens_BT, self.target_position(position_BT, valid_BT))
        source, weights = state.source.value, []

        def attend(index: int, h_BTF: Array) -> Array:
            query_BTD = (self.queries[index](h_BTF) + embedded_BTD) * RESIDUAL_SCALE
            context_BTD, weight_BTS = _attend(query_BTD, source)
            weights.append(weight_BTS)
            return (self.contexts[index](context_BTD) + h_BTF) * RESIDUAL_SCALE

        features_BTD, convolutions = self.decode(embedded_BTD, state.convolutions, valid_BT, attend=attend)
        length_B = state.length_B + valid_BT.sum(1, dtype=jnp.int32)
        state = replace(state, convolutions=convolutions, length_B=length_B)
        weight_BTS = order.restore(jnp.stack(weights).mean(0))
        return order.restore(self.on_output(features_BTD)), weight_BTS, state

    def _embed(self, table, tokens_BT, position_BTD):
        return self.on_input(embed_ids(table, tokens_BT) + position_BTD).astype(jnp.dtype(resolve_dtype(self.dtype)))


def _attend(query_RTD: Array, source: SourceMemory) -> tuple[Array, Array]:
    """Contexts (R, T, D), times the root of the number of tokens, and weights (R, T, S), for K beams per source."""
    sources = source.key_BSD.shape[0]
    # (B * K, T, D) -> (B, Q, D), Q = K * T: the beams of a source share one product with its keys.
    query_BQD = merge_beams(query_RTD, sources)
    score_BQS = jnp.einsum("bqd,bsd->bqs", query_BQD, source.key_BSD, preferred_element_type=jnp.float32)
    weight_BQS = masked_softmax(score_BQS, source.valid_BS)
    context_BQD = jnp.einsum("bqs,bsd->bqd", weight_BQS.astype(query_RTD.dtype), source.value_BSD)
    root_B = jnp.sqrt(source.valid_BS.sum(1, dtype=jnp.float32))
    context_BQD = context_BQD * root_B[:, None, None].astype(context_BQD.dtype)
    return context_BQD.reshape(query_RTD.shape), weight_BQS.reshape(*query_RTD.shape[:2], -1)

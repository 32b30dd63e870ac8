"""Recurrent sequence-to-sequence models: an encoder reads the source, a decoder predicts the target.

    m_1 .. m_S, z = encoder(x_1 .. x_S),        s_0 = tanh(W_0 z + b_0)
    "first":      s_t = f(s_{t-1}, e_t)                                          (Sutskever et al. 2014)
    "every":      s_t = f(s_{t-1}, [e_t; c]),  c = tanh(W_c z),  o_t = tanh(W_o [c; h_t])    (Cho et al. 2014)
    "attention":  c_t = sum_s a_ts m_s,  a_t = softmax_s score(query, m_s),  o_t = tanh(W_o [c_t; h_t])
      attend "after":    s_t = f(s_{t-1}, e_t), the query is h_t                 (Luong et al. 2015, section 3)
      attend "before":   s_t = f(s_{t-1}, [e_t; c_t]), the query is h_{t-1}      (Bahdanau et al. 2015, section 3.1)
      input feeding:     f also reads o_{t-1}                                    (Luong et al. 2015, section 3.3)
      coverage:          the score also depends on sum_{t' < t} a_t'             (Tu et al. 2016; See et al. 2017)
    p(y_t | y_<t, x) = softmax(E o_t + b)

e_t is the embedding of the token read at t, s_t the carries of the decoder, h_t the output of its top layer, f its
cells. z is the last carries of every layer and direction of the encoder.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxlm.errors import UserError
from jaxlm.nn.attention.kv_cache import BeamInvariant, merge_beams
from jaxlm.nn.layers.dropout import Dropout, keep_mask
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.rnn.attention import AttentionScore, ScoreKind, masked_softmax
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch, SequenceModel


@struct.dataclass
class EncodedMemory:
    """The encoded source; `key_BSD` is None if the keys are the memory itself. Fields that are not used are None."""

    valid_BS: Array
    memory_BSD: Array | None = None
    key_BSD: Array | None = None
    context_BD: Array | None = None


@struct.dataclass
class DecoderState:
    """The recurrent part of the state: the decoder's carries, h_{t-1}, o_{t-1} and the attention weights so far."""

    carry: Any
    hidden_BD: Array | None = None
    fed_back_BD: Array | None = None
    coverage_BS: Array | None = None


@struct.dataclass
class State:
    """Decoding state: the `EncodedMemory` of each row, shared by its beams, and the decoder's state."""

    source: BeamInvariant
    decoder_state: DecoderState
    coverage_RS: Array | None = None


class Seq2Seq(SequenceModel):
    """p(target | source) by a recurrent encoder-decoder.

    Attributes:
      vocab: size of the vocabulary of source and target, V.
      width: width of the embeddings, of o_t and of the context c of "every" step.
      encoder, decoder: the recurrent networks; the encoder may be bidirectional.
      context: the decoder reads the encoder's last state z at the "first" step or "every" step, or uses "attention".
      score: attention score function, see `jaxlm.nn.rnn.attention`.
      attention_order: attend "after" the cell has read the token (Luong) or "before" (Bahdanau), so that it reads c_t.
      input_feeding, coverage: see `jaxlm.models.rnn_seq2seq`. Without both, "after" computes all positions in parallel.
      dropout: dropout rate of the embeddings and of o_t; dropout between layers is set in the recurrent networks.
      scheduled_sampling: in training, the probability that the decoder reads its own most likely token instead of
        the true one (Bengio et al. 2015). A first pass over the true tokens, without a gradient, predicts; a second
        one reads the mixture (Mihaylova and Martins 2019).
      tie_embeddings: the tables that are shared: "all" (source embedding, target embedding, output), "target" (the
        last two) or "none".
      track_coverage: accumulate the attention weights of each source position for a coverage penalty (decoding only).
    """

    vocab: int
    width: int = 256
    encoder: Recurrent = Recurrent(LSTM(256), bidirectional=True)
    decoder: Recurrent = Recurrent(LSTM(256))
    context: Literal["first", "every", "attention"] = "attention"
    score: ScoreKind = "general"
    attention_order: Literal["after", "before"] = "after"
    input_feeding: bool = False
    coverage: bool = False
    dropout: float = 0.0
    scheduled_sampling: float = 0.0
    tie_embeddings: Literal["all", "target", "none"] = "all"
    track_coverage: bool = False

    def __post_init__(self) -> None:
        # Linen gives one object one set of parameters; encoder and decoder have two, even if made of one object.
        if self.decoder.parent is None:
            object.__setattr__(self, "decoder", self.decoder.clone(_deep_clone=True))
        super().__post_init__()

    def setup(self) -> None:
        needs_attention = {
            "input_feeding": self.input_feeding,
            "coverage": self.coverage,
            "attention_order": self.attention_order == "before",
            "track_coverage": self.track_coverage,
        }
        wrong = [name for name, is_set in needs_attention.items() if is_set and self.context != "attention"]
        if wrong:
            raise UserError(f'{", ".join(wrong)}: only context="attention" has it, and context is "{self.context}"')
        if self.decoder.bidirectional:
            raise UserError("a bidirectional decoder would read the tokens that it predicts: only the encoder may be")
        init_table = nn.initializers.normal(self.width**-0.5)
        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        if self.tie_embeddings != "all":
            self.source_embedding = param_or_quantized(self, "source_embedding", init_table, (self.vocab, self.width))
        if self.tie_embeddings == "none":
            self.output = param_or_quantized(self, "output", init_table, (self.vocab, self.width))
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        self.bridge = Linear(self._unravel_state()[0].size)
        if self.context == "every":
            self.summary = Linear(self.width)
        if self.context == "attention":
            self.scores = AttentionScore(self.score, self.decoder.width, coverage=self.coverage)
        self.mix = Linear(self.width, bias=False)
        self.embedding_dropout, self.output_dropout = Dropout(self.dropout), Dropout(self.dropout)

    def start(self, batch: Batch, capacity: int) -> State:
        """Encode the source. A recurrent state has a fixed size, so `capacity` is ignored."""
        if batch.source_BS is None:
            raise UserError("the batch has no source, which Seq2Seq translates: use a language model (RecurrentLM)")
        if batch.source_segment_BS is not None or batch.target_segment_BT is not None:
            raise UserError("Seq2Seq reads one example a row, and these rows are packed: use Buckets, not Packing")
        valid_BS = batch.source_valid_BS
        table = self.embedding if self.tie_embeddings == "all" else self.source_embedding
        x_BSD = self.embedding_dropout(embed_ids(table, batch.source_BS))
        memory_BSD, carry = self.encoder(x_BSD, self.encoder.start(x_BSD.shape[0]), valid_BS)
        final_BD = jax.vmap(lambda row: ravel_pytree(row)[0])(carry)  # all carries of a row in one vector
        decoder_state = jax.vmap(self._unravel_state()[1])(jnp.tanh(self.bridge(final_BD)))
        if self.input_feeding:
            decoder_state = replace(decoder_state, fed_back_BD=jnp.zeros((x_BSD.shape[0], self.width), x_BSD.dtype))
        if self.coverage:
            decoder_state = replace(decoder_state, coverage_BS=jnp.zeros(valid_BS.shape, x_BSD.dtype))
        memory, coverage_RS = EncodedMemory(valid_BS), None
        if self.context == "every":
            memory = replace(memory, context_BD=jnp.tanh(self.summary(final_BD)))
        if self.context == "attention":
            key_BSD = self.scores.project_keys(memory_BSD)
            memory = replace(memory, memory_BSD=memory_BSD, key_BSD=None if key_BSD is memory_BSD else key_BSD)
            coverage_RS = (~valid_BS).astype(x_BSD.dtype) if self.track_coverage else None
        return State(BeamInvariant(memory), decoder_state, coverage_RS=coverage_RS)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more target tokens: return features o_t (B, T, D) and the new state."""
        if self.scheduled_sampling > 0.0 and self.has_rng("dropout"):
            tokens_BT = self._sample_inputs(tokens_BT, state, valid_BT)
        features_BTD, weight_BTS, decoder_state = self._decode(tokens_BT, state, valid_BT)
        state = replace(state, decoder_state=decoder_state)
        if state.coverage_RS is not None:
            received_RS = jnp.where(valid_BT[..., None], weight_BTS, 0.0).sum(1)
            state = replace(state, coverage_RS=state.coverage_RS + received_RS)
        return self.output_dropout(features_BTD), state

    def readout(self, features: Array) -> Array:
        table = self.output if self.tie_embeddings == "none" else self.embedding
        return vocab_logits(features, table, self.output_bias)

    def cross_attention_weights(self, batch: Batch) -> Array:
        """Return the attention weights a_ts, (B, T, S); 0 on padding."""
        if self.context != "attention":
            raise UserError(f'context="{self.context}" has no attention weights: only context="attention" looks back')
        _, weight_BTS, _ = self._decode(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return jnp.where(batch.target_valid_BT[:, :, None], weight_BTS, 0.0)

    def _decode(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, Array | None, DecoderState]:
        """Features (B, T, D), attention weights (B, T, S), and the decoder's state after the last token."""
        x_BTD = self.embedding_dropout(embed_ids(self.embedding, tokens_BT))
        source, decoder_state = state.source.value, state.decoder_state
        if self.input_feeding or self.coverage or self.attention_order == "before":
            return self._scan_steps(x_BTD, source, decoder_state, valid_BT)
        context_BTD = weight_BTS = None
        if self.context == "every":
            beams = tokens_BT.shape[0] // source.context_BD.shape[0]
            context_B1D = jnp.repeat(source.context_BD, beams, axis=0)[:, None]
            context_BTD = jnp.broadcast_to(context_B1D, (*tokens_BT.shape, self.width))
            x_BTD = jnp.concatenate([x_BTD, context_BTD], -1)
        hidden_BTD, carry = self.decoder(x_BTD, decoder_state.carry, valid_BT)
        if self.context == "attention":
            context_BTD, weight_BTS = self._attend(hidden_BTD, source, None)
        return self._combine(context_BTD, hidden_BTD), weight_BTS, DecoderState(carry)

    def _scan_steps(self, x_BTD: Array, source: EncodedMemory, decoder_state: DecoderState, valid_BT: Array):
        """`_decode` if the input of the cells, or the score, depends on the previous step: a scan over the target."""

        def step(model: Seq2Seq, decoder_state: DecoderState, step_input: tuple[Array, Array]):
            features_BD, weight_BS, decoder_state = model._step(step_input[0], source, decoder_state, step_input[1])
            return decoder_state, (features_BD, weight_BS)

        # Masks that hold for all positions (of U, or locked dropout) come from one key, others from a key each.
        locked = self.decoder.variational or self.decoder.weight_drop > 0.0
        rngs: dict[Any, bool] = {"params": False, "dropout": not locked}
        scan = nn.scan(step, variable_broadcast="params", split_rngs=rngs, in_axes=1, out_axes=1)
        decoder_state, (features_BTD, weight_BTS) = scan(self, decoder_state, (x_BTD, valid_BT))
        return features_BTD, weight_BTS, decoder_state

    def _step(self, x_BD: Array, source: EncodedMemory, old: DecoderState, valid_B: Array):
        """One target token: o_t, a_t, and the new decoder state."""
        inputs = [x_BD]
        if self.attention_order == "before":
            context_B1D, weight_B1S = self._attend(old.hidden_BD[:, None], source, old.coverage_BS)
            inputs.append(context_B1D[:, 0])
        if self.input_feeding:
            inputs.append(old.fed_back_BD)
        hidden_BD, carry = self.decoder.step(jnp.concatenate(inputs, -1), old.carry, valid_B)
        if self.attention_order == "after":
            context_B1D, weight_B1S = self._attend(hidden_BD[:, None], source, old.coverage_BS)
        features_BD, weight_BS = self._combine(context_B1D[:, 0], hidden_BD), weight_B1S[:, 0]
        coverage_BS = None if old.coverage_BS is None else old.coverage_BS + weight_BS

        def update(old_BD: Array | None, new_BD: Array) -> Array | None:
            return None if old_BD is None else jnp.where(valid_B[:, None], new_BD, old_BD)

        fed_back_BD, coverage_BS = update(old.fed_back_BD, features_BD), update(old.coverage_BS, coverage_BS)
        return features_BD, weight_BS, DecoderState(carry, update(old.hidden_BD, hidden_BD), fed_back_BD, coverage_BS)

    def _attend(self, query_RTD: Array, source: EncodedMemory, coverage_RS: Array | None) -> tuple[Array, Array]:
        """c_t (R, T, width of the memory) and a_t (R, T, S) for R = B * K rows, K beams per source."""
        key_BSD = source.memory_BSD if source.key_BSD is None else source.key_BSD
        sources, (rows, length) = key_BSD.shape[0], query_RTD.shape[:2]
        coverage_BKS = None if coverage_RS is None else merge_beams(coverage_RS[:, None], sources)
        # (B * K, T, D) -> (B, Q, D), Q = K * T: the beams of a source share one product with its keys.
        score_BQS = self.scores(merge_beams(query_RTD, sources), key_BSD, coverage_BKS)
        weight_BQS = masked_softmax(score_BQS, source.valid_BS)
        context_BQD = jnp.einsum("bqs,bsd->bqd", weight_BQS, source.memory_BSD)
        return context_BQD.reshape(rows, length, -1), weight_BQS.reshape(rows, length, -1)

    def _combine(self, context: Array | None, hidden: Array) -> Array:
        """o_t; without a context h_t, projected to the width of the output table if it differs."""
        if context is not None:
            return jnp.tanh(self.mix(jnp.concatenate([context, hidden], -1)))
        return hidden if hidden.shape[-1] == self.width else self.mix(hidden)

    def _sample_inputs(self, tokens_BT: Array, state: State, valid_BT: Array) -> Array:
        """The true tokens, each replaced with probability `scheduled_sampling` by the model's prediction of it."""
        features_BTD = jax.lax.stop_gradient(self._decode(tokens_BT, state, valid_BT)[0])
        # One position at a time: the logits of all of them, (B, T, V), may not fit.
        predicted_TB = jax.lax.map(lambda x_BD: self.readout(x_BD).argmax(-1), jnp.moveaxis(features_BTD, 1, 0))
        position_BT = jnp.where(valid_BT, jnp.arange(tokens_BT.shape[1])[None], -1)
        # The last valid position before each one, whose prediction stands in for the token; -1 before the first.
        before_BT = jnp.roll(jax.lax.cummax(position_BT, axis=1), 1, axis=1).at[:, 0].set(-1)
        predicted_BT = jnp.take_along_axis(predicted_TB.T, jnp.maximum(before_BT, 0), axis=1).astype(tokens_BT.dtype)
        is_true_BT = keep_mask(self.make_rng("dropout"), self.scheduled_sampling, tokens_BT.shape)
        return jnp.where(is_true_BT | (before_BT < 0), tokens_BT, predicted_BT)

    def _unravel_state(self) -> tuple[Array, Callable[[Array], DecoderState]]:
        """The part of a row's state that the bridge computes from the encoder's final carries: zeros, and its shape."""
        hidden_D = jnp.zeros(self.decoder.width) if self.attention_order == "before" else None
        carry = jax.tree.map(lambda leaf: leaf[0], self.decoder.start(1))
        return ravel_pytree(DecoderState(carry, hidden_D))

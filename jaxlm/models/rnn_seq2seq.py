"""Sequence to sequence with recurrent networks: an encoder reads the source, a decoder says the target.

    m_1 .. m_S, final = encoder(x_1 .. x_S),    s_0 = tanh(W_0 final + b_0)
    "first":      s_t = f(s_{t-1}, e_t)                                          (Sutskever et al. 2014)
    "every":      s_t = f(s_{t-1}, [e_t; c]),  c = tanh(W_c final),  o_t = tanh(W_o [c; h_t])    (Cho et al. 2014)
    "attention":  c_t = sum_s a_ts m_s,  a_t = softmax_s score(query, m_s),  o_t = tanh(W_o [c_t; h_t])
      attend "after":    s_t = f(s_{t-1}, e_t), the query is h_t                 (Luong et al. 2015, section 3)
      attend "before":   s_t = f(s_{t-1}, [e_t; c_t]), the query is h_{t-1}      (Bahdanau et al. 2015, section 3.1)
      input feeding:     f also reads o_{t-1}                                    (Luong et al. 2015, section 3.3)
      coverage:          the score also sees sum_{t' < t} a_t'                   (Tu et al. 2016; See et al. 2017)
    p(y_t | y_<t, x) = softmax(E o_t + b)

e_t is the embedding of the token read at t, s_t all that the decoder carries, h_t the output of its top layer, f its
cells. `final` holds the last carries of every layer and direction of the encoder.
"""

from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.nn.attention.kv_cache import BeamInvariant, merge_beams
from jaxlm.nn.layers.dropout import Dropout, keep_mask
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.rnn.attention import AttentionScore, ScoreKind, masked_softmax
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch


@struct.dataclass
class EncodedMemory:
    """What stays as it is while the target is said. Fields that a model does not use are None.

    `key_BSD` is also None where the keys are the memory itself.
    """

    valid_BS: Array
    memory_BSD: Array | None = None
    key_BSD: Array | None = None
    context_BD: Array | None = None


@struct.dataclass
class DecoderState:
    """What every target token changes: the decoder's carries, h_{t-1}, o_{t-1}, the attention spent so far."""

    carry: Any
    hidden_BD: Array | None = None
    fed_back_BD: Array | None = None
    coverage_BS: Array | None = None


@struct.dataclass
class State:
    """What `extend` takes and gives back."""

    source: BeamInvariant
    decoder_state: DecoderState
    coverage_RS: Array | None = None


class Seq2Seq(nn.Module):
    """Recurrent encoder-decoder under the contract of `jaxlm.types.SequenceModel`; the equations are above.

    Attributes:
      vocab: ids in the one vocabulary of source and target.
      width: of the embeddings, of o_t and of "every" step's c.
      encoder, decoder: the recurrent networks; the encoder may be bidirectional.
      context: what the decoder knows of the source: `final` at the "first" step or at "every" step, or "attention".
      score: see `jaxlm.nn.rnn.attention`.
      attend: "after" the cell has read the token (Luong) or "before" (Bahdanau), so that it reads c_t too.
      input_feeding, coverage: see above. Without them, attending "after", all target positions are computed at once.
      dropout: on the embeddings and on o_t; that between layers is the recurrent networks' own.
      scheduled_sampling: the probability that the decoder reads, in training, its own likeliest token instead of the
        true one (Bengio et al. 2015). What it would say is found in a first pass over the true tokens, without a
        gradient, and read in a second one (Mihaylova and Martins 2019).
      tie: what shares a table: "all" (source and target embedding, output), "target" (the last two) or "none".
      covers: keep the attention that each source position got, for a coverage penalty (decoding only).
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
        self._check_options()
        table = nn.initializers.normal(self.width**-0.5)
        self.embedding = param_or_quantized(self, "embedding", table, (self.vocab, self.width))
        if self.tie_embeddings != "all":
            self.source_embedding = param_or_quantized(self, "source_embedding", table, (self.vocab, self.width))
        if self.tie_embeddings == "none":
            self.output = param_or_quantized(self, "output", table, (self.vocab, self.width))
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        self.bridge = Linear(sum(leaf.size for leaf in jax.tree.leaves(self._zero_state(1))))
        if self.context == "every":
            self.summary = Linear(self.width)
        if self.context == "attention":
            self.scores = AttentionScore(self.score, self.decoder.width, self.coverage)
        self.mix = Linear(self.width, bias=False)
        self.embedding_dropout, self.output_dropout = Dropout(self.dropout), Dropout(self.dropout)

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token: start, extend over the whole target, readout."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> State:
        """Encode the source. A recurrent state has room for any number of tokens: `capacity` changes nothing."""
        if batch.source_BS is None:
            raise UserError("the batch has no source, which Seq2Seq translates: use a language model (RecurrentLM)")
        if batch.source_segment_BS is not None or batch.target_segment_BT is not None:
            raise UserError("Seq2Seq reads one example a row, and these rows are packed: use Buckets, not Packing")
        valid_BS = batch.source_valid_BS
        table = self.embedding if self.tie_embeddings == "all" else self.source_embedding
        x_BSD = self.embedding_dropout(embed_ids(table, batch.source_BS))
        memory_BSD, carry = self.encoder(x_BSD, self.encoder.start(x_BSD.shape[0]), valid_BS)
        final_BD = _flatten_rows(carry)
        writer = _unflatten_rows(jnp.tanh(self.bridge(final_BD)), self._zero_state(1))
        if self.input_feeding:
            writer = replace(writer, fed_back_BD=jnp.zeros((x_BSD.shape[0], self.width), x_BSD.dtype))
        if self.coverage:
            writer = replace(writer, coverage_BS=jnp.zeros(valid_BS.shape, x_BSD.dtype))
        if self.context == "first":
            return State(BeamInvariant(EncodedMemory(valid_BS)), writer)
        if self.context == "every":
            return State(BeamInvariant(EncodedMemory(valid_BS, context_BD=jnp.tanh(self.summary(final_BD)))), writer)
        key_BSD = self.scores.project_keys(memory_BSD)
        source = BeamInvariant(EncodedMemory(valid_BS, memory_BSD, None if key_BSD is memory_BSD else key_BSD))
        return State(source, writer, (~valid_BS).astype(x_BSD.dtype) if self.track_coverage else None)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more target tokens -> features o_t (B, T, D) and the new state."""
        if self.scheduled_sampling > 0.0 and self.has_rng("dropout"):
            tokens_BT = self._sample_inputs(tokens_BT, state, valid_BT)
        features_BTD, weight_BTS, writer = self._decode(tokens_BT, state, valid_BT)
        covered_RS = state.coverage_RS
        if covered_RS is not None:
            covered_RS = covered_RS + jnp.where(valid_BT[..., None], weight_BTS, 0.0).sum(1)
        return self.output_dropout(features_BTD), State(state.source, writer, covered_RS)

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V)."""
        table = self.output if self.tie_embeddings == "none" else self.embedding
        logits = vocab_logits(features.reshape(-1, self.width), table) + self.output_bias[None]
        return logits.reshape(*features.shape[:-1], self.vocab)

    def cross_attention_weights(self, batch: Batch) -> Array:
        """The weights a_ts (B, T, S): how much each target position looked at each source position; 0 on padding."""
        if self.context != "attention":
            raise UserError(f'context="{self.context}" has no attention weights: only context="attention" looks back')
        _, weight_BTS, _ = self._decode(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return jnp.where(batch.target_valid_BT[:, :, None], weight_BTS, 0.0)

    def _decode(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, Array | None, DecoderState]:
        """Features (B, T, D), attention weights (B, T, S), and what the decoder carries after the last token."""
        x_BTD = self.embedding_dropout(embed_ids(self.embedding, tokens_BT))
        source, writer = state.source.value, state.decoder_state
        if self.input_feeding or self.coverage or self.attention_order == "before":
            return self._scan_steps(x_BTD, source, writer, valid_BT)
        context_BTD = weight_BTS = None
        if self.context == "every":
            slots = tokens_BT.shape[0] // source.context_BD.shape[0]
            context_B1D = jnp.repeat(source.context_BD, slots, axis=0)[:, None]
            context_BTD = jnp.broadcast_to(context_B1D, (*tokens_BT.shape, self.width))
            x_BTD = jnp.concatenate([x_BTD, context_BTD], -1)
        hidden_BTD, carry = self.decoder(x_BTD, writer.carry, valid_BT)
        if self.context == "attention":
            context_BTD, weight_BTS = self._attend(hidden_BTD, source, None)
        return self._combine(context_BTD, hidden_BTD), weight_BTS, DecoderState(carry)

    def _scan_steps(self, x_BTD: Array, source: EncodedMemory, decoder_state: DecoderState, valid_BT: Array):
        """The same where what the cells read, or the score, depends on the step before: a scan over the target."""

        def step(model: Seq2Seq, writer: DecoderState, column: tuple[Array, Array]):
            features_BD, weight_BS, writer = model._step(column[0], source, writer, column[1])
            return writer, (features_BD, weight_BS)

        # Masks that hold for all positions (of U, or locked dropout) come from one key, others from a key each.
        locked = self.decoder.variational or self.decoder.weight_drop > 0.0
        rngs: dict[Any, bool] = {"params": False, "dropout": not locked}
        scan = nn.scan(step, variable_broadcast="params", split_rngs=rngs, in_axes=1, out_axes=1)
        decoder_state, (features_BTD, weight_BTS) = scan(self, decoder_state, (x_BTD, valid_BT))
        return features_BTD, weight_BTS, decoder_state

    def _step(
        self, x_BD: Array, source: EncodedMemory, old: DecoderState, valid_B: Array
    ) -> tuple[Array, Array, DecoderState]:
        """One target token: o_t, a_t, and what is carried on."""
        read, weight_B1S = [x_BD], None
        if self.attention_order == "before":
            context_B1D, weight_B1S = self._attend(old.hidden_BD[:, None], source, old.coverage_BS)
            read.append(context_B1D[:, 0])
        if self.input_feeding:
            read.append(old.fed_back_BD)
        hidden_BD, carry = self.decoder.step(jnp.concatenate(read, -1), old.carry, valid_B)
        if self.attention_order == "after":
            context_B1D, weight_B1S = self._attend(hidden_BD[:, None], source, old.coverage_BS)
        features_BD, weight_BS = self._combine(context_B1D[:, 0], hidden_BD), weight_B1S[:, 0]
        new = DecoderState(
            carry,
            _where_valid(valid_B, hidden_BD, old.hidden_BD),
            _where_valid(valid_B, features_BD, old.fed_back_BD),
            None if old.coverage_BS is None else _where_valid(valid_B, old.coverage_BS + weight_BS, old.coverage_BS),
        )
        return features_BD, weight_BS, new

    def _attend(self, query_RTD: Array, source: EncodedMemory, coverage_RS: Array | None) -> tuple[Array, Array]:
        """c_t (R, T, width of the memory) and a_t (R, T, S) for R = B * K rows, K slots a source."""
        key_BSD = source.memory_BSD if source.key_BSD is None else source.key_BSD
        rows, (all_rows, length) = key_BSD.shape[0], query_RTD.shape[:2]
        covered_BKS = None if coverage_RS is None else merge_beams(coverage_RS[:, None], rows)
        weight_BQS = masked_softmax(self.scores(merge_beams(query_RTD, rows), key_BSD, covered_BKS), source.valid_BS)
        context_BQD = jnp.einsum("bqs,bsd->bqd", weight_BQS, source.memory_BSD)
        return context_BQD.reshape(all_rows, length, -1), weight_BQS.reshape(all_rows, length, -1)

    def _combine(self, context: Array | None, hidden: Array) -> Array:
        """o_t; where there is no context it is h_t, mapped to the width of the output table."""
        if context is not None:
            return jnp.tanh(self.mix(jnp.concatenate([context, hidden], -1)))
        return hidden if hidden.shape[-1] == self.width else self.mix(hidden)

    def _sample_inputs(self, tokens_BT: Array, state: State, valid_BT: Array) -> Array:
        """The true tokens, but with probability `scheduled_sampling` what the model says there after the one before."""
        features_BTD = jax.lax.stop_gradient(self._decode(tokens_BT, state, valid_BT)[0])
        said_TB = jax.lax.map(lambda x_BD: self.readout(x_BD).argmax(-1), jnp.moveaxis(features_BTD, 1, 0))
        place_BT = jnp.where(valid_BT, jnp.arange(tokens_BT.shape[1])[None], -1)
        before_BT = jnp.roll(jax.lax.cummax(place_BT, axis=1), 1, axis=1).at[:, 0].set(-1)
        said_BT = jnp.take_along_axis(said_TB.T, jnp.maximum(before_BT, 0), axis=1).astype(tokens_BT.dtype)
        true_BT = keep_mask(self.make_rng("dropout"), self.scheduled_sampling, tokens_BT.shape)
        return jnp.where(true_BT | (before_BT < 0), tokens_BT, said_BT)

    def _zero_state(self, rows: int) -> DecoderState:
        """What the encoder's final state is mapped to, all zeros."""
        hidden_BD = jnp.zeros((rows, self.decoder.width)) if self.attention_order == "before" else None
        return DecoderState(self.decoder.start(rows), hidden_BD)

    def _check_options(self) -> None:
        """Raises UserError on options that contradict each other."""
        asked = {
            "input_feeding": self.input_feeding,
            "coverage": self.coverage,
            "attention_order": self.attention_order == "before",
        }
        asked["track_coverage"] = self.track_coverage
        wrong = [name for name, on in asked.items() if on and self.context != "attention"]
        if wrong:
            raise UserError(f'{", ".join(wrong)}: only context="attention" has it, and context is "{self.context}"')
        if self.decoder.bidirectional:
            raise UserError("a bidirectional decoder would read the tokens that it has to say: only the encoder may be")


def _flatten_rows(tree: Any) -> Array:
    """All leaves of each row in one vector: (B, D)."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], -1)


def _unflatten_rows(flat_BD: Array, template: Any) -> Any:
    """The inverse of `_flat`, in the shapes of `like` but for the batch."""
    leaves, tree = jax.tree.flatten(template)
    ends = [sum(leaf[0].size for leaf in leaves[: i + 1]) for i in range(len(leaves) - 1)]
    parts = jnp.split(flat_BD, ends, -1)
    return jax.tree.unflatten(tree, [x.reshape(-1, *leaf.shape[1:]) for x, leaf in zip(parts, leaves, strict=True)])


def _where_valid(valid_B: Array, new_BD: Array, old_BD: Array | None) -> Array | None:
    """What is carried on: the new, at an invalid position the old, and nothing where the model has no use for it."""
    return None if old_BD is None else jnp.where(valid_B[:, None], new_BD, old_BD)

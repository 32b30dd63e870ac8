"""The recurrent language model (Mikolov et al. 2010): a hidden state that summarizes all tokens so far.

    e_t = E w_t                       E the embeddings
    h_t = g(U h_{t-1} + W e_t)        g and the gates are those of the cell
    y_t = softmax(V h_t + b)          V the output, or E again (tied)

With a two-layer LSTM and dropout it is the model of Zaremba et al. 2014; with tied embeddings, locked dropout,
embedding dropout and weight drop that of Merity et al. 2018 (AWD-LSTM), whose regularization terms are
`activation_penalty`.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.nn.layers.dropout import Dropout, EmbeddingDropout, LockedDropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.rnn.layers import Recurrent, RNNState
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch, SequenceModel


@struct.dataclass
class State:
    """The carry of every layer; `segment_BT`: the segments of a packed batch, else None."""

    carry: RNNState
    segment_BT: Array | None = None


class RecurrentLM(SequenceModel):
    """p(next token | tokens so far); a source is ignored.

    Attributes:
      vocab: size of the vocabulary, V.
      width: width of the embeddings.
      recurrent: the network, as in `Recurrent(LSTM(650), layers=2, dropout=0.5)`; its `variational` applies here too.
      dropout: dropout rate of the network's output, and of its input unless `input_dropout` is given.
      input_dropout: dropout rate of the embeddings; None: `dropout`.
      embedding_dropout: rate at which word types are dropped (Gal and Ghahramani 2016).
      tie_embeddings: whether the output table V is the embedding table E (Press and Wolf 2017); if the widths differ, h
        is first projected to the width of E.
      init_scale: tables are initialized uniformly between -init_scale and +init_scale.
      embedding_scale: factor of the input embeddings. Tied embeddings need more than 1, such as sqrt(width) (Vaswani et
        al. 2017, section 3.4): values that suit the output are a weak input in the first hundreds of steps.
    """

    vocab: int
    width: int
    recurrent: Recurrent
    dropout: float = 0.0
    input_dropout: float | None = None
    embedding_dropout: float = 0.0
    tie_embeddings: bool = True
    init_scale: float = 0.1
    embedding_scale: float = 1.0

    def setup(self) -> None:
        if self.recurrent.bidirectional:
            raise UserError(
                "a language model with a bidirectional network would see the token that it has to predict: "
                "set model.recurrent.bidirectional to False"
            )

        def init_table(key, shape):
            return jax.random.uniform(key, shape, minval=-self.init_scale, maxval=self.init_scale)

        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        if not self.tie_embeddings:
            self.output = param_or_quantized(self, "output", init_table, (self.vocab, self.recurrent.width))
        elif self.recurrent.width != self.width:
            shape = self.recurrent.width, self.width
            self.projection = self.param("projection", nn.initializers.xavier_uniform(), shape)
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        dropout = LockedDropout if self.recurrent.variational else Dropout
        self.on_input = dropout(self.dropout if self.input_dropout is None else self.input_dropout)
        self.on_output = dropout(self.dropout)
        self.on_types = EmbeddingDropout(self.embedding_dropout, self.vocab)

    def start(self, batch: Batch, capacity: int) -> State:
        """Return a zero carry; it has a fixed size, so `capacity` is ignored."""
        return State(self.recurrent.start(batch.num_rows), batch.target_segment_BT)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        _, dropped_BTD, state = self.activations(tokens_BT, state, valid_BT)
        return dropped_BTD, state

    def activations(
        self, tokens_BT: Array, state: State, valid_BT: Array, perturbation_BTD: Array | None = None
    ) -> tuple[Array, Array, State]:
        """Return the output of the network before dropout, after it (the features), and the new state.

        The gradient of a loss with respect to `perturbation_BTD` (zeros) is dL/dh_t, see `Recurrent`.
        """
        x_BTD = self.embedding_scale * self.on_input(self.on_types(embed_ids(self.embedding, tokens_BT), tokens_BT))
        raw_BTD, carry = self.recurrent(x_BTD, state.carry, valid_BT, perturbation_BTD, state.segment_BT)
        return raw_BTD, self.on_output(raw_BTD), replace(state, carry=carry)

    def readout(self, features: Array) -> Array:
        if self.tie_embeddings and self.recurrent.width != self.width:
            x_RD = features.reshape(-1, features.shape[-1]) @ self.projection
            features = x_RD.reshape(*features.shape[:-1], self.width)
        return vocab_logits(features, self.embedding if self.tie_embeddings else self.output, self.output_bias)


def activation_penalty(raw_BTD: Array, dropped_BTD: Array, valid_BT: Array, alpha: float, beta: float) -> Array:
    """Return alpha * mean_D (dropout(h_t))^2 + beta * mean_D (h_t - h_{t-1})^2, a sum over valid tokens and pairs.

    Activation and temporal activation regularization (Merity, McCann and Socher 2017).
    """
    activation_BT = jnp.where(valid_BT, jnp.square(dropped_BTD).mean(-1), 0.0)
    is_pair_BT = valid_BT[:, 1:] & valid_BT[:, :-1]
    temporal_BT = jnp.where(is_pair_BT, jnp.square(jnp.diff(raw_BTD, axis=1)).mean(-1), 0.0)
    return alpha * activation_BT.sum() + beta * temporal_BT.sum()

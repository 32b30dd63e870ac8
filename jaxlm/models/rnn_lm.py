"""The recurrent language model (Mikolov et al. 2010): one hidden state that has read everything so far.

    e_t = E w_t                       E the embeddings
    h_t = g(U h_{t-1} + W e_t)        U carries the past on, W lets the token in; g and the gates are the cell's
    y_t = softmax(V h_t + b)          V the output, or E again (tied)

With an LSTM of two layers and dropout it is the model of Zaremba et al. 2014; with tied embeddings, locked dropout,
dropped word types and weight drop that of Merity et al. 2018 (AWD-LSTM), whose two penalties are `activation_penalty`.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.nn.layers.dropout import Dropout, EmbeddingDropout, LockedDropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.nn.rnn.layers import RNNState as Carries
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch


@struct.dataclass
class State:
    """The carry of every layer. `segment_BT` numbers the examples of packed rows, else None."""

    carry: Carries
    segment_BT: Array | None = None


class RecurrentLM(nn.Module):
    """p(next token | tokens so far) under the contract of `jaxlm.types.SequenceModel`; a source is not looked at.

    Attributes:
      vocab: ids in the vocabulary.
      width: of the embeddings.
      recurrent: the network, as in `Recurrent(LSTM(650), layers=2, dropout=0.5)`; its `variational` holds here too.
      dropout: on the network's output, and on its input unless `input_dropout` says otherwise.
      input_dropout: on the embeddings.
      embedding_dropout: rate at which whole word types are dropped (Gal and Ghahramani 2016).
      tie: V is E (Press and Wolf 2017); where the widths differ, h is first projected to the width of E.
      init_scale: embeddings start uniform in +- this.
      input_scale: of the embeddings as input. Above 1 where they are tied (sqrt(width) in Vaswani et al. 2017, section
        3.4): a table that is small enough for the output says little to the network for the first hundreds of steps.
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
                "a language model whose network is bidirectional would be told the token that it is to predict: "
                "set model.recurrent.bidirectional to False"
            )
        hidden, table = self.recurrent.width, self._init_uniform
        self.embedding = param_or_quantized(self, "embedding", table, (self.vocab, self.width))
        if not self.tie_embeddings:
            self.output = param_or_quantized(self, "output", table, (self.vocab, hidden))
        elif hidden != self.width:
            self.projection = self.param("projection", nn.initializers.xavier_uniform(), (hidden, self.width))
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        dropout = LockedDropout if self.recurrent.variational else Dropout
        self.on_input = dropout(self.dropout if self.input_dropout is None else self.input_dropout)
        self.on_output = dropout(self.dropout)
        self.on_types = EmbeddingDropout(self.embedding_dropout, self.vocab)

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next token: start, extend over the whole target, readout."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> State:
        """Zeros."""
        return State(self.recurrent.start(jax.tree.leaves(batch)[0].shape[0]), batch.target_segment_BT)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more tokens -> features (B, T, H) and the new state."""
        _, dropped_BTD, state = self.activations(tokens_BT, state, valid_BT)
        return dropped_BTD, state

    def activations(
        self, tokens_BT: Array, state: State, valid_BT: Array, perturbation_BTD: Array | None = None
    ) -> tuple[Array, Array, State]:
        """`extend`, with the network's output before dropout and after it: what `activation_penalty` asks for.

        The second is the features. `nudge_BTD` (zeros) is where dL/dh_t can be read off, see `Recurrent`.
        """
        x_BTD = self.embedding_scale * self.on_input(self.on_types(embed_ids(self.embedding, tokens_BT), tokens_BT))
        raw_BTD, carry = self.recurrent(x_BTD, state.carry, valid_BT, perturbation_BTD, state.segment_BT)
        return raw_BTD, self.on_output(raw_BTD), replace(state, carry=carry)

    def readout(self, features: Array) -> Array:
        """(..., H) -> float32 logits (..., V)."""
        x, table = features.reshape(-1, features.shape[-1]), self.embedding if self.tie_embeddings else self.output
        if self.tie_embeddings and self.recurrent.width != self.width:
            x = x @ self.projection
        logits = vocab_logits(x, table) + self.output_bias[None]
        return logits.reshape(*features.shape[:-1], self.vocab)

    def _init_uniform(self, key, shape):
        return jax.random.uniform(key, shape, minval=-self.init_scale, maxval=self.init_scale)


def activation_penalty(raw_BTD: Array, dropped_BTD: Array, valid_BT: Array, alpha: float, beta: float) -> Array:
    """Activation regularisation and its temporal sister (Merity, McCann and Socher 2017), summed over valid tokens.

        alpha * mean_D (dropped h_t)^2  +  beta * mean_D (h_t - h_{t-1})^2

    The second term is asked of neighbours that are both valid. Divide by the count of tokens, as with the loss itself.
    """
    large_BT = jnp.where(valid_BT, jnp.square(dropped_BTD).mean(-1), 0.0)
    apart_BT = jnp.where(valid_BT[:, 1:] & valid_BT[:, :-1], jnp.square(jnp.diff(raw_BTD, axis=1)).mean(-1), 0.0)
    return alpha * large_BT.sum() + beta * apart_BT.sum()

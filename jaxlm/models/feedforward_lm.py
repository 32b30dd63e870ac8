"""The feed-forward neural language model (Bengio et al. 2003, "A Neural Probabilistic Language Model", equation 1).

    x = [C(w_{t-n+2}); ...; C(w_t)],    y = b + W x + U tanh(d + H x),    p(w_{t+1}) = softmax(y)

C is the table of embeddings; the context is n - 1 words; W, the direct connections, are optional.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.nn.layers.context_window import Window, initial_window, slide_window
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.weights.weight_formats import WeightFormat, param_or_quantized
from jaxlm.types import Array, Batch, SequenceModel


class FeedForwardLM(SequenceModel):
    """p(next word | the last order - 1 words). Features are tanh(d + H x), followed by x with direct connections.

    Attributes:
      vocab: size of the vocabulary, V.
      order: n; the state is the last n - 1 ids, `<s>` before the first one.
      width, hidden: width of an embedding, and of the hidden layer.
      direct_connections: whether the matrix W connects the embeddings to the logits.
      tie_embeddings: whether the output matrix U is the embedding table C (Press and Wolf 2017); needs hidden == width.
      dropout: dropout rate of the concatenated embeddings x and of the hidden layer.
      embedding_scale: factor of the embeddings in x, see `jaxlm.models.rnn_lm.RecurrentLM`.
      dtype: dtype of activations and matrix products; parameters and logits are always float32.
    """

    vocab: int
    order: int = 5
    width: int = 60
    hidden: int = 100
    direct_connections: bool = True
    tie_embeddings: bool = False
    dropout: float = 0.0
    embedding_scale: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    special: SpecialIds = OWN_SPECIAL_IDS

    def setup(self) -> None:
        if self.order < 2:
            raise UserError(f"a feed-forward model of order {self.order}: expected 2 or more (model.order)")
        if self.tie_embeddings and self.hidden != self.width:
            raise UserError(
                f"model.tie_embeddings shares the embeddings of width {self.width} with a hidden layer of "
                f"{self.hidden}: set model.hidden to model.width, or model.tie_embeddings to False"
            )
        init_table = nn.initializers.normal(self.width**-0.5)
        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        self.up = Linear(self.hidden, dtype=self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.vocab,))
        xavier = nn.initializers.xavier_uniform()
        if not self.tie_embeddings:
            self.output = param_or_quantized(self, "output", xavier, (self.vocab, self.hidden))
        if self.direct_connections:
            self.direct_output = self.param("direct", xavier, ((self.order - 1) * self.width, self.vocab))
        self.embedding_dropout, self.hidden_dropout = Dropout(self.dropout), Dropout(self.dropout)

    def start(self, batch: Batch, capacity: int) -> Window:
        """Return a window of n - 1 times `<s>`."""
        return initial_window(batch.num_rows, self.order - 1, self.special.start, batch.target_segment_BT)

    def extend(self, tokens_BT: Array, state: Window, valid_BT: Array) -> tuple[Array, Window]:
        """Read T more tokens, all at once: return features (B, T, D) and the last n - 1 ids."""
        context_BTK, state = slide_window(state, tokens_BT, valid_BT, self.special.start)
        x_RD = (self.embedding_scale * embed_ids(self.embedding, context_BTK.reshape(-1))).astype(jnp.dtype(self.dtype))
        x_RD = self.embedding_dropout(x_RD.reshape(-1, (self.order - 1) * self.width))  # (B T, K times the width)
        features_RD = self.hidden_dropout(jnp.tanh(self.up(x_RD)))
        if self.direct_connections:
            features_RD = jnp.concatenate([features_RD, x_RD], axis=1)
        return features_RD.reshape(*tokens_BT.shape, features_RD.shape[1]), state

    def readout(self, features: Array) -> Array:
        table = self.embedding if self.tie_embeddings else self.output
        if not self.direct_connections:
            return vocab_logits(features, table, self.bias)
        if not isinstance(table, WeightFormat):
            return vocab_logits(features, jnp.concatenate([table, self.direct_output.T], axis=1), self.bias)
        # A quantized or packed table cannot be concatenated with W: two products, then the bias.
        logits = vocab_logits(features[..., : self.hidden], table)
        logits = logits + vocab_logits(features[..., self.hidden :], self.direct_output.T)
        return logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))

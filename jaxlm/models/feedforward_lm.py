"""The feed-forward neural language model (Bengio et al. 2003, "A Neural Probabilistic Language Model", equation 1).

    x = [C(w_{t-n+1}); ...; C(w_t)],    y = b + W x + U tanh(d + H x),    p(w_{t+1}) = softmax(y)

C is the table of embeddings, n - 1 words are looked at, W (the direct connection) may be left out.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.data.tokenizers.base import BOS
from jaxlm.errors import UserError
from jaxlm.nn.layers.context_window import Window, initial_window, slide_window
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.weights.weight_formats import WEIGHT_FORMATS, param_or_quantized
from jaxlm.types import Array, Batch


class FeedForwardLM(nn.Module):
    """p(next word | the last order - 1 words), under the contract of `jaxlm.types.SequenceModel`.

    Features are tanh(d + H x), with x behind it if there is a direct connection.

    Attributes:
      vocab: ids in the vocabulary V.
      order: n; the state is the last n - 1 ids, `<s>` before the first one.
      width, hidden: of an embedding, and of the hidden layer.
      direct: W, from the embeddings to the logits.
      tie: U is the table of embeddings (Press and Wolf 2017); needs hidden == width.
      dropout: on x and on the hidden layer.
      input_scale: of the embeddings in x, see `jaxlm.models.rnn_lm.RecurrentLM`.
      dtype: of activations and products; parameters and logits are float32 whatever it says.
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

    def setup(self) -> None:
        if self.order < 2:
            raise UserError(f"a feed-forward model of order {self.order}: expected 2 or more (model.order)")
        if self.tie_embeddings and self.hidden != self.width:
            raise UserError(
                f"model.tie_embeddings shares the embeddings of width {self.width} with a hidden layer of "
                f"{self.hidden}: "
                "set model.hidden to model.width, or model.tie_embeddings to False"
            )
        self.embedding = param_or_quantized(
            self, "embedding", nn.initializers.normal(self.width**-0.5), (self.vocab, self.width)
        )
        self.up = Linear(self.hidden, dtype=self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.vocab,))
        spread, reach = nn.initializers.xavier_uniform(), (self.order - 1) * self.width
        if not self.tie_embeddings:
            self.output = param_or_quantized(self, "output", spread, (self.vocab, self.hidden))
        if self.direct_connections:
            self.direct_output = self.param("direct", spread, (reach, self.vocab))
        self.embedding_dropout, self.hidden_dropout = Dropout(self.dropout), Dropout(self.dropout)

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> Window:
        """n - 1 times `<s>`."""
        return initial_window(jax.tree.leaves(batch)[0].shape[0], self.order - 1, BOS, batch.target_segment_BT)

    def extend(self, tokens_BT: Array, state: Window, valid_BT: Array) -> tuple[Array, Window]:
        """Read T more tokens, all at once -> features (B, T, D) and the last n - 1 ids."""
        context_BTK, state = slide_window(state, tokens_BT, valid_BT, BOS)
        x_RD = (self.embedding_scale * embed_ids(self.embedding, context_BTK.reshape(-1))).astype(jnp.dtype(self.dtype))
        x_RD = self.embedding_dropout(x_RD.reshape(-1, (self.order - 1) * self.width))
        features_RD = self.hidden_dropout(jnp.tanh(self.up(x_RD)))
        if self.direct_connections:
            features_RD = jnp.concatenate([features_RD, x_RD], axis=1)
        return features_RD.reshape(*tokens_BT.shape, features_RD.shape[1]), state

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V)."""
        x_RD, table = features.reshape(-1, features.shape[-1]), self.embedding if self.tie_embeddings else self.output
        if not self.direct_connections:
            logits = vocab_logits(x_RD, table)
        elif isinstance(table, WEIGHT_FORMATS):
            logits = vocab_logits(x_RD[:, : self.hidden], table) + vocab_logits(
                x_RD[:, self.hidden :], self.direct_output.T
            )
        else:
            logits = vocab_logits(x_RD, jnp.concatenate([table, self.direct_output.T], axis=1))
        return (logits + self.bias[None]).reshape(*features.shape[:-1], self.vocab)

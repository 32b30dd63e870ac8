"""The encoder-only Transformer with a head that fills gaps: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019).

x_s = LN(E w_s + P s + Y type_s)                            E, P, Y learned tables
layer:  x <- LN(x + attention(x, x)),  x <- LN(x + FFN(x))
y_s = softmax(E LN(f(W x_s + c)) + b)                       what stands, or stood, at s
z = softmax(V tanh(U x_0 + d) + e)                          whether the second span of the row follows the first
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.nn.attention.mask import MaskRule, attention_mask, token_positions
from jaxlm.nn.attention.multi_head import Attention
from jaxlm.nn.layers.dropout import Dropout
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.layers.linear import ACTIVATIONS, FeedForward, Linear
from jaxlm.nn.layers.norm import Norm
from jaxlm.nn.layers.positions import PositionalEncoding
from jaxlm.nn.transformer.block import TransformerBlock
from jaxlm.nn.transformer.layer_stack import Stack
from jaxlm.nn.weights.weight_formats import param_or_quantized
from jaxlm.types import Array, Batch


class Encoder(nn.Module):
    """p(token at s | all tokens of the source, some of them masked).

    Attributes:
      vocab: ids in the vocabulary.
      width, heads, hidden, layers: model width D, attention heads, width of the feed-forward net, depth.
      max_length: rows of the table of positions.
      first_position: the row of the first token (RoBERTa leaves two free, so that 514 rows are for 512 tokens).
      types: kinds of text in a row (BERT: the first sentence and the second).
      pairs: whether it also has the head that tells if the second span follows the first.
      norm, norm_epsilon: "post" or "pre", see `jaxlm.nn.layers.norm.Norm`.
      activation: of the feed-forward net and of the head.
      dropout, attention_dropout: on embeddings and sub-layers, and on attention weights.
      deviation: of the normal that maps and tables start from.
      dtype: of activations and products; parameters, scores, softmax and logits are float32 whatever it says.
      scan, remat: see `jaxlm.nn.transformer.layer_stack.Stack`.
      head: whether there is the head that fills gaps; without it `features` is all that is told, and `pairs` says
        nothing.
      pooled: whether the map U of the first position is there without `pairs`, which read from it: published files
        have it, and a head for classes starts from it (`jaxlm.models.finetune_heads`).
    """

    vocab: int
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    layers: int = 12
    max_length: int = 512
    position_offset: int = 0
    num_token_types: int = 2
    nsp_head: bool = False
    norm: Literal["post", "pre"] = "post"
    norm_epsilon: float = 1e-12
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = False
    remat: bool = False
    mlm_head: bool = True
    add_pooling_layer: bool = False

    def setup(self) -> None:
        starts = (self.init_std, self.init_std)
        attention = Attention(
            self.width, self.heads, self.attention_dropout, self.dtype, init_std=starts[0], out_init_std=starts[1],
            parent=None,
        )  # fmt: skip
        ffn = FeedForward(self.width, self.hidden, self.activation, 0.0, self.dtype, True, *starts, parent=None)
        norm = Norm(self.norm, "layer", self.norm_epsilon)
        block = TransformerBlock(attention, ffn, norm, self.dropout, self.dtype, parent=None)
        self.stack = Stack(block, self.layers, self.scan, self.remat)
        table = nn.initializers.normal(self.init_std)
        self.embedding = param_or_quantized(self, "embedding", table, (self.vocab, self.width))
        self.type_embedding = self.param("type_embedding", table, (self.num_token_types, self.width))
        self.position = PositionalEncoding(self.width, "learned", self.max_length, self.init_std)
        self.embedding_norm = norm.make_layer(self.dtype)
        self.embedding_dropout = Dropout(self.dropout)
        if self.norm == "pre":
            self.last_norm = norm.make_layer(self.dtype)
        if self.add_pooling_layer or (self.mlm_head and self.nsp_head):
            self.pooler = Linear(self.width, True, self.dtype, self.init_std)
        if not self.mlm_head:
            return
        self.transform = Linear(self.width, True, self.dtype, self.init_std)
        self.transform_norm = norm.make_layer(self.dtype)
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        if self.nsp_head:
            self.next_sentence = Linear(2, True, "float32", self.init_std)

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, S, V) of what stands at each place of the source; the features (B, S, D) of one without a head."""
        features_BSD = self.features(batch)
        if self.is_initializing():
            self._init_all_heads(features_BSD, batch.source_valid_BS)
        return self.readout(features_BSD) if self.mlm_head else features_BSD

    def features(self, batch: Batch) -> Array:
        """The source, read: (B, S, D). Kinds of text are 0 where the batch names none.

        Raises UserError for a source that is longer than the table of positions.
        """
        x_BSD = self.stack(*self._embed_tokens(batch))
        return self.last_norm(x_BSD) if self.norm == "pre" else x_BSD

    def self_attention_weights(self, batch: Batch) -> Array:
        """How much each position looks at each, by layer and head: (B, L, N, S, S)."""
        x_BSD, seen = self._embed_tokens(batch)
        return self.stack.attention_weights(x_BSD, seen.mask() if isinstance(seen, MaskRule) else seen)

    def _embed_tokens(self, batch: Batch) -> tuple[Array, Array | MaskRule]:
        """What the layers read, and which positions see which."""
        valid_BS, segment_BS = batch.source_valid_BS, batch.source_segment_BS
        if valid_BS.shape[1] + self.position_offset > self.max_length:
            reach = self.max_length - self.position_offset
            raise UserError(
                f"a source of {valid_BS.shape[1]} tokens, but positions reach {reach}: shorten the input (in training "
                f"--batching.max-length {reach}, of rows with gaps --batching.length {reach}) or train with a larger "
                "model.max_length"
            )
        type_BS = jnp.zeros((1, 1), jnp.int32) if batch.token_type_BS is None else jnp.asarray(batch.token_type_BS)
        types = jnp.take(self.type_embedding, type_BS, axis=0, mode="clip")
        position_BS = token_positions(valid_BS, segment_BS) + self.position_offset
        x_BSD = embed_ids(self.embedding, jnp.asarray(batch.source_BS)) + self.position(position_BS)
        x_BSD = self.embedding_norm((x_BSD + jnp.broadcast_to(types, x_BSD.shape)).astype(jnp.dtype(self.dtype)))
        return self.embedding_dropout(x_BSD), attention_mask(segment_BS, segment_BS, valid_BS, valid_BS)

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V)."""
        flat = self.transform(features.reshape(-1, self.width))
        flat = self.transform_norm(ACTIVATIONS[self.activation](flat))
        logits = vocab_logits(flat, self.embedding) + self.output_bias[None]
        return logits.reshape(*features.shape[:-1], self.vocab)

    def pool(self, features_BSD: Array, valid_BS: Array) -> Array:
        """(B, D): tanh(U x_0 + d) of each row's first position."""
        first_B11 = jnp.argmax(valid_BS, axis=1)[:, None, None]
        return jnp.tanh(self.pooler(jnp.take_along_axis(features_BSD, first_B11, axis=1)[:, 0]))

    def next_sentence_logits(self, features_BSD: Array, valid_BS: Array) -> Array:
        """Float32 logits (B, 2) of 0, the second span follows the first, and of 1, it is from elsewhere."""
        return self.next_sentence(self.pool(features_BSD, valid_BS).astype(jnp.float32))

    def _init_all_heads(self, features_BSD: Array, valid_BS: Array) -> None:
        """Parameters are made by what is called: those that the features and the gaps do not need."""
        if self.mlm_head and self.nsp_head:
            self.next_sentence_logits(features_BSD, valid_BS)
        elif self.add_pooling_layer:
            self.pool(features_BSD, valid_BS)

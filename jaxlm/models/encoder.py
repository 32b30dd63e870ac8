"""The encoder-only Transformer with a masked language model head: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019).

x_s = LN(E w_s + P s + Y type_s)                            E, P, Y learned tables
layer:  x <- LN(x + attention(x, x)),  x <- LN(x + FFN(x))
y_s = softmax(E LN(f(W x_s + c)) + b)                       the token at s, which may be masked in the input
z = softmax(V tanh(U x_0 + d) + e)                          next sentence prediction from the pooled first position
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.distributed.platforms import resolve_dtype
from jaxlm.nn.attention.mask import UNSORTED, MaskRule, TokenOrder, attention_mask, token_order, token_positions
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
      vocab: size of the vocabulary, V.
      width, heads, hidden, layers: model width D (`d_model`), heads N, feed-forward width F (`d_ff`), layers L.
      max_length: number of rows of the position table.
      position_offset: row of the position table for the first token (RoBERTa: 2, so that 514 rows serve 512 tokens).
      num_token_types: number of token types, each with an embedding (BERT: 2, the first and the second sentence).
      nsp_head: whether there is a next sentence prediction head; only with `mlm_head`.
      norm, norm_epsilon: layer norm "post" or "pre", and its epsilon, see `jaxlm.nn.layers.norm.Norm`.
      activation: activation function of the feed-forward layers and of the masked language model head.
      dropout, attention_dropout: dropout rate of embeddings and sub-layers, and of the attention weights.
      init_std: standard deviation of the normal initialization.
      dtype: dtype of activations and matrix products, "auto": bfloat16 on accelerators and float32 on a CPU;
        parameters, scores, softmax and logits are always float32.
      scan, remat: compile one layer and scan over all; recompute activations in the backward pass, see `Stack`.
      mlm_head: whether there is a masked language model head; without it the model has features only.
      add_pooling_layer: whether the pooling layer tanh(U x + d) exists without `nsp_head`: published checkpoints
        contain it, and classification heads start from it (`jaxlm.models.finetune_heads`).
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
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    scan: bool = False
    remat: bool = False
    mlm_head: bool = True
    add_pooling_layer: bool = False

    def setup(self) -> None:
        dtype = resolve_dtype(self.dtype)
        init: Any = {"init_std": self.init_std, "out_init_std": self.init_std, "parent": None}
        attention = Attention(self.width, self.heads, dropout=self.attention_dropout, dtype=dtype, **init)
        ffn = FeedForward(self.width, self.hidden, activation=self.activation, dtype=dtype, **init)
        norm = Norm(self.norm, epsilon=self.norm_epsilon)
        block = TransformerBlock(attention, ffn, norm=norm, dropout=self.dropout, dtype=dtype, parent=None)
        self.stack = Stack(block, self.layers, scan=self.scan, remat=self.remat)
        init_table = nn.initializers.normal(self.init_std)
        self.embedding = param_or_quantized(self, "embedding", init_table, (self.vocab, self.width))
        self.type_embedding = self.param("type_embedding", init_table, (self.num_token_types, self.width))
        self.position = PositionalEncoding(self.width, "learned", max_length=self.max_length, init_std=self.init_std)
        self.embedding_norm = norm.make_layer(dtype)
        self.embedding_dropout = Dropout(self.dropout)
        if self.norm == "pre":
            self.last_norm = norm.make_layer(dtype)
        if self.add_pooling_layer or (self.mlm_head and self.nsp_head):
            self.pooler = Linear(self.width, dtype=dtype, init_std=self.init_std)
        if not self.mlm_head:
            return
        self.transform = Linear(self.width, dtype=dtype, init_std=self.init_std)
        self.transform_norm = norm.make_layer(dtype)
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab,))
        if self.nsp_head:
            self.next_sentence = Linear(2, init_std=self.init_std)

    def __call__(self, batch: Batch) -> Array:
        """Return logits (B, S, V) of every source token, or without `mlm_head` the features (B, S, D)."""
        features_BSD = self.features(batch)
        if self.is_initializing():
            # Parameters are created by the calls that use them: call the heads that the logits do not need.
            if self.mlm_head and self.nsp_head:
                self.next_sentence_logits(features_BSD, batch.source_valid_BS)
            elif self.add_pooling_layer:
                self.pool(features_BSD, batch.source_valid_BS)
        return self.readout(features_BSD) if self.mlm_head else features_BSD

    def features(self, batch: Batch) -> Array:
        """Return the encoded source, (B, S, D). Token types are 0 if the batch has none."""
        order = token_order(batch.source_valid_BS, batch.source_segment_BS)
        x_BSD = self.stack(*self._embed_tokens(batch, order))
        return order.restore(self.last_norm(x_BSD) if self.norm == "pre" else x_BSD)

    def self_attention_weights(self, batch: Batch) -> Array:
        """Return the attention weights of all layers and heads, (B, L, N, S, S)."""
        x_BSD, mask_BSS = self._embed_tokens(batch)
        return self.stack.attention_weights(x_BSD, mask_BSS.mask() if isinstance(mask_BSS, MaskRule) else mask_BSS)

    def _embed_tokens(self, batch: Batch, order: TokenOrder = UNSORTED) -> tuple[Array, Array | MaskRule]:
        """The input of the first layer, and the attention mask, of positions in this order."""
        valid_BS, segment_BS, type_BS = order.sort(batch.source_valid_BS), batch.source_segment_BS, batch.token_type_BS
        type_BS = jnp.zeros((1, 1), jnp.int32) if type_BS is None else jnp.asarray(order.sort(type_BS))
        types = jnp.take(self.type_embedding, type_BS, axis=0, mode="clip")
        ids_BS = jnp.asarray(order.sort(batch.source_BS))
        counted_BS, padding = valid_BS, self.position_offset - 1
        if self.position_offset:  # RoBERTa: a padding token that is part of the text has the position before the first
            counted_BS = jnp.asarray(valid_BS) & (ids_BS != padding)
        position_BS = token_positions(counted_BS, segment_BS) + self.position_offset
        if self.position_offset:
            position_BS = jnp.where(ids_BS == padding, padding, position_BS)
        bound = valid_BS.shape[1] + self.position_offset
        x_BSD = embed_ids(self.embedding, ids_BS) + self.position(position_BS, valid_BS, bound)
        dtype = jnp.dtype(resolve_dtype(self.dtype))
        x_BSD = self.embedding_norm((x_BSD + jnp.broadcast_to(types, x_BSD.shape)).astype(dtype))
        return self.embedding_dropout(x_BSD), attention_mask(valid_BS, segment_BS, order)

    def readout(self, features: Array) -> Array:
        """Map features (..., D) to float32 logits (..., V)."""
        x_RD = self.transform(features.reshape(-1, self.width))
        x_RD = self.transform_norm(ACTIVATIONS[self.activation](x_RD))
        return vocab_logits(x_RD, self.embedding, self.output_bias).reshape(*features.shape[:-1], self.vocab)

    def pool(self, features_BSD: Array, valid_BS: Array) -> Array:
        """Return tanh(U x_0 + d) of each row's first valid position, (B, D)."""
        first_B11 = jnp.argmax(valid_BS, axis=1)[:, None, None]
        return jnp.tanh(self.pooler(jnp.take_along_axis(features_BSD, first_B11, axis=1)[:, 0]))

    def next_sentence_logits(self, features_BSD: Array, valid_BS: Array) -> Array:
        """Return float32 logits (B, 2): class 0, the second span follows the first; class 1, it is a random one."""
        return self.next_sentence(self.pool(features_BSD, valid_BS).astype(jnp.float32))

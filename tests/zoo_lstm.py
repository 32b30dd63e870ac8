"""A tiny recurrent model under the contract: nothing in training, decoding or checkpoints knows that it is an LSTM.

i, f, g, o = split(W [x_t; h_{t-1}] + b)
c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)          (Hochreiter and Schmidhuber 1997)
a_t = softmax(h_t . memory),  features_t = tanh(W_c [a_t memory; h_t])               (Luong et al. 2015, "dot")
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.nn.dropout import Dropout
from jaxlm.nn.linear import Linear
from jaxlm.types import Array, Batch


@struct.dataclass
class Carry:
    cell_BD: Array
    hidden_BD: Array


def zero_carry(rows: int, width: int) -> Carry:
    return Carry(jnp.zeros((rows, width)), jnp.zeros((rows, width)))


class LSTM(nn.Module):
    """Reads x_BTD from a carry; an invalid position leaves the carry as it was."""

    width: int

    @nn.compact
    def __call__(self, x_BTD: Array, carry: Carry, valid_BT: Array) -> tuple[Array, Carry]:
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (x_BTD.shape[-1] + self.width, 4 * self.width))
        bias = self.param("bias", nn.initializers.zeros_init(), (4 * self.width,))

        def read(carry: Carry, column: tuple[Array, Array]) -> tuple[Carry, Array]:
            x_BD, valid_B = column
            gates = jnp.concatenate([x_BD, carry.hidden_BD], -1) @ kernel + bias[None]
            let_in, keep, new, out = jnp.split(gates, 4, -1)
            cell_BD = jax.nn.sigmoid(keep) * carry.cell_BD + jax.nn.sigmoid(let_in) * jnp.tanh(new)
            after = Carry(cell_BD, jax.nn.sigmoid(out) * jnp.tanh(cell_BD))
            carry = jax.tree.map(lambda a, b: jnp.where(valid_B[:, None], a, b), after, carry)
            return carry, carry.hidden_BD

        carry, hidden_TBD = jax.lax.scan(read, carry, (jnp.moveaxis(x_BTD, 1, 0), valid_BT.T))
        return jnp.moveaxis(hidden_TBD, 0, 1), carry


@struct.dataclass
class Seq2SeqState:
    memory_BSD: Array
    source_valid_BS: Array
    carry: Carry


class LSTMSeq2Seq(nn.Module):
    """An LSTM reads the source, another one says the target and looks back at all that the first one was."""

    vocab: int
    width: int = 16
    dropout: float = 0.0

    def setup(self) -> None:
        self.embedding = self.param("embedding", nn.initializers.normal(0.5), (self.vocab, self.width))
        self.encoder, self.decoder = LSTM(self.width), LSTM(self.width)
        self.mix, self.output = Linear(self.width), Linear(self.vocab)
        self.embedding_dropout = Dropout(self.dropout)

    def __call__(self, batch: Batch) -> Array:
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> Seq2SeqState:
        x_BSD = self.embedding_dropout(self.embedding[batch.source_BS])
        carry = zero_carry(x_BSD.shape[0], self.width)
        memory_BSD, carry = self.encoder(x_BSD, carry, batch.source_valid_BS)
        return Seq2SeqState(memory_BSD, batch.source_valid_BS, carry)

    def extend(self, tokens_BT: Array, state: Seq2SeqState, valid_BT: Array) -> tuple[Array, Seq2SeqState]:
        x_BTD = self.embedding_dropout(self.embedding[tokens_BT])
        hidden_BTD, carry = self.decoder(x_BTD, state.carry, valid_BT)
        score_BTS = jnp.einsum("btd,bsd->bts", hidden_BTD, state.memory_BSD)
        score_BTS = jnp.where(state.source_valid_BS[:, None], score_BTS, jnp.finfo(jnp.float32).min)
        context_BTD = jnp.einsum("bts,bsd->btd", jax.nn.softmax(score_BTS), state.memory_BSD)
        mixed_BTD = self.mix(jnp.concatenate([context_BTD, hidden_BTD], -1))
        return jnp.tanh(mixed_BTD), state.replace(carry=carry)

    def readout(self, features: Array) -> Array:
        return self.output(features)

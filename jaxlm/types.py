"""The contract of all sequence models, their batches, and the shape letters used in names.

A sequence model, from the n-gram model to Llama, is a Flax Linen module with three methods:

    state = start(batch, capacity)                              before the first target token
    features_BTD, state = extend(tokens_BT, state, valid_BT)    after T more target tokens
    logits_BTV = readout(features_BTD)                          unnormalized log p(next token)

`start` encodes the source, if there is one, and allocates room for `capacity` tokens (the KV cache of a Transformer).
`extend` reads any number of tokens at once, and the state after it is the same as after reading them one by one.
`readout` is the language model head. The library uses a model only through these methods:

| use                | calls                                                                       |
|--------------------|-----------------------------------------------------------------------------|
| training, scoring  | `start(batch, 0)`, one `extend` over the whole target, `readout`            |
| prefill            | `start(batch, capacity)`, one `extend` over the prompt                      |
| a step of decoding | `readout` of the last position, choice of a token, `extend` with T = 1      |
| beam search        | the same with K states per row, which are reordered on axis 0 between steps |

For readers of Hugging Face: `extend` is `forward(input_ids, past_key_values)` without the head, `readout` is `lm_head`.
For readers of Flax: the state is an argument and a result instead of a mutable collection, so every method is a pure
function, called as `model.apply({"params": params}, batch, 0, method="start")`. Features are separate from logits
because logits are large: the loss computes them in chunks (`jaxlm.losses`), decoding for the last position only.

`tests/test_laws.py` holds every model to the laws of the contract: reading in pieces equals reading at once, and
padding, batch mates, packing and sharding leave no trace in the result. A new model is a subclass of `SequenceModel`
that obeys them; training, decoding, scoring and ensembles then work without further code.

Arrays carry their axes in their names: `score_BNTS` has rank 4, with these axes in this order.

| letter | axis                                   | letter | axis                                   |
|--------|----------------------------------------|--------|----------------------------------------|
| B      | batch row                              | D      | model width (`d_model`)                |
| T      | target position                        | F      | feed-forward width (`d_ff`), features  |
| S      | source position                        | N      | attention head                         |
| P      | prompt position                        | G      | key and value head, or gates of a cell |
| K      | beam of a row                          | H      | channel of a head (`head_dim`)         |
| R      | row of a matrix: B * T, or beams B * K | V      | vocabulary                             |
| L      | layer                                  | C      | cache position, or class               |
| Q      | query of a row, K * T                  | W      | character of a word                    |
"""

from typing import Any

import flax.linen as nn
import jax
from flax import struct

Array = jax.Array

Params = Any

ArrayOrNone = Any
"""A JAX or NumPy array, or None."""

State = Any
"""A pytree whose leaves have the batch as axis 0: beam search repeats and reorders its rows."""


@struct.dataclass
class Batch:
    """One batch of examples. Axis 0 of every field is the batch; a field that is not used is None.

    Attributes:
      source_BS: ids of the source, int32. Read as a whole, by an encoder or before the target.
      source_valid_BS: True on tokens, False on padding, which may stand anywhere in a row.
      source_segment_BS: with packing, the number of the example that a token belongs to, from 1; 0 on padding. Tokens
        attend to their own segment only.
      target_BT: ids that the model reads, int32: BOS and the target.
      target_valid_BT, target_segment_BT: as of the source.
      label_BT: ids that the model predicts, int32: the target and EOS, `target_BT` shifted by one.
      loss_mask_BT: True on the labels that the loss covers, such as an answer and its end; None: all valid ones.
      token_label_BS: the class of each source token, int32; -1: none. Tags, or masked tokens.
      class_B: the class of each row, int32; -1: none.
      value_B: the regression target of each row, float32; NaN: none.
      character_BSW: the characters of each source token, int32, 0 after the last one.
      token_type_BS: the part of the input of each source token, from 0, int32 (sentence pairs).
      reset_B: if rows are windows of continuous streams, True where a new stream begins.
      other: a second answer to the prompt of each row, a batch of the target fields alone (preferences).
      reference_logprob_BA: log-probabilities that a reference model gives to the answers of a row, in nats, float32.
      baseline_B: a number that belongs to the whole batch, in each of its rows (KTO's z0), float32.
      old_logprob_BT, reference_logprob_BT: log-probabilities of the labels under the model that sampled them, and under
        a reference model, in nats, float32 (rewards).
      advantage_B, advantage_BT: how much better a sampled answer, or a token of it, is than expected, float32.
      old_value_BT, return_BT: PPO's expected rest of the reward, as of the sampling, and a better estimate of it.
      state: if rows are such windows, the model's state after the previous batch, which the train step puts here.
    """

    source_BS: ArrayOrNone = None
    source_valid_BS: ArrayOrNone = None
    source_segment_BS: ArrayOrNone = None
    target_BT: ArrayOrNone = None
    target_valid_BT: ArrayOrNone = None
    target_segment_BT: ArrayOrNone = None
    label_BT: ArrayOrNone = None
    token_label_BS: ArrayOrNone = None
    class_B: ArrayOrNone = None
    value_B: ArrayOrNone = None
    character_BSW: ArrayOrNone = None
    reset_B: ArrayOrNone = None
    state: State = None
    token_type_BS: ArrayOrNone = None
    loss_mask_BT: ArrayOrNone = None
    other: Any = None
    reference_logprob_BA: ArrayOrNone = None
    baseline_B: ArrayOrNone = None
    old_logprob_BT: ArrayOrNone = None
    reference_logprob_BT: ArrayOrNone = None
    advantage_B: ArrayOrNone = None
    advantage_BT: ArrayOrNone = None
    old_value_BT: ArrayOrNone = None
    return_BT: ArrayOrNone = None

    @property
    def num_rows(self) -> int:
        """B."""
        return jax.tree.leaves(self)[0].shape[0]

    @property
    def label_valid_BT(self) -> Array:
        """True on the labels that count: those of valid tokens that the loss covers."""
        return self.target_valid_BT if self.loss_mask_BT is None else self.target_valid_BT & self.loss_mask_BT


class SequenceModel(nn.Module):
    """Base of all models of p(target) and p(target | source): the contract above."""

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token, all at once."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def max_target_tokens(self, source_tokens: Any = 0) -> Any:
        """Return the most target tokens that `extend` reads after a source of this length; None: any number.

        Positions are counted in tokens: padding has none, and each segment of a packed row counts for itself.
        """
        return None

    def start(self, batch: Batch, capacity: int) -> State:
        """Return the state before the first target token, with room for `capacity` tokens.

        Capacity 0 promises a single `extend`, over the whole target: nothing is kept, and `batch` may be packed.
        """
        raise NotImplementedError

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more tokens, of which invalid ones leave no trace: return their features (B, T, D) and the state."""
        raise NotImplementedError

    def readout(self, features: Array) -> Array:
        """Map features (..., D) to float32 logits (..., V)."""
        raise NotImplementedError

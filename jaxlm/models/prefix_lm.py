"""Translation with one network: a language model reads the source, its EOS as the separator, and then the target.

p(target | source) is what a language model over "source EOS target EOS" says of the second half: a recurrent network
carries the source in its state (Sutskever et al. 2014 with one network in place of two), a Transformer attends to it
(Liu et al. 2018, section 4.2.3) and may read it both ways (Raffel et al. 2020, section 3.2.1: a prefix LM). The loss is
on the target alone, since features of the source are never handed out.
"""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.models.decoder import Decoder
from jaxlm.types import Array, Batch


@struct.dataclass
class State:
    """The inner model's state; with capacity 0 also the source, which is then read together with the target."""

    model_state: Any
    source_BS: Array | None = None
    source_valid_BS: Array | None = None


class PrefixLM(nn.Module):
    """`model`, a language model under `jaxlm.types.SequenceModel`, as a translation model under the same contract.

    bidirectional: tokens of the source see all of it, not only what is before them; `model` is then a Decoder.
    """

    model: nn.Module
    bidirectional_source: bool = False

    @property
    def vocab(self) -> int:
        """Ids in the vocabulary of source and target."""
        return self.model.vocab

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token."""
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def start(self, batch: Batch, capacity: int) -> State:
        """The state after the source, with room for `capacity` target tokens.

        With capacity 0 the one `extend` to come reads source and target at once: one pass over the network, and an
        attention model needs no cache.
        """
        if batch.source_BS is None:
            raise UserError("the batch has no source, which PrefixLM puts before the target: use its inner model alone")
        if batch.source_segment_BS is not None or batch.target_segment_BT is not None:
            raise UserError("PrefixLM reads one example a row, and these rows are packed: use Buckets, not Packing")
        if self.bidirectional_source and not isinstance(self.model, Decoder):
            raise UserError(
                f"a {type(self.model).__name__} reads from left to right: bidirectional_source = True needs a Decoder"
            )
        if capacity == 0:
            return State(self.model.start(batch, 0), batch.source_BS, batch.source_valid_BS)
        inner = self.model.start(batch, batch.source_BS.shape[1] + capacity)
        return State(self._extend_model(batch.source_BS, inner, batch.source_valid_BS, batch.source_BS.shape[1])[1])

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more target tokens: their features and the state after them."""
        length = 0 if state.source_BS is None else state.source_BS.shape[1]
        if length:
            tokens_BT = jnp.concatenate([state.source_BS, tokens_BT], 1)
            valid_BT = jnp.concatenate([state.source_valid_BS, valid_BT], 1)
        features, inner = self._extend_model(tokens_BT, state.model_state, valid_BT, length)
        features = features[:, length:]
        return features, replace(state, model_state=inner, source_BS=None, source_valid_BS=None)

    def _extend_model(
        self, tokens_BT: Array, model_state: Any, valid_BT: Array, prefix_length: int
    ) -> tuple[Array, Any]:
        """`extend` of the model; the first `source` tokens are of the source."""
        prefix = (prefix_length,) if self.bidirectional_source and prefix_length else ()
        return self.model.extend(tokens_BT, model_state, valid_BT, *prefix)

    def readout(self, features: Array) -> Array:
        """Features -> float32 logits (..., V)."""
        return self.model.readout(features)

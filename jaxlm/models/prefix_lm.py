"""Translation with one network: a language model reads the source, EOS as the separator, and then the target.

p(target | source) is the probability that a language model over "source EOS target EOS" gives to the second
half. A recurrent network carries the source in its state (Sutskever et al. 2014, with one network in place of
two); a Transformer attends to it (Liu et al. 2018, section 4.2.3), in both directions if it is a prefix LM
(Raffel et al. 2020, section 3.2.1). The loss covers the target only, since source features are never returned.
"""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.models.decoder import Decoder
from jaxlm.types import Array, Batch, SequenceModel


@struct.dataclass
class State:
    """The inner model's state; with capacity 0 also the source, which is then read together with the target."""

    model_state: Any
    source_BS: Array | None = None
    source_valid_BS: Array | None = None


class PrefixLM(SequenceModel):
    """A translation model made of a language model.

    Attributes:
      model: the language model, a `SequenceModel`.
      bidirectional_source: source tokens attend to the whole source instead of the tokens before them; `model`
        is then a Decoder.
    """

    model: nn.Module
    bidirectional_source: bool = False

    @property
    def vocab(self) -> int:
        return self.model.vocab

    def max_target_tokens(self, source_tokens: Any = 0) -> Any:
        limit = self.model.max_target_tokens() if isinstance(self.model, SequenceModel) else None
        return None if limit is None else limit - source_tokens

    def start(self, batch: Batch, capacity: int) -> State:
        """Return the state after the source; with capacity 0 the only `extend` reads source and target in one pass."""
        if batch.source_BS is None:
            raise UserError("the batch has no source, which PrefixLM puts before the target: use its inner model alone")
        if batch.source_segment_BS is not None or batch.target_segment_BT is not None:
            raise UserError("PrefixLM reads one example a row, and these rows are packed: use Buckets, not Packing")
        if self.bidirectional_source and not isinstance(self.model, Decoder):
            raise UserError(
                f"a {type(self.model).__name__} reads from left to right: bidirectional_source = True needs a Decoder"
            )
        if capacity == 0:
            return State(self.model.start(batch, 0), batch.source_BS, source_valid_BS=batch.source_valid_BS)
        length = batch.source_BS.shape[1]
        model_state = self.model.start(batch, length + capacity)
        return State(self._extend_model(batch.source_BS, model_state, batch.source_valid_BS, length)[1])

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        length = 0 if state.source_BS is None else state.source_BS.shape[1]
        if length:
            tokens_BT = jnp.concatenate([state.source_BS, tokens_BT], 1)
            valid_BT = jnp.concatenate([state.source_valid_BS, valid_BT], 1)
        features, model_state = self._extend_model(tokens_BT, state.model_state, valid_BT, length)
        state = replace(state, model_state=model_state, source_BS=None, source_valid_BS=None)
        return features[:, length:], state

    def _extend_model(self, tokens_BT: Array, model_state: Any, valid_BT: Array, length: int) -> tuple[Array, Any]:
        prefix = (length,) if self.bidirectional_source and length else ()
        return self.model.extend(tokens_BT, model_state, valid_BT, *prefix)

    def readout(self, features: Array) -> Array:
        return self.model.readout(features)

"""A published model under the ids of this library: 0 pad, 1 unknown, 2 BOS, 3 EOS, and from 4 on those of its own text.

Published vocabularies put their special ids anywhere, and some have one where we have two (GPT-2 begins and ends a text
with the same token). Our id i >= 4 is theirs, i - 4; the four first ones stand for ids that are named here.
"""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.data.tokenizers.base import BOS, EOS, NUM_SPECIALS, PAD, UNK
from jaxlm.errors import UserError
from jaxlm.types import Array, Batch, State

NEVER = -1e9
"""The logit of an id that is never said; finite, so that a product with 0 is 0."""

RUN_FIELDS = ("dropout", "attention_dropout", "activation_dropout", "init_std", "dtype", "scan", "remat")
"""Fields that say how a model is trained or run, and not what it says."""

HEAD_FIELDS = ("mlm_head", "nsp_head")
"""Fields that say which heads an encoder has."""


def numbered(model: Any) -> Any:
    """The model under the numbering, or the model itself where it has none."""
    return model.model if isinstance(model, Renumbered) else model


class Renumbered(nn.Module):
    """`model` under `jaxlm.types.SequenceModel`, with ids as above.

    Attributes:
      model: whose ids are its own.
      bos: what its texts, or its answers, begin with.
      eos: what ends them; it is said as our EOS alone.
      unknown: its id for what it has no piece for.
      never: ids that it must not say.
    """

    model: nn.Module
    bos: int
    eos: int
    unknown: int = 0
    never: tuple[int, ...] = ()

    @property
    def vocab(self) -> int:
        """Ids, the four special ones included."""
        return self.model.vocab + NUM_SPECIALS

    def __call__(self, batch: Batch) -> Array:
        """Logits (B, T, V) of every next target token: start, extend over the whole target, readout.

        Of an encoder (B, S, V) of what stands at each place of the source, or its features where it has no head.
        """
        if hasattr(type(self.model), "features"):
            said = self.model(replace(batch, source_BS=self._theirs(batch.source_BS)))
            return self._ours(said) if self.model.mlm_head else said
        features_BTD, _ = self.extend(batch.target_BT, self.start(batch, 0), batch.target_valid_BT)
        return self.readout(features_BTD)

    def features(self, batch: Batch) -> Array:
        """An encoder's features (B, S, D)."""
        return self.model.features(replace(batch, source_BS=self._theirs(batch.source_BS)))

    def next_sentence_logits(self, features_BSD: Array, valid_BS: Array) -> Array:
        """An encoder's logits (B, 2) of a second span that follows, and of one that does not."""
        return self.model.next_sentence_logits(features_BSD, valid_BS)

    def self_attention_weights(self, *arguments: Any) -> Array:
        """How much each position looks at each, by layer and head, of a model that can tell; as its own."""
        first, *rest = arguments
        read = (
            replace(first, source_BS=self._theirs(first.source_BS)) if isinstance(first, Batch) else self._theirs(first)
        )
        return self.model.self_attention_weights(read, *rest)

    def start(self, batch: Batch, capacity: int) -> State:
        """The model's own state."""
        source_BS = None if batch.source_BS is None else self._theirs(batch.source_BS)
        return self.model.start(replace(batch, source_BS=source_BS), capacity)

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more tokens -> features (B, T, D) and the new state."""
        return self.model.extend(self._theirs(tokens_BT), state, valid_BT)

    def readout(self, features: Array) -> Array:
        """(..., D) -> float32 logits (..., V): those of the model, each at its id here."""
        return self._ours(self.model.readout(features))

    def _ours(self, logits: Array) -> Array:
        """Logits (..., V - 4) of their ids -> those of ours."""
        eos, blank = logits[..., self.eos, None], jnp.full((*logits.shape[:-1], EOS), NEVER, logits.dtype)
        said = logits.at[..., jnp.array((self.eos, *self.never))].set(NEVER)
        return jnp.concatenate([blank, eos, said], axis=-1)

    def cross_attention_weights(self, batch: Batch) -> Array:
        """What each target position looks at, of a model that can tell: (B, T, S)."""
        theirs = replace(batch, source_BS=self._theirs(batch.source_BS), target_BT=self._theirs(batch.target_BT))
        return self.model.cross_attention_weights(theirs)

    def trained_like(self, model: nn.Module) -> "Renumbered":
        """This model with the heads of another one of its kind, trained and run as that one is.

        Raises UserError for one of another kind.
        """
        if type(model) is not type(self.model):
            raise UserError(f"a published {type(self.model).__name__} cannot stand in the place of the experiment's "
                            f"{type(model).__name__}: choose an experiment of that kind")  # fmt: skip
        fields = {name: getattr(model, name) for name in (*RUN_FIELDS, *HEAD_FIELDS) if hasattr(model, name)}
        return self.clone(model=self.model.clone(**fields, parent=None), parent=None)

    def _theirs(self, tokens: Array) -> Array:
        special = {PAD: self.unknown, UNK: self.unknown, BOS: self.bos, EOS: self.eos}
        table = jnp.array([special[i] for i in range(NUM_SPECIALS)], jnp.int32)
        tokens = jnp.asarray(tokens, jnp.int32)
        return jnp.where(tokens < NUM_SPECIALS, table[jnp.minimum(tokens, EOS)], tokens - NUM_SPECIALS)

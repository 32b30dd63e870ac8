"""The contract that every model keeps, and the key of the shape letters used in names.

| letter | axis                          | letter | axis                                 |
|--------|-------------------------------|--------|--------------------------------------|
| B      | batch row                     | D      | model width                          |
| T      | target position               | F      | hidden width of the feed-forward net |
| S      | source position               | N      | attention heads                      |
| P      | prompt position               | H      | width of one head                    |
| K      | beam slot                     | V      | vocabulary                           |
| L      | layer                         | C      | cache position (capacity), or class  |
| W      | character of a word           |        |                                      |

`score_BNTS` is a rank 4 array of those axes in that order.
"""

from typing import Any, Protocol

import jax
from flax import struct

Array = jax.Array

Params = Any

ArrayOrNone = Any
"""A JAX or NumPy array, or None."""

State = Any
"""Any pytree in which axis 0 of every leaf is the batch: a beam repeats rows and takes rows, and nothing else."""


@struct.dataclass
class Batch:
    """One batch. A field that a task does not use is None; every field has the batch as axis 0.

    `target_BT` is what the model reads (it starts with BOS) and `label_BT` what it must say next (it ends with EOS).
    The `valid` masks are True on real tokens. With packing, several examples share a row: `*_segment_*` number them
    from 1 and are 0 on padding; a token sees only its own segment.

    `token_type_BS` are kinds of text within a row, numbered from 0 (the first sentence of a pair and the second).
    What is to be said about a source is `token_label_BS`, an id for each token (-1 where nothing is asked),
    or `label_B`, a class for the row or, in float32, a number (NaN where none is asked). `character_BSW`
    spells each source token in ids of characters, 0 after its last one.

    Where rows are windows of a stream that goes on from batch to batch, `reset_B` is True where a stream begins, and
    the train step puts the model's state after the batch before into `state`.
    """

    source_BS: ArrayOrNone = None
    source_valid_BS: ArrayOrNone = None
    source_segment_BS: ArrayOrNone = None
    target_BT: ArrayOrNone = None
    target_valid_BT: ArrayOrNone = None
    target_segment_BT: ArrayOrNone = None
    label_BT: ArrayOrNone = None
    token_label_BS: ArrayOrNone = None
    label_B: ArrayOrNone = None
    character_BSW: ArrayOrNone = None
    reset_B: ArrayOrNone = None
    state: State = None
    token_type_BS: ArrayOrNone = None


class SequenceModel(Protocol):
    """What training, decoding and scoring ask of a sequence model; reached by `model.apply(..., method=...)`.

    Training is `extend` over the whole target with `capacity=0`, prefill is `extend` over a prompt, and a decoding
    step is `extend` with T = 1. `tests/test_laws.py` holds every model to it.
    """

    def start(self, batch: Batch, capacity: int) -> State:
        """All that is known before the first target token. Room for `capacity` more tokens (0: one `extend` only)."""
        ...

    def extend(self, tokens_BT: Array, state: State, valid_BT: Array) -> tuple[Array, State]:
        """Read T more tokens: features_BT(D) and the state after them. Invalid tokens leave no trace."""
        ...

    def readout(self, features: Array) -> Array:
        """Features (..., D) -> float32 logits (..., V)."""
        ...

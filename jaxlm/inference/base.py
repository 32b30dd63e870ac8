"""What all inference shares: answers, progress callbacks, and batches of encoded lines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds, Tokenizer
from jaxlm.types import Batch, Params

ProgressCallback = Callable[[int], None] | None
"""Called with the number of lines that were finished since the last call."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model, its parameters, and the tokenizer that its ids belong to: all that inference needs.

    Attributes:
      model: a Linen module under the contract of `jaxlm.types`.
    """

    model: Any
    params: Params
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Answer:
    """What `predict` says of one line: `text` for a person, `record` for `--jsonl`."""

    text: str
    json: dict[str, Any] = field(default_factory=dict)


EVAL_BATCH_TOKENS = 8192
"""Positions a batch, where nothing is trained."""


def eval_batches_with_progress(
    columns: dict[str, Ragged],
    batch_tokens: int,
    progress: ProgressCallback = None,
    max_length: int | None = None,
    special: SpecialIds = OWN_SPECIAL_IDS,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row once, in at most `longest` positions: (row_B, batch), and `progress` told of the rows."""
    for row_B, batch in eval_batches(columns, batch_tokens, max_length=max_length, special=special):
        yield row_B, batch
        if progress:
            progress(int((row_B >= 0).sum()))

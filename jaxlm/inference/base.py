"""The base of inference: trained models, answers, progress callbacks, batches of encoded lines."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.models.decoder import Decoder
from jaxlm.models.properties import max_input_positions, max_target_positions
from jaxlm.types import Batch, Params

ProgressCallback = Callable[[int], None] | None
"""Called with the number of lines that were finished since the last call."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model (a Linen module under the contract of `jaxlm.types`), its parameters, and its tokenizer."""

    model: Any
    params: Params
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Answer:
    """The prediction for one line: `text` for a person, `json` for `--jsonl`."""

    text: str
    json: dict[str, Any] = field(default_factory=dict)


EVAL_BATCH_TOKENS = 8192
"""Positions of a batch in inference."""


def non_blank(lines: Sequence[str]) -> list[int]:
    """The indices of the lines that are not blank: only they reach the model."""
    return [index for index, line in enumerate(lines) if line.strip()]


def to_single_line(text: str, strip: bool = True) -> str:
    """N lines in, N lines out, even from an untrained model that generates a line break."""
    line = text.replace("\r", " ").replace("\n", " ")
    return line.strip() if strip else line


def token_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token by itself; EOS is written "</s>"."""
    return ["</s>" if token == tokenizer.special.eos else tokenizer.decode([[token]])[0] for token in ids]


def cut_to_positions(model: Any, columns: Columns, max_length: int | None = None) -> tuple[Columns, np.ndarray]:
    """The columns "source" and "target" with rows of at most `max_length` tokens, EOS included, for which the model
    has positions, and which of the rows were cut, (N,).
    """
    cut, source_tokens = dict(columns), np.zeros(1, np.int64)
    for name in ("source", "target"):
        limit = max_input_positions(model) if name == "source" else max_target_positions(model, source_tokens)
        limits = [value for value in (limit, max_length) if value is not None]
        if name in columns and limits:
            cut[name] = columns[name].truncate(np.maximum(functools.reduce(np.minimum, limits) - 1, 0))
        if name == "source" and name in columns:
            source_tokens = cut[name].lengths + 1
    return cut, np.any([cut[name].lengths < columns[name].lengths for name in columns], axis=0)


def batches_for_model(
    trained: TrainedModel, columns: Columns, batch_tokens: int, progress: ProgressCallback = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row once, cut to the positions of the model: (row_B, batch), where row_B is -1 for padding rows."""
    max_length, special = max_input_positions(trained.model), trained.tokenizer.special
    if max_length is not None:
        max_length *= getattr(trained.model, "num_sequences", 1)  # each sequence of a row has positions of its own
        max_length += isinstance(trained.model, Decoder)  # alone, it does not read the EOS of a row
    for row_B, batch in eval_batches(columns, batch_tokens, max_length=max_length, special=special):
        yield row_B, batch
        if progress:
            progress(int((row_B >= 0).sum()))


def apply_to_rows(
    function: Callable, trained: TrainedModel, columns: Columns, batch_tokens: int, progress: ProgressCallback = None
) -> list[np.ndarray]:
    """The output of a function of batches for every row."""
    outputs: dict[int, np.ndarray] = {}
    for row_B, batch in batches_for_model(trained, columns, batch_tokens, progress):
        outputs |= dict(zip(row_B.tolist(), np.asarray(function(batch)), strict=True))
    return [outputs[row] for row in range(len(columns["source"]))]

"""Lines with gaps in, lines with the gaps filled out."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.pretraining.token_types import mask_token_id
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel
from jaxlm.inference.translate import to_single_line
from jaxlm.models.properties import max_input_positions
from jaxlm.types import Array, Batch, Params

NUM_CANDIDATES = 5
"""Tokens that are told of each gap."""

PAD_MULTIPLE = 64
"""Places are padded to a multiple, lest every batch be compiled anew."""


def mask_positions(is_masked_BS: np.ndarray) -> np.ndarray:
    """The flat places that are True, padded with a place that does not exist."""
    at = np.flatnonzero(is_masked_BS)
    return np.pad(at, (0, -len(at) % PAD_MULTIPLE), constant_values=is_masked_BS.size).astype(np.int32)


def fill_masks(
    trained: TrainedModel,
    mask_token: str,
    lines: Sequence[str],
    batch_tokens: int,
    progress: ProgressCallback,
) -> list[Answer]:
    """Each line with every gap filled by itself, and under "masks" the likeliest tokens of each with probabilities.

    A line that is longer than the model's positions is cut there.
    """
    rows, hidden = _encode_masked(trained.tokenizer, mask_token, lines), mask_token_id(trained.tokenizer, mask_token)
    found: list[Answer] = [Answer(to_single_line(line), _json_record(line, line, [])) for line in lines]
    asked = [index for index, row in enumerate(rows) if hidden in row]
    if not asked:
        return found
    special, fill = trained.tokenizer.special, _jitted_fill(trained.model)
    column = Ragged.from_rows([[special.start, *rows[index]] for index in asked])
    longest = max_input_positions(trained.model)
    for row_B, batch in eval_batches({"source": column}, batch_tokens, max_length=longest, special=special):
        at = mask_positions(batch.source_valid_BS & (batch.source_BS == hidden))
        best_MK, share_MK = (np.asarray(x) for x in fill(trained.params, batch, at))
        of_row = np.where(at < batch.source_BS.size, at // batch.source_BS.shape[1], -1)
        for row in np.flatnonzero(row_B >= 0).tolist():
            index = asked[row_B[row]]
            found[index] = _fill_line(trained.tokenizer, lines[index], rows[index], hidden, best_MK[of_row == row],
                                   share_MK[of_row == row])  # fmt: skip
        if progress:
            progress(int((row_B >= 0).sum()))
    return found


def _fill_line(
    tokenizer: Tokenizer, line: str, ids: list[int], hidden: int, best_GK: np.ndarray, share_GK: np.ndarray
) -> Answer:
    best = iter(best_GK[:, 0].tolist())
    text = to_single_line(tokenizer.decode([[next(best, i) if i == hidden else i for i in ids]])[0])
    gaps = [
        [{"text": tokenizer.decode([[i]])[0], "probability": share} for i, share in zip(*row, strict=True)]
        for row in zip(best_GK.tolist(), share_GK.tolist(), strict=True)
    ]
    return Answer(text, _json_record(line, text, gaps))


def _json_record(line: str, text: str, gaps: list) -> dict[str, Any]:
    return {"source": line, "prediction": to_single_line(text), "masks": gaps}


def _encode_masked(tokenizer: Tokenizer, mask_token: str, lines: Sequence[str]) -> list[list[int]]:
    """The ids of each line; the id of a space that some tokenizers put before a symbol belongs to what it hides."""
    *before, hidden = (
        tokenizer.encode([mask_token])[0].tolist() if mask_token else [mask_token_id(tokenizer, mask_token)]
    )
    rows = [ids.tolist() for ids in tokenizer.encode(lines)]
    if not before:
        return rows
    space = before[0]
    return [
        [i for i, after in zip(row, [*row[1:], -1], strict=False) if not (i == space and after == hidden)]
        for row in rows
    ]


@lru_cache(maxsize=8)
def _jitted_fill(model: Any) -> Any:
    """(parameters, batch, places) -> the likeliest tokens of each place and their probabilities, (M, BEST) both."""

    def fill(params: Params, batch: Batch, at_M: Array) -> tuple[Array, Array]:
        features_BSD = model.apply({"params": params}, batch, method="features")
        flat = features_BSD.reshape(-1, features_BSD.shape[-1])[at_M]
        share_MV = jax.nn.softmax(model.apply({"params": params}, flat, method="readout"))
        share_MK, best_MK = jax.lax.top_k(share_MV, NUM_CANDIDATES)
        return best_MK, share_MK

    return jax.jit(fill)

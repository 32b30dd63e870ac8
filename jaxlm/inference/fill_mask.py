"""Fill-mask inference: predict the token behind each mask of a line."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxlm.data.pretraining.token_types import mask_token_id
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel, batches_for_model, to_single_line
from jaxlm.types import Array, Batch, Params

NUM_CANDIDATES = 5
"""Tokens of which a record gives the probabilities, for each mask."""

PAD_MULTIPLE = 64
"""The number of masks is padded to a multiple of this, so that few shapes are compiled."""


def mask_positions(is_masked_BS: np.ndarray) -> np.ndarray:
    """The flat positions that are True, padded with a position beyond the last."""
    position_M = np.flatnonzero(is_masked_BS)
    padding = (0, -len(position_M) % PAD_MULTIPLE)
    return np.pad(position_M, padding, constant_values=is_masked_BS.size).astype(np.int32)


def fill_masks(
    trained: TrainedModel, mask_token: str, lines: Sequence[str], batch_tokens: int, progress: ProgressCallback
) -> list[Answer]:
    """Each line, cut at the model's positions, with its masks filled; "masks": the most probable tokens of each."""
    tokenizer, fill = trained.tokenizer, _jitted_fill(trained.model)
    rows, mask_id = _encode_masked(tokenizer, mask_token, lines), mask_token_id(tokenizer, mask_token)
    answers = [_to_answer(line, to_single_line(line), []) for line in lines]
    indices = [index for index, row in enumerate(rows) if mask_id in row]
    if not indices:
        return answers
    column = Ragged.from_rows([[tokenizer.special.start, *rows[index]] for index in indices])
    for row_B, batch in batches_for_model(trained, {"source": column}, batch_tokens, progress):
        position_M = mask_positions(batch.source_valid_BS & (batch.source_BS == mask_id))
        best_MK, prob_MK = (np.asarray(array) for array in fill(trained.params, batch, position_M))
        row_M = np.where(position_M < batch.source_BS.size, position_M // batch.source_BS.shape[1], -1)
        for row in np.flatnonzero(row_B >= 0).tolist():
            index = indices[row_B[row]]
            best_GK, prob_GK = best_MK[row_M == row].tolist(), prob_MK[row_M == row].tolist()
            best = iter(best_GK)
            ids = [next(best, [token])[0] if token == mask_id else token for token in rows[index]]
            texts_GK = [tokenizer.decode([[token] for token in tokens]) for tokens in best_GK]
            candidates = [
                [{"text": text, "probability": prob} for text, prob in zip(*row, strict=True)]
                for row in zip(texts_GK, prob_GK, strict=True)
            ]
            answers[index] = _to_answer(lines[index], to_single_line(tokenizer.decode([ids])[0]), candidates)
    return answers


def _to_answer(line: str, text: str, candidates: list) -> Answer:
    return Answer(text, {"source": line, "prediction": text, "masks": candidates})


def _encode_masked(tokenizer: Tokenizer, mask_token: str, lines: Sequence[str]) -> list[list[int]]:
    """The ids of each line, without the id of a space that some tokenizers put before the mask."""
    rows = [ids.tolist() for ids in tokenizer.encode(lines)]
    *spaces, mask_id = tokenizer.encode([mask_token])[0].tolist() if mask_token else [-1]
    if not spaces:
        return rows
    space_and_mask = (spaces[0], mask_id)
    pairs_of_rows = [zip(row, [*row[1:], -1], strict=False) for row in rows]
    return [[pair[0] for pair in pairs if pair != space_and_mask] for pairs in pairs_of_rows]


@lru_cache(maxsize=8)
def _jitted_fill(model: Any) -> Any:
    """(parameters, batch, positions) -> the most probable tokens of each and their probabilities, both (M, K)."""

    def fill(params: Params, batch: Batch, position_M: Array) -> tuple[Array, Array]:
        features_BSD = model.apply({"params": params}, batch, method="features")
        features_MD = features_BSD.reshape(-1, features_BSD.shape[-1])[position_M]
        prob_MV = jax.nn.softmax(model.apply({"params": params}, features_MD, method="readout"))
        prob_MK, best_MK = jax.lax.top_k(prob_MV, NUM_CANDIDATES)
        return best_MK, prob_MK

    return jax.jit(fill)

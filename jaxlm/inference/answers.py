"""Answers to many encoded prompts, batch by batch: how a task evaluates what its model writes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm import runtime
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_REASONS, FINISH_STOP
from jaxlm.inference.base import EVAL_BATCH_TOKENS, ProgressCallback, TrainedModel
from jaxlm.models.properties import max_target_positions
from jaxlm.types import Batch


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer: its text, its ids without the one that ended it, and the reason of its end.

    Attributes:
      ended: whether the model ended it by itself.
    """

    text: str
    ids: tuple[int, ...]
    reason: str
    ended: bool


def answer_prompts(
    trained: TrainedModel,
    prompts: Sequence[np.ndarray],
    config: GenerationConfig,
    seed: int = 0,
    progress: ProgressCallback = None,
) -> list[GeneratedAnswer]:
    """The answer to each prompt (ids, BOS first) in order; one that leaves no position for an answer gets none.

    A sampled answer depends on the seed and on the number of its prompt, not on its batch.
    """
    answers: dict[int, GeneratedAnswer] = {}
    positions = max_target_positions(trained.model)
    width_N = np.array([8 << max(0, math.ceil(math.log2(len(ids) / 8))) for ids in prompts])
    for width in np.unique(width_N).tolist():  # few shapes: each one is compiled
        chosen = np.flatnonzero(width_N == width)
        rows = max(EVAL_BATCH_TOKENS // (width + config.length) // 8, 1) * 8
        rows = min(rows, 8 << max(0, math.ceil(math.log2(len(chosen) / 8))))
        for first in range(0, len(chosen), rows):
            runtime.between_batches()
            row_B = chosen[first : first + rows]
            prompt_BP, valid_BP = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
            limit_B, line_B = np.zeros(rows, np.int32), np.zeros(rows, np.uint32)
            valid_BP[:, -1] = True  # the rows that only fill the shape
            for row, number in enumerate(row_B.tolist()):
                size = len(prompts[number])
                prompt_BP[row, width - size :], valid_BP[row, width - size :] = prompts[number], True
                limit_B[row] = config.length if positions is None else np.clip(positions - size + 1, 0, config.length)
                line_B[row] = number
            batch = Batch(target_BT=prompt_BP, target_valid_BT=valid_BP)
            request = DecodeRequest(batch, prompt_BP, valid_BP, limit_B, seed=seed, line_B=line_B)
            output = generate(trained.model, trained.params, request, config)
            tokens_BT, length_B, reason_B = map(np.asarray, (output.tokens_BT, output.length_B, output.reason_B))
            for row, number in enumerate(row_B.tolist()):
                ended = bool(reason_B[row] == FINISH_STOP)
                ids = tuple(tokens_BT[row, : length_B[row] - ended].tolist())
                text = trained.tokenizer.decode([ids])[0]
                answers[number] = GeneratedAnswer(text, ids, FINISH_REASONS[int(reason_B[row])], ended)
            if progress:
                progress(len(row_B))
    return [answers[number] for number in range(len(prompts))]

"""The log-probability of given texts: tokenize, batch by length, one forward pass a batch, restore the order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.ragged import Ragged
from jaxlm.decode.score import score_targets
from jaxlm.inference.base import TrainedModel, cut_to_positions, token_texts


@dataclass(frozen=True)
class TextScore:
    """log p(text, EOS | source): natural log, summed, and per token (EOS counted).

    truncated: a side was longer than the limit or the positions of the model. Only its beginning was scored, after
    which there is no EOS.
    """

    source: str | None
    text: str
    logprob: float
    tokens: int
    token_logprobs: tuple[float, ...]
    pieces: tuple[str, ...]
    truncated: bool


def score_pairs(
    trained: TrainedModel,
    pairs: Sequence[tuple[str | None, str]],
    batch_tokens: int = 2048,
    max_length: int = 512,
    score_eos: bool = True,
) -> list[TextScore]:
    """The score of each target given its source (None for all: texts without sources), in the order of the pairs.

    Args:
      batch_tokens: positions of a batch.
      max_length: tokens of a side, EOS included; what is longer, or has no positions in the model, is cut.
      score_eos: whether the EOS after a target is part of its score.
    """
    tokenizer = trained.tokenizer
    sources, targets = [source for source, _ in pairs if source is not None], [text for _, text in pairs]
    columns = {"source": Ragged.from_rows(tokenizer.side("source").encode(sources))} if sources else {}
    if pairs:
        columns["target"] = Ragged.from_rows(tokenizer.side("target").encode(targets))
    scores: list[TextScore | None] = [None] * len(pairs)
    read, is_cut_N = cut_to_positions(trained.model, columns, max_length)
    is_whole_N = read["target"].lengths == columns["target"].lengths if pairs else []
    for row_B, batch in eval_batches(read, batch_tokens, max_length=max_length, special=tokenizer.special):
        scored = score_targets(trained.model, trained.params, batch)
        token_logprob_BT, label_BT = np.asarray(scored.token_logprob_BT), np.asarray(batch.label_BT)
        for row in np.flatnonzero(row_B >= 0):
            index = int(row_B[row])
            size = int(scored.count_B[row]) - (not (score_eos and is_whole_N[index]))  # no EOS follows a beginning
            logprob_T = token_logprob_BT[row, :size]
            total, token_logprobs = float(logprob_T.sum(dtype=np.float64)), tuple(map(float, logprob_T))
            pieces = tuple(token_texts(tokenizer, label_BT[row, :size].tolist()))
            scores[index] = TextScore(*pairs[index], total, size, token_logprobs, pieces, bool(is_cut_N[index]))
    return scores

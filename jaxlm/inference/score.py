"""The log-probability of given texts: tokenise, batch by length, one forward pass a batch, restore the order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.base import Pair
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.score import score_targets
from jaxlm.inference.base import TrainedModel

EOS_TEXT = "</s>"
"""How EOS is written among the pieces of a text."""


@dataclass(frozen=True)
class TextScore:
    """log p(text, EOS | source): natural log, summed; `tokens` counts EOS; the two tuples have an entry a token.

    `cut`: a side was longer than the limit, and only its beginning was scored.
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
    """The score of each target given its source (None for all: there are no sources), in the order of the pairs.

    Without `end` the EOS after a target is left out of its score.

    `tokens` positions a batch; a side longer than `max_length` (EOS included) is cut.
    """
    columns = {
        name: Ragged.from_rows(trained.tokenizer.encode([pair[side] for pair in pairs]))
        for side, name in enumerate(("source", "target"))
        if pairs and pairs[0][side] is not None
    }
    scores: list[TextScore | None] = [None] * len(pairs)
    for row_B, batch in eval_batches(columns, batch_tokens, max_length=max_length, special=trained.tokenizer.special):
        scored = score_targets(trained.model, trained.params, batch)
        logprob_BT, label_BT = np.asarray(scored.token_logprob_BT), np.asarray(batch.label_BT)
        for row in np.flatnonzero(row_B >= 0):
            index = int(row_B[row])
            size = int(scored.count_B[row]) - (not score_eos)
            cut = any(len(column[index]) >= max_length for column in columns.values())
            scores[index] = _score(pairs[index], logprob_BT[row, :size], label_BT[row, :size], trained.tokenizer, cut)
    return scores


def _score(pair: Pair, logprob_T: np.ndarray, label_T: np.ndarray, tokenizer: Tokenizer, truncated: bool) -> TextScore:
    return TextScore(
        source=pair[0],
        text=pair[1],
        logprob=float(logprob_T.sum(dtype=np.float64)),
        tokens=len(label_T),
        token_logprobs=tuple(map(float, logprob_T)),
        pieces=tuple(
            EOS_TEXT if label == tokenizer.special.eos else tokenizer.decode([[label]])[0] for label in label_T.tolist()
        ),
        truncated=truncated,
    )

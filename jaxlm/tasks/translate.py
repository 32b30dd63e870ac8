"""Lines in, lines out: tokenise, batch by length, search on the device, detokenise, restore the order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm.data.pipeline import in_order
from jaxlm.data.ragged import Ragged
from jaxlm.data.vocabulary import BOS, EOS, Tokenizer
from jaxlm.decode.beam import beam_search
from jaxlm.decode.options import Beam
from jaxlm.decode.reasons import REASONS
from jaxlm.types import Params


@dataclass(frozen=True)
class Search:
    """How a line is decoded: the beam, and the most tokens of an answer, `ratio` x source tokens + `extra`.

    tokens: source positions a batch (times the beam, decoder rows).
    max_source: source tokens kept of a longer line, EOS included.
    """

    beam: Beam = Beam()
    ratio: float = 1.0
    extra: int = 50
    tokens: int = 2048
    max_source: int = 512

    def limit(self, source_tokens: Any) -> np.ndarray:
        """The most tokens of each answer, a function of its own source length (EOS included) only."""
        return np.asarray(source_tokens * self.ratio + self.extra, np.int32)


@dataclass(frozen=True)
class Hypothesis:
    """One answer: text, log-probability s (natural log, EOS included), score S, tokens, why it ended."""

    text: str
    logprob: float
    score: float
    tokens: int
    reason: str
    token_logprobs: tuple[float, ...]


def translate(
    model: Any,
    params: Params,
    tokenizer: Tokenizer,
    lines: Sequence[str],
    search: Search,
    progress: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """`search.beam.returns` answers for each line, best first, in the order of the lines.

    A blank line gets blank answers and never reaches the model. No line's answer depends on another line.
    """
    answers = [[Hypothesis("", 0.0, 0.0, 0, "blank", ())] * search.beam.returns for _ in lines]
    asked = [index for index, line in enumerate(lines) if line.strip()]
    if not asked:
        return answers
    column = Ragged.of([ids for ids in tokenizer.encode([lines[index] for index in asked])])
    for row_B, found in _decoded(model, params, column, search):
        for at in np.flatnonzero(row_B >= 0):
            answers[asked[row_B[at]]] = _hypotheses(found, int(at), tokenizer)
        if progress:
            progress(int((row_B >= 0).sum()))
    return answers


def _decoded(model: Any, params: Params, column: Ragged, search: Search) -> Iterator[tuple[np.ndarray, Any]]:
    """(rows, hypotheses as NumPy) a batch; one batch is on the device while the one before it is turned into text."""
    before = None
    for row_B, batch in in_order({"source": column}, search.tokens, multiple=1, max_length=search.max_source):
        rows, length = batch.source_BS.shape
        limit_B = np.where(row_B >= 0, search.limit(batch.source_valid_BS.sum(1)), 0)
        prompt_BP = jnp.full((rows, 1), BOS)
        room = int(search.limit(np.asarray(length)))
        found = beam_search(
            model, params, batch, prompt_BP, prompt_BP > 0, jnp.asarray(limit_B), length=room, beam=search.beam,
            stop=(EOS,),
        )  # fmt: skip
        if before is not None:
            yield before[0], _on_host(before[1])
        before = row_B, found
    if before is not None:
        yield before[0], _on_host(before[1])


def _on_host(found: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in vars(found).items()}


def _hypotheses(found: dict[str, np.ndarray], row: int, tokenizer: Tokenizer) -> list[Hypothesis]:
    answers = []
    for slot in range(found["length_BN"].shape[1]):
        size = int(found["length_BN"][row, slot])
        ids = found["tokens_BNT"][row, slot, :size]
        answers.append(
            Hypothesis(
                text=one_line(tokenizer.decode([ids.tolist()])[0]),
                logprob=float(found["logprob_BN"][row, slot]),
                score=float(found["score_BN"][row, slot]),
                tokens=size,
                reason=REASONS[int(found["reason_BN"][row, slot])],
                token_logprobs=tuple(float(x) for x in found["token_logprob_BNT"][row, slot, :size]),
            )
        )
    return answers


def one_line(text: str) -> str:
    """N lines in, N lines out, even from an untrained model that says a line break."""
    return text.replace("\r", " ").replace("\n", " ").strip()

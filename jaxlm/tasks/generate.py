"""Sampled texts. A sample is a function of (parameters, seed, its prompt, its number): the prompts beside it and how
many samples are asked for do not matter, because a prompt is decoded in a batch of its own.

For an encoder-decoder the prompt is the source, and a sample is an answer to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import jax.numpy as jnp
import numpy as np

from jaxlm.data.collate import in_order
from jaxlm.data.ragged import Ragged
from jaxlm.data.vocabulary import BOS, EOS, Tokenizer
from jaxlm.decode.choose import Sampler
from jaxlm.decode.generate import Generated, generate
from jaxlm.decode.reasons import REASONS
from jaxlm.tasks.translate import Search
from jaxlm.types import Batch, Params

ROWS = 8
"""Rows of a batch, whatever the number of samples: one shape, so that a sample has the same bits each time."""


@dataclass(frozen=True)
class Request:
    """What is wanted of each prompt.

    samples: how many texts, drawn independently.
    max_tokens: the most tokens of a text; None takes the limit of the task's search.
    """

    sampler: Sampler = Sampler()
    seed: int = 0
    samples: int = 1
    max_tokens: int | None = None


@dataclass(frozen=True)
class Sample:
    """One text: log-probability (natural log, EOS included, at the sampler's temperature), tokens, why it ended."""

    prompt: str
    text: str
    logprob: float
    tokens: int
    reason: str


def sample_answers(
    model: Any, params: Params, tokenizer: Tokenizer, prompts: Sequence[str], search: Search, request: Request
) -> Iterator[Sample]:
    """The samples of the first prompt, then those of the next, each as soon as it is there.

    `search` gives the length limits: of a source, the rest is cut off; of an answer, unless `request` has its own.
    """
    for prompt in prompts:
        column = Ragged.of(tokenizer.encode([prompt]))
        ((_, batch),) = in_order({"source": column}, ROWS, multiple=ROWS, max_length=search.max_source)
        for first in range(0, request.samples, ROWS):
            count = min(ROWS, request.samples - first)
            found = _sampled(model, params, _repeated(batch), prompt, range(first, first + count), search, request)
            for row in range(count):
                yield _sample(found, row, prompt, tokenizer)


def _repeated(batch: Batch) -> Batch:
    """The first row in every row."""
    source, valid = np.asarray(batch.source_BS), np.asarray(batch.source_valid_BS)
    return Batch(source_BS=source[:1].repeat(ROWS, 0), source_valid_BS=valid[:1].repeat(ROWS, 0))


def _sampled(
    model: Any, params: Params, batch: Batch, prompt: str, numbers: range, search: Search, request: Request
) -> Generated:
    source_tokens, length = int(batch.source_valid_BS[0].sum()), batch.source_BS.shape[1]
    limit = request.max_tokens or int(search.limit(np.asarray(source_tokens)))
    room = request.max_tokens or int(search.limit(np.asarray(length)))
    line_B = np.zeros(ROWS, np.uint32)
    line_B[: len(numbers)] = [crc32(f"{number} {prompt}".encode(errors="replace")) for number in numbers]
    limit_B = np.where(np.arange(ROWS) < len(numbers), limit, 0).astype(np.int32)
    prompt_BP = jnp.full((ROWS, 1), BOS)
    return generate(
        model, params, batch, prompt_BP, prompt_BP > 0, jnp.asarray(limit_B),
        length=room, stop=(EOS,), sampler=request.sampler, seed=request.seed, line_B=jnp.asarray(line_B),
    )  # fmt: skip


def _sample(found: Generated, row: int, prompt: str, tokenizer: Tokenizer) -> Sample:
    size = int(found.length_B[row])
    return Sample(
        prompt=prompt,
        text=tokenizer.decode([np.asarray(found.tokens_BT[row, :size]).tolist()])[0],
        logprob=float(found.logprob_B[row]),
        tokens=size,
        reason=REASONS[int(found.reason_B[row])],
    )

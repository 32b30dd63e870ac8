"""Sampled texts. A sample is a function of (parameters, seed, its prompt, its number): the prompts beside it and how
many samples are asked for do not matter, because a prompt is decoded in a batch of its own.

For an encoder-decoder the prompt is the source, and a sample is an answer to it; for a language model it is a text,
and a sample goes on from it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.collate import in_order
from jaxlm.data.ragged import Ragged
from jaxlm.data.vocabulary import BOS, EOS, PAD, Tokenizer
from jaxlm.decode.automaton import Grammar
from jaxlm.decode.choose import Sampler
from jaxlm.decode.generate import Generated, generate, stream
from jaxlm.decode.reasons import NONE, REASONS
from jaxlm.tasks.constrained import CompiledRule
from jaxlm.tasks.stream import TextStream
from jaxlm.tasks.translate import Search
from jaxlm.types import Batch, Params

ROWS = 8
"""Samples at a time, whatever their number: one shape, so that a sample has the same bits each time."""

Show = Callable[[str], None] | None
CONTINUATION = 100
"""Tokens of a continuation, if the request does not say."""


@dataclass(frozen=True)
class Request:
    """What is wanted of each prompt.

    samples: how many texts, drawn independently.
    stops: strings that end a text and are not part of it.
    max_tokens: the most tokens of a text; None takes the limit of the task's search.
    rule: what each text must be; a quotation is one of the source, or of the prompt where there is no source.
    """

    sampler: Sampler = Sampler()
    seed: int = 0
    samples: int = 1
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    rule: CompiledRule | None = None


@dataclass(frozen=True)
class Sample:
    """One text: log-probability (natural log, EOS included, at the sampler's temperature), tokens, why it ended.

    Both count what was written up to and with the token that completed a stop string ("string" is then the reason).
    """

    prompt: str
    text: str
    logprob: float
    tokens: int
    reason: str


@dataclass(frozen=True)
class _Asked:
    """A prompt in a row, which is read once for all samples, the most tokens of its texts, and the room for them."""

    prompt: str
    batch: Batch
    prompt_BP: np.ndarray
    limit: int
    room: int


def sample_answers(
    model: Any,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    search: Search,
    request: Request,
    show: Show = None,
) -> Iterator[Sample]:
    """The samples of the first prompt, then those of the next, each as soon as it is there.

    `show` is called with each new piece of text of the first sample of a prompt.

    `search` gives the length limits: of a source, the rest is cut off; of an answer, unless `request` has its own.
    """
    for prompt in prompts:
        column = Ragged.of(tokenizer.encode([prompt]))
        ((_, batch),) = in_order({"source": column}, 1, multiple=1, max_length=search.max_source)
        source_tokens, length = int(batch.source_valid_BS[0].sum()), batch.source_BS.shape[1]
        limit = request.max_tokens or int(search.limit(np.asarray(source_tokens)))
        room = request.max_tokens or int(search.limit(np.asarray(length)))
        asked = _Asked(prompt, batch, np.full((1, 1), BOS, np.int32), limit, room)
        yield from _samples(model, params, tokenizer, asked, request, show)


def continuations(
    model: Any, params: Params, tokenizer: Tokenizer, prompts: Sequence[str], request: Request, show: Show = None
) -> Iterator[Sample]:
    """How each text may go on, for a model without a source: the samples of the first text, then those of the next."""
    for prompt in prompts:
        ids = np.concatenate([[BOS], tokenizer.encode([prompt])[0]]).astype(np.int32)
        width = 8 << max(0, math.ceil(math.log2(len(ids) / 8)))  # few shapes: 8, 16, 32, ...
        prompt_BP = np.pad(ids, (width - len(ids), 0), constant_values=PAD)[None]
        limit = request.max_tokens or CONTINUATION
        batch = Batch(target_BT=prompt_BP, target_valid_BT=prompt_BP != PAD)
        asked = _Asked(prompt, batch, prompt_BP, limit, limit)
        yield from _samples(model, params, tokenizer, asked, request, show)


def _samples(
    model: Any, params: Params, tokenizer: Tokenizer, asked: _Asked, request: Request, show: Show
) -> Iterator[Sample]:
    """The samples of one prompt, ROWS at a time."""
    for first in range(0, request.samples, ROWS):
        count = min(ROWS, request.samples - first)
        line_B = np.zeros(ROWS, np.uint32)
        line_B[:count] = [crc32(f"{first + row} {asked.prompt}".encode(errors="replace")) for row in range(count)]
        limit_B = np.where(np.arange(ROWS) < count, asked.limit, 0).astype(np.int32)
        prompt = asked.batch, jnp.asarray(asked.prompt_BP), jnp.asarray(asked.prompt_BP != PAD), jnp.asarray(limit_B)
        options: dict[str, Any] = {"length": asked.room, "stop": (EOS,), "sampler": request.sampler}
        options |= {"seed": request.seed, "line_B": jnp.asarray(line_B), "grammar": _grammar(request, asked, limit_B)}
        if request.stops or show:
            told = _told(stream(model, params, *prompt, **options), count, asked.prompt, tokenizer, request, show)
            yield from told
            show = None  # the rest is not the first sample
        else:
            found = generate(model, params, *prompt, **options)
            yield from (_sample(found, row, asked.prompt, tokenizer) for row in range(count))


def _grammar(request: Request, asked: _Asked, limit_B: np.ndarray) -> Grammar | None:
    """What each sample must be; all of them have the source, or the prompt, of the one row that they share."""
    if request.rule is None:
        return None
    batch, prompt_BP = asked.batch, asked.prompt_BP
    has_source = batch.source_BS is not None
    one = (batch.source_BS, batch.source_valid_BS) if has_source else (prompt_BP, prompt_BP != PAD)
    source_BS, valid_BS = (np.asarray(each)[:1].repeat(len(limit_B), axis=0) for each in one)
    return request.rule.grammar(source_BS, valid_BS, limit_B)


def _told(
    tokens: Iterator[Generated], count: int, prompt: str, tokenizer: Tokenizer, request: Request, show: Show
) -> list[Sample]:
    """The samples of a batch that is watched as it is written; a text ends where a stop string does."""
    texts = [TextStream(tokenizer, request.stops) for _ in range(count)]
    samples: list[Sample | None] = [None] * count
    host: Any = None
    for host in map(jax.device_get, tokens):
        for row, text in enumerate(texts):
            if samples[row] is not None:
                continue
            over = host.reason_B[row] != NONE
            piece = text.show(host.tokens_BT[row, : host.length_B[row]].tolist(), last=over)
            if show and row == 0 and piece:
                show(piece)
            if over or text.ended:
                reason = "string" if text.ended else None
                samples[row] = _sample(host, row, prompt, tokenizer, text.text, reason)
        if all(samples):
            break
    blank = Sample(prompt, "", 0.0, 0, REASONS[NONE])
    return [
        sample or (blank if host is None else _sample(host, row, prompt, tokenizer))
        for row, sample in enumerate(samples)
    ]


def _sample(
    found: Generated, row: int, prompt: str, tokenizer: Tokenizer, text: str | None = None, reason: str | None = None
) -> Sample:
    size = int(found.length_B[row])
    return Sample(
        prompt=prompt,
        text=tokenizer.decode([np.asarray(found.tokens_BT[row, :size]).tolist()])[0] if text is None else text,
        logprob=float(found.logprob_B[row]),
        tokens=size,
        reason=reason or REASONS[int(found.reason_B[row])],
    )

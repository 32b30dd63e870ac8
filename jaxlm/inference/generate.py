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
import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.generate import GenerationConfig, generate, generate_stream
from jaxlm.decode.grammar import TokenGrammar
from jaxlm.decode.logit_masks import LogitMasks
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_NONE, FINISH_REASONS, GenerationOutput
from jaxlm.decode.sampling import Sampler
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.constraints import TokenConstraint
from jaxlm.inference.text_stream import TextStream
from jaxlm.inference.translate import Search
from jaxlm.types import Batch

SAMPLE_BATCH = 8
"""Samples at a time, whatever their number: one shape, so that a sample has the same bits each time."""

TextCallback = Callable[[str], None] | None

DEFAULT_MAX_TOKENS = 100
"""Tokens of a continuation, if the request does not say."""


@dataclass(frozen=True)
class GenerationRequest:
    """What is wanted of each prompt.

    samples: how many texts, drawn independently.
    stops: strings that end a text and are not part of it.
    max_tokens: the most tokens of a text; None takes the limit of the task's search.
    rule: what each text must be; a quotation is one of the source, or of the prompt where there is no source.
    """

    sampler: Sampler = Sampler()
    seed: int = 0
    num_samples: int = 1
    max_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    constraint: TokenConstraint | None = None


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
class _Prompt:
    """A prompt in a row, which is read once for all samples, the most tokens of its texts, and the room for them."""

    prompt: str
    batch: Batch
    prompt_BP: np.ndarray
    valid_BP: np.ndarray
    max_tokens: int
    max_length: int


def sample_answers(
    trained: TrainedModel,
    prompts: Sequence[str],
    search: Search,
    request: GenerationRequest,
    on_text: TextCallback = None,
) -> Iterator[Sample]:
    """The samples of the first prompt, then those of the next, each as soon as it is there.

    `show` is called with each new piece of text of the first sample of a prompt.

    `search` gives the length limits: of a source, the rest is cut off; of an answer, unless `request` has its own.
    """
    for prompt in prompts:
        column = Ragged.from_rows(trained.tokenizer.encode([prompt]))
        special, max_length = trained.tokenizer.special, search.max_source_len
        ((_, batch),) = eval_batches({"source": column}, 1, row_multiple=1, max_length=max_length, special=special)
        source_tokens, length = int(batch.source_valid_BS[0].sum()), batch.source_BS.shape[1]
        limit = request.max_tokens or int(search.max_answer_tokens(np.asarray(source_tokens)))
        room = request.max_tokens or int(search.max_answer_tokens(np.asarray(length)))
        start_BP = np.full((1, 1), special.start, np.int32)
        asked = _Prompt(prompt, batch, start_BP, np.ones((1, 1), bool), limit, room)
        yield from _sample_prompt(trained, asked, request, on_text)


def sample_continuations(
    trained: TrainedModel,
    prompts: Sequence[str],
    request: GenerationRequest,
    on_text: TextCallback = None,
) -> Iterator[Sample]:
    """How each text may go on, for a model without a source: the samples of the first text, then those of the next."""
    for prompt in prompts:
        ids = np.concatenate([[trained.tokenizer.special.start], trained.tokenizer.encode([prompt])[0]])
        width = 8 << max(0, math.ceil(math.log2(len(ids) / 8)))  # few shapes: 8, 16, 32, ...
        prompt_BP = np.pad(ids.astype(np.int32), (width - len(ids), 0))[None]
        valid_BP = np.arange(width)[None] >= width - len(ids)
        limit = request.max_tokens or DEFAULT_MAX_TOKENS
        batch = Batch(target_BT=prompt_BP, target_valid_BT=valid_BP)
        asked = _Prompt(prompt, batch, prompt_BP, valid_BP, limit, limit)
        yield from _sample_prompt(trained, asked, request, on_text)


def _sample_prompt(
    trained: TrainedModel, asked: _Prompt, request: GenerationRequest, show: TextCallback
) -> Iterator[Sample]:
    """The samples of one prompt, ROWS at a time."""
    special = trained.tokenizer.special
    for first in range(0, request.num_samples, SAMPLE_BATCH):
        count = min(SAMPLE_BATCH, request.num_samples - first)
        line_B = np.zeros(SAMPLE_BATCH, np.uint32)
        line_B[:count] = [crc32(f"{first + row} {asked.prompt}".encode(errors="replace")) for row in range(count)]
        limit_B = np.where(np.arange(SAMPLE_BATCH) < count, asked.max_tokens, 0).astype(np.int32)
        decode_request = DecodeRequest(
            asked.batch, asked.prompt_BP, asked.valid_BP, limit_B, grammar=_grammar(request, asked, limit_B),
            seed=request.seed, line_B=line_B,
        )  # fmt: skip
        masks = LogitMasks(special.suppress)
        config = GenerationConfig(asked.max_length, special.end_ids, request.sampler, masks)
        if request.stop_strings or show:
            stream = generate_stream(trained.model, trained.params, decode_request, config)
            yield from _stream_samples(stream, count, asked.prompt, trained.tokenizer, request, show)
            show = None  # the rest is not the first sample
        else:
            found = generate(trained.model, trained.params, decode_request, config)
            yield from (_to_sample(found, row, asked.prompt, trained.tokenizer) for row in range(count))


def _grammar(request: GenerationRequest, asked: _Prompt, limit_B: np.ndarray) -> TokenGrammar | None:
    """What each sample must be; all of them have the source, or the prompt, of the one row that they share."""
    if request.constraint is None:
        return None
    batch, has_source = asked.batch, asked.batch.source_BS is not None
    one = (batch.source_BS, batch.source_valid_BS) if has_source else (asked.prompt_BP, asked.valid_BP)
    source_BS, valid_BS = (np.asarray(each)[:1].repeat(len(limit_B), axis=0) for each in one)
    return request.constraint.grammar(source_BS, valid_BS, limit_B)


def _stream_samples(
    generated: Iterator[GenerationOutput],
    count: int,
    prompt: str,
    tokenizer: Tokenizer,
    request: GenerationRequest,
    show: TextCallback,
) -> list[Sample]:
    """The samples of a batch that is watched as it is written; a text ends where a stop string does."""
    texts = [TextStream(tokenizer, request.stop_strings) for _ in range(count)]
    samples: list[Sample | None] = [None] * count
    host: Any = None
    for host in map(jax.device_get, generated):
        for row, text in enumerate(texts):
            if samples[row] is not None:
                continue
            over = host.reason_B[row] != FINISH_NONE
            piece = text.push(host.tokens_BT[row, : host.length_B[row]].tolist(), last=over)
            if show and row == 0 and piece:
                show(piece)
            if over or text.ended:
                reason = "string" if text.ended else None
                samples[row] = _to_sample(host, row, prompt, tokenizer, text.text, reason)
        if all(samples):
            break
    blank = Sample(prompt, "", 0.0, 0, FINISH_REASONS[FINISH_NONE])
    return [
        sample or (blank if host is None else _to_sample(host, row, prompt, tokenizer))
        for row, sample in enumerate(samples)
    ]


def _to_sample(
    found: GenerationOutput,
    row: int,
    prompt: str,
    tokenizer: Tokenizer,
    text: str | None = None,
    reason: str | None = None,
) -> Sample:
    size = int(found.length_B[row])
    return Sample(
        prompt=prompt,
        text=tokenizer.decode([np.asarray(found.tokens_BT[row, :size]).tolist()])[0] if text is None else text,
        logprob=float(found.logprob_B[row]),
        tokens=size,
        reason=reason or FINISH_REASONS[int(found.reason_B[row])],
    )

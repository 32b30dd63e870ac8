"""Sampled texts. A sample is a function of (parameters, seed, its prompt, its number): neither the other prompts nor
the number of samples matter, because a prompt is decoded in batches of its own.

For an encoder-decoder the prompt is the source, and a sample is an answer to it; for a language model it is a text,
and a sample continues it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import jax
import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import REPLACEMENT_CHAR, Tokenizer
from jaxlm.decode.generate import GenerationConfig, generate, generate_stream
from jaxlm.decode.grammar import TokenGrammar
from jaxlm.decode.logit_masks import LogitMasks
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_NONE, FINISH_REASONS, GenerationOutput
from jaxlm.decode.sampling import Sampler
from jaxlm.grammar.constraint import Constraint
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.constraints import TokenConstraint, compile_constraint
from jaxlm.inference.translate import Search, max_source_tokens
from jaxlm.models.properties import max_target_positions
from jaxlm.types import Batch

SAMPLE_BATCH = 8
"""Rows of every batch, for any number of samples: one shape, so that a sample has the same bits each time."""

TextCallback = Callable[[str], None] | None

DEFAULT_MAX_TOKENS = 100
"""Tokens of a continuation if the request has no limit."""


@dataclass(frozen=True)
class GenerationRequest:
    """The options of generation for each prompt.

    Attributes:
      num_samples: texts for each prompt, drawn independently.
      max_tokens: the most tokens of a text; None takes the limit of the task's search.
      stop_strings: strings that end a text and are not part of it.
      constraint: which texts are allowed; a quotation copies from the source, or from the prompt if there is none.
    """

    sampler: Sampler = Sampler()
    seed: int = 0
    num_samples: int = 1
    max_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Sample:
    """One text: log-probability (natural log, EOS included, at the sampler's temperature), tokens, finish reason.

    Both count the tokens up to and with the one that completed a stop string ("string" is then the reason).

    Attributes:
      truncated: the prompt had more tokens than the model has positions, or than the search reads: only its end was
        read, or the beginning of a source.
    """

    prompt: str
    text: str
    logprob: float
    tokens: int
    reason: str
    truncated: bool = False


MAX_PARTIAL_BYTES = 3
"""Bytes of an incomplete UTF-8 character."""


class TextStream:
    """Streaming detokenization of a growing row of ids: its text after each token, up to the first stop string.

    A token may be a part of a character, and the next token may change the text of a word. So a piece of text is shown
    when its characters are complete, and only while the text still begins with all that has been shown.

    Attributes:
      text: all that has been shown.
      ended: whether a stop string has been generated.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stop_strings = [stop for stop in stop_strings if stop]
        self.text = ""
        self.ended = False

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text of `ids` that has not been shown yet; after the `last` id nothing is held back."""
        if self.ended:
            return ""
        whole = self.tokenizer.decode([list(ids)])[0]
        stops = [begin for begin in map(whole.find, self.stop_strings) if begin >= 0]
        if stops:
            whole = whole[: min(stops)]
            self.ended = True
        elif not last:
            whole = whole[: len(whole) - self._incomplete_suffix(whole)]
        if not whole.startswith(self.text):
            return ""
        piece, self.text = whole[len(self.text) :], whole
        return piece

    def _incomplete_suffix(self, whole: str) -> int:
        """The number of final characters that may still change: of partial characters, or of a partial stop string."""
        parts = min(len(whole) - len(whole.rstrip(REPLACEMENT_CHAR)), MAX_PARTIAL_BYTES)
        starts = [size for stop in self.stop_strings for size in range(1, len(stop)) if whole.endswith(stop[:size])]
        return max([parts, *starts])


def draw_samples(
    trained: TrainedModel,
    prompts: Sequence[str],
    request: GenerationRequest,
    search: Search | None = None,
    on_text: TextCallback = None,
) -> Iterator[Sample]:
    """The samples of the first prompt, then those of the next, each as soon as it is complete.

    Args:
      search: its length limits cut a source and bound an answer (unless the request has a limit); None for a model
        without a source, whose texts continue the prompt.
      on_text: called with each new piece of text of the first sample of a prompt.
    """
    constraint = compile_constraint(request.constraint, trained.tokenizer) if request.constraint else None
    for text in prompts:
        if search is None:
            prompt, room, is_cut = _encode_prefix(trained, text, request)
        else:
            prompt, room, is_cut = _encode_source(trained, text, request, search)
        for sample in _sample_prompt(trained, text, prompt, room, request, constraint, on_text):
            yield replace(sample, truncated=is_cut)


def _encode_source(
    trained: TrainedModel, text: str, request: GenerationRequest, search: Search
) -> tuple[DecodeRequest, int, bool]:
    """A request of one row, which is read once for all samples; the room for tokens, one for a padded length; whether
    the text was cut.
    """
    model, special, max_length = trained.model, trained.tokenizer.special, max_source_tokens(trained.model, search)
    column = Ragged.from_rows(trained.tokenizer.encode([text]))
    ((_, batch),) = eval_batches({"source": column}, 1, row_multiple=1, max_length=max_length, special=special)
    tokens = int(batch.source_valid_BS[0].sum())
    limit, room = (
        request.max_tokens or int(search.max_answer_tokens(np.asarray(size)))
        for size in (tokens, batch.source_BS.shape[1])
    )
    limit = min(limit, max_target_positions(model, tokens) or limit)
    room = min(room, max_target_positions(model, 1) or room)
    prompt_BP = np.full((1, 1), special.start, np.int32)
    prompt = DecodeRequest(batch, prompt_BP, np.ones((1, 1), bool), np.array([limit]))
    return prompt, room, bool(column.lengths[0] >= max_length)


def _encode_prefix(trained: TrainedModel, text: str, request: GenerationRequest) -> tuple[DecodeRequest, int, bool]:
    ids = np.concatenate([[trained.tokenizer.special.start], trained.tokenizer.encode([text])[0]])
    limit, positions = request.max_tokens or DEFAULT_MAX_TOKENS, max_target_positions(trained.model)
    room, is_cut = limit, positions is not None and len(ids) > positions
    if positions is not None:
        if is_cut:  # the end of the prompt, with room for the text in up to half of the positions
            ids = np.append(ids[:1], ids[len(ids) - positions + min(limit, max(positions // 2, 1)) :])
        room = min(limit, positions)
        limit = min(limit, positions - len(ids) + 1)  # the last token is not read
    width = 8 << max(0, math.ceil(math.log2(len(ids) / 8)))  # few shapes to compile: 8, 16, 32, ...
    prompt_BP = np.pad(ids.astype(np.int32), (width - len(ids), 0))[None]
    valid_BP = np.arange(width)[None] >= width - len(ids)
    batch = Batch(target_BT=prompt_BP, target_valid_BT=valid_BP)
    return DecodeRequest(batch, prompt_BP, valid_BP, np.array([limit])), room, is_cut


def _sample_prompt(
    trained: TrainedModel,
    text: str,
    prompt: DecodeRequest,
    max_length: int,
    request: GenerationRequest,
    constraint: TokenConstraint | None,
    on_text: TextCallback,
) -> Iterator[Sample]:
    """The samples of one prompt, SAMPLE_BATCH at a time."""
    special = trained.tokenizer.special
    config = GenerationConfig(max_length, special.end_ids, request.sampler, LogitMasks(special.suppress))
    for first in range(0, request.num_samples, SAMPLE_BATCH):
        count = min(SAMPLE_BATCH, request.num_samples - first)
        line_B = np.zeros(SAMPLE_BATCH, np.uint32)
        line_B[:count] = [crc32(f"{first + row} {text}".encode(errors="replace")) for row in range(count)]
        limit_B = np.where(np.arange(SAMPLE_BATCH) < count, prompt.limit_B, 0).astype(np.int32)
        grammar = _grammar(constraint, prompt, limit_B)
        decode_request = replace(prompt, limit_B=limit_B, grammar=grammar, seed=request.seed, line_B=line_B)
        if request.stop_strings or on_text:
            stream = generate_stream(trained.model, trained.params, decode_request, config)
            texts = [TextStream(trained.tokenizer, request.stop_strings) for _ in range(count)]
            yield from _stream_samples(stream, text, texts, on_text)
            on_text = None  # only the first sample is shown
        else:
            output = generate(trained.model, trained.params, decode_request, config)
            yield from (_to_sample(output, row, text, trained.tokenizer) for row in range(count))


def _grammar(constraint: TokenConstraint | None, prompt: DecodeRequest, limit_B: np.ndarray) -> TokenGrammar | None:
    """The grammar of a batch of samples, which share the one row of the source, or of the prompt without a source."""
    if constraint is None:
        return None
    source_1S, valid_1S = prompt.batch.source_BS, prompt.batch.source_valid_BS
    if source_1S is None:
        source_1S, valid_1S = prompt.prompt_BP, prompt.prompt_valid_BP
    source_BS, valid_BS = (np.asarray(row_1S).repeat(len(limit_B), axis=0) for row_1S in (source_1S, valid_1S))
    return constraint.grammar(source_BS, valid_BS, limit_B)


def _stream_samples(
    stream: Iterator[GenerationOutput], prompt: str, texts: list[TextStream], on_text: TextCallback
) -> list[Sample]:
    """The samples of a batch that is read token by token; a text ends where a stop string begins."""
    samples: list[Sample | None] = [None] * len(texts)
    host: Any = None
    for host in map(jax.device_get, stream):
        for row, text in enumerate(texts):
            if samples[row] is not None:
                continue
            finished = host.reason_B[row] != FINISH_NONE
            piece = text.push(host.tokens_BT[row, : host.length_B[row]].tolist(), last=finished)
            if on_text and row == 0 and piece:
                on_text(piece)
            if finished or text.ended:
                sample = replace(_to_sample(host, row, prompt, text.tokenizer), text=text.text)
                samples[row] = replace(sample, reason="string") if text.ended else sample
        if all(samples):
            break
    blank = Sample(prompt, "", 0.0, 0, FINISH_REASONS[FINISH_NONE])
    return [
        sample or (blank if host is None else _to_sample(host, row, prompt, texts[row].tokenizer))
        for row, sample in enumerate(samples)
    ]


def _to_sample(output: GenerationOutput, row: int, prompt: str, tokenizer: Tokenizer) -> Sample:
    size = int(output.length_B[row])
    text = tokenizer.decode([np.asarray(output.tokens_BT[row, :size]).tolist()])[0]
    reason = FINISH_REASONS[int(output.reason_B[row])]
    return Sample(prompt, text, logprob=float(output.logprob_B[row]), tokens=size, reason=reason)

"""Sampled texts. A sample is a function of (parameters, seed, its prompt, its number): neither the other prompts nor
the number of samples matter, because a prompt is decoded in batches of its own.

For an encoder-decoder the prompt is the source, and a sample is an answer to it; for a language model it is a text,
and a sample continues it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from zlib import crc32

import jax
import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches, round_up_size
from jaxlm.data.chat.encoding import ChatFormat, DialogueEncoder
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.generate import GenerationConfig, generate, generate_stream
from jaxlm.decode.grammar import TokenGrammar
from jaxlm.decode.logit_masks import LogitMasks
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_NONE, FINISH_REASONS, GenerationOutput
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import Constraint
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.constraints import TokenConstraint, compile_constraint
from jaxlm.inference.text_stream import ContinuationDecoder, TextStream
from jaxlm.inference.translate import Search, max_source_tokens
from jaxlm.models.properties import max_target_positions
from jaxlm.types import Batch

SAMPLE_BATCH = 8
"""Rows of every batch, for any number of samples: one shape, so that a sample has the same bits each time."""

TextCallback = Callable[[str], None] | None

DEFAULT_MAX_TOKENS = 100
"""Tokens of a continuation if the request has no limit."""

MAX_ROOM = 1024
"""The most tokens of a continuation that are not asked for: their cache is allocated before the first one."""


@dataclass(frozen=True)
class GenerationRequest:
    """The options of generation for each prompt.

    Attributes:
      sampler: None takes that of the defaults.
      num_samples: texts for each prompt, drawn independently.
      max_tokens: the most tokens of a text; None takes the limit of the task's search, or of the defaults.
      stop_strings: strings that end a text and are not part of it.
      constraint: which texts are allowed; a quotation copies from the source, or from the prompt if there is none.
      chat: the prompts are turns of a user, in this form; None: texts to continue.
      source_of: the part of a prompt whose words a constraint may take (`x-source-words` of a schema); None: all of it.
    """

    sampler: Sampler | None = None
    seed: int = 0
    num_samples: int = 1
    max_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    constraint: Constraint | None = None
    chat: ChatFormat | None = None
    source_of: Callable[[str], str] | None = None


@dataclass(frozen=True)
class GenerationDefaults:
    """Options of a language model for requests that leave them out.

    Attributes:
      sampler: how each token is chosen.
      max_tokens: the most tokens of a text; None: up to max_length, but 1,024 if that leaves more, or 100 without it.
      max_length: the most tokens of prompt and text together, with the one that begins a prompt; None: any number.
      logit_masks: tokens that are not allowed.
    """

    sampler: Sampler = Sampler()
    max_tokens: int | None = None
    max_length: int | None = None
    logit_masks: LogitMasks = LogitMasks()

    @property
    def new_tokens(self) -> int:
        """The most tokens of a text; `max_length` may leave fewer."""
        return self.max_tokens or (MAX_ROOM if self.max_length else DEFAULT_MAX_TOKENS)


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


GENERATION_DEFAULTS = GenerationDefaults()
"""Ancestral sampling: draws from the model's own distribution."""


def draw_samples(
    trained: TrainedModel,
    prompts: Sequence[str],
    request: GenerationRequest,
    search: Search | None = None,
    on_text: TextCallback = None,
    defaults: GenerationDefaults = GENERATION_DEFAULTS,
) -> Iterator[Sample]:
    """The samples of the first prompt, then those of the next, each as soon as it is complete.

    Args:
      search: its length limits cut a source and bound an answer (unless the request has a limit); None for a model
        without a source, whose texts continue the prompt.
      on_text: called with each new piece of text of the first sample of a prompt.
      defaults: the sampler, and without a source also the limit and the masks, if the request has none.
    """
    special, masks = trained.tokenizer.special, search.beam.logit_masks if search else defaults.logit_masks
    masks = replace(masks, suppress_tokens=(*masks.suppress_tokens, *special.suppress))
    constraint = None
    if request.constraint:
        constraint = cache(partial(compile_constraint, request.constraint, trained.tokenizer))
    encoder = DialogueEncoder(trained.tokenizer, request.chat.template) if request.chat else None
    for text in prompts:
        if search is None:
            prompt, room, is_cut = _encode_prefix(trained, text, request, defaults, encoder)
        else:
            prompt, room, is_cut = _encode_source(trained, text, request, search)
        stop = encoder.stop_ids if encoder else special.end_ids
        config = GenerationConfig(room, stop, request.sampler or defaults.sampler, masks)
        for sample in _sample_prompt(trained, text, prompt, config, request, constraint, on_text):
            answer = sample.text.removeprefix(request.chat.template.answer_space if request.chat else "")
            yield replace(sample, text=answer, truncated=is_cut)


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


def _encode_prefix(
    trained: TrainedModel,
    text: str,
    request: GenerationRequest,
    defaults: GenerationDefaults,
    encoder: DialogueEncoder | None,
) -> tuple[DecodeRequest, int, bool]:
    if request.chat and encoder:
        (ids,) = encoder.encode_prompts([request.chat.dialogue(text)])
    else:
        ids = np.concatenate([[trained.tokenizer.special.start], trained.tokenizer.encode([text])[0]])
    limit, positions = request.max_tokens or defaults.new_tokens, max_target_positions(trained.model)
    if defaults.max_length and not (request.max_tokens or defaults.max_tokens):
        positions = min(positions or defaults.max_length, max(defaults.max_length - 1, 1))
    room, is_cut = limit, positions is not None and len(ids) > positions
    if is_cut and request.chat:
        raise UserError(
            f"the chat prompt {text[:40]!r} has {len(ids)} tokens, the model {positions} positions: shorten it"
        )
    if positions is not None:
        if is_cut:  # the end of the prompt, with room for the text in up to half of the positions
            ids = np.append(ids[:1], ids[len(ids) - positions + min(limit, max(positions // 2, 1)) :])
        room = min(limit, positions)
        limit = min(limit, positions - len(ids) + 1)  # the last token is not read
    width = round_up_size(len(ids))
    prompt_BP = np.pad(ids.astype(np.int32), (width - len(ids), 0))[None]
    valid_BP = np.arange(width)[None] >= width - len(ids)
    batch = Batch(target_BT=prompt_BP, target_valid_BT=valid_BP)
    return DecodeRequest(batch, prompt_BP, valid_BP, np.array([limit])), room, is_cut


def _sample_prompt(
    trained: TrainedModel,
    text: str,
    prompt: DecodeRequest,
    config: GenerationConfig,
    request: GenerationRequest,
    constraint: Callable[[bool], TokenConstraint] | None,
    on_text: TextCallback,
) -> Iterator[Sample]:
    """The samples of one prompt, SAMPLE_BATCH at a time. `constraint(True)` is that of a text after another one."""
    decoder = ContinuationDecoder(trained.tokenizer, prompt.prompt_BP[prompt.prompt_valid_BP].tolist())
    compiled = constraint(bool(decoder.prompt_text)) if constraint else None
    for first in range(0, request.num_samples, SAMPLE_BATCH):
        count = min(SAMPLE_BATCH, request.num_samples - first)
        line_B = np.zeros(SAMPLE_BATCH, np.uint32)
        line_B[:count] = [crc32(f"{first + row} {text}".encode(errors="replace")) for row in range(count)]
        limit_B = np.where(np.arange(SAMPLE_BATCH) < count, prompt.limit_B, 0).astype(np.int32)
        grammar = _grammar(compiled, prompt, limit_B, request.source_of(text) if request.source_of else text)
        decode_request = replace(prompt, limit_B=limit_B, grammar=grammar, seed=request.seed, line_B=line_B)
        if request.stop_strings or on_text:
            stream = generate_stream(trained.model, trained.params, decode_request, config)
            texts = [TextStream(decoder, request.stop_strings) for _ in range(count)]
            yield from _stream_samples(stream, text, texts, on_text)
            on_text = None  # only the first sample is shown
        else:
            output = generate(trained.model, trained.params, decode_request, config)
            yield from (_to_sample(output, row, text, decoder) for row in range(count))


def _grammar(
    constraint: TokenConstraint | None, prompt: DecodeRequest, limit_B: np.ndarray, text: str
) -> TokenGrammar | None:
    """The grammar of a batch of samples, which share the one row of the source, or of the prompt without a source."""
    if constraint is None:
        return None
    source_1S, valid_1S = prompt.batch.source_BS, prompt.batch.source_valid_BS
    if source_1S is None:
        source_1S, valid_1S = prompt.prompt_BP, prompt.prompt_valid_BP
    source_BS, valid_BS = (np.asarray(row_1S).repeat(len(limit_B), axis=0) for row_1S in (source_1S, valid_1S))
    return constraint.grammar(source_BS, valid_BS, limit_B, [text] * len(limit_B))


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
                sample = replace(_to_sample(host, row, prompt, text.decoder), text=text.text)
                samples[row] = replace(sample, reason="string") if text.ended else sample
        if all(samples):
            break
    blank = Sample(prompt, "", 0.0, 0, FINISH_REASONS[FINISH_NONE])
    return [
        sample or (blank if host is None else _to_sample(host, row, prompt, texts[row].decoder))
        for row, sample in enumerate(samples)
    ]


def _to_sample(output: GenerationOutput, row: int, prompt: str, decoder: Tokenizer | ContinuationDecoder) -> Sample:
    size = int(output.length_B[row])
    text = decoder.decode([np.asarray(output.tokens_BT[row, :size]).tolist()])[0]
    reason = FINISH_REASONS[int(output.reason_B[row])]
    return Sample(prompt, text, logprob=float(output.logprob_B[row]), tokens=size, reason=reason)

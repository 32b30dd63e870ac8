"""Lines in, lines out: tokenize, batch by length, search on the device, detokenize, restore the order."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxlm.data.batching.eval_batches import collate_rows, eval_batches, queue_shapes
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.continuous_batching import beam_search_queue, search_params
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_REASONS
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.inference.base import (
    Answer,
    ProgressCallback,
    TrainedModel,
    cut_to_positions,
    non_blank,
    to_single_line,
    token_texts,
)
from jaxlm.models.properties import max_input_positions, max_target_positions
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class Search:
    """Options of decoding one line.

    Attributes:
      max_len_ratio, max_len_extra: an answer has at most max_len_ratio x source tokens + max_len_extra tokens.
      batch_tokens: source positions per batch (the decoder has `beam.num_beams` rows per source).
      max_source_len: maximum number of source tokens, EOS included; longer lines are cut.
      attention: whether `predict` also gives the attention weights of each token of the best answer.
      fixed_batch: if given, this many lines are decoded at a time, each padded to its own length alone. An answer then
        has the same bits for any other lines; otherwise sums may be rounded differently in batches of other shapes.
    """

    beam: Beam = Beam()
    max_len_ratio: float = 1.0
    max_len_extra: int = 50
    batch_tokens: int = 2048
    max_source_len: int = 512
    attention: bool = False
    fixed_batch: int | None = None

    def max_answer_tokens(self, source_tokens: Any) -> np.ndarray:
        """The most tokens of each answer, a function of its own source length (EOS included) only."""
        return np.asarray(source_tokens * self.max_len_ratio + self.max_len_extra, np.int32)

    @property
    def constraint(self) -> Any:
        """The constraint on the answers (`jaxlm.inference.constraints.TokenConstraint`), here none."""
        return None


@dataclass(frozen=True)
class Hypothesis:
    """One answer: text, log-probability (natural log, EOS included), score of the beam, tokens, finish reason."""

    text: str
    logprob: float
    score: float
    tokens: int
    reason: str
    token_logprobs: tuple[float, ...]
    ids: tuple[int, ...] = ()


def translate(
    trained: TrainedModel, lines: Sequence[str], search: Search, progress: ProgressCallback = None
) -> list[list[Hypothesis]]:
    """`search.beam.num_return_sequences` answers for each line, best first, in the order of the lines.

    A blank line gets blank answers and never reaches the model. No line's answer depends on another line. Several
    hosts share the lines.
    """
    kept = _kept_answers.get()
    if kept is None:
        return _translate_shared(trained, lines, search, progress)
    if any(line not in kept or kept[line][0] != search for line in lines):
        answers = _translate_shared(trained, lines, search, progress)
        kept.update({line: (search, best_first) for line, best_first in zip(lines, answers, strict=True)})
    return [kept[line][1] for line in lines]


_kept_answers: ContextVar[dict[str, tuple[Search, list[Hypothesis]]] | None] = ContextVar("kept_answers", default=None)


@contextlib.contextmanager
def keep_answers() -> Iterator[None]:
    """In this block, which uses one model, no line is decoded twice by the same search."""
    token = _kept_answers.set({})
    try:
        yield
    finally:
        _kept_answers.reset(token)


def _translate_shared(
    trained: TrainedModel, lines: Sequence[str], search: Search, progress: ProgressCallback
) -> list[list[Hypothesis]]:
    if multihost.num_hosts() == 1:
        return _translate_local(trained, lines, search, progress)
    local = replace(trained, params=multihost.to_local(trained.params))

    def translate_share(lines: Sequence[str]) -> list[list[dict]]:
        best_first = _translate_local(local, lines, search, progress)
        return [[vars(hypothesis) for hypothesis in hypotheses] for hypotheses in best_first]

    def from_json(record: dict[str, Any]) -> Hypothesis:
        tuples = {name: tuple(value) for name, value in record.items() if isinstance(value, list)}  # JSON has none
        return Hypothesis(**(record | tuples))

    return [list(map(from_json, hypotheses)) for hypotheses in multihost.map_over_hosts(lines, translate_share)]


def _translate_local(
    trained: TrainedModel, lines: Sequence[str], search: Search, progress: ProgressCallback
) -> list[list[Hypothesis]]:
    answers = [[Hypothesis("", 0.0, 0.0, 0, "blank", ())] * search.beam.num_return_sequences for _ in lines]
    indices = non_blank(lines)
    if not indices:
        return answers
    texts = [lines[index] for index in indices]
    column = Ragged.from_rows(trained.tokenizer.encode(texts))
    for row_B, hypotheses in _decode_queue(trained, column, search, texts):
        for row in np.flatnonzero(row_B >= 0):
            answers[indices[row_B[row]]] = to_hypotheses(hypotheses, int(row), trained.tokenizer)
        if progress:
            progress(int((row_B >= 0).sum()))
    return answers


def _decode_queue(
    trained: TrainedModel, column: Ragged, search: Search, texts: Sequence[str]
) -> Iterator[tuple[np.ndarray, Any]]:
    """(rows, hypotheses as NumPy) for some rows at a time, the longest sources first."""
    if search.constraint:
        yield from _decode_in_batches(trained, column, search, texts)
        return
    special, max_length, params = trained.tokenizer.special, max_source_tokens(trained.model, search), None
    for rows, length, places, group in queue_shapes(column, search.batch_tokens, max_length, search.fixed_batch):
        padded = np.pad(rows, (0, -len(rows) % group), constant_values=-1)
        batches = (
            (row_G, decode_request(trained, search, row_G, collate_rows({"source": column}, row_G, length, special)))
            for row_G in padded.reshape(-1, group)
        )
        config, first = search_config(trained, search, length), next(batches)
        if params is None:
            params = search_params(trained.model, trained.params, first[1], config)
        yield from beam_search_queue(trained.model, params, itertools.chain([first], batches), places, config)


def max_source_tokens(model: Any, search: Search) -> int:
    """The most tokens of a source that are read, EOS included: those of the search, if the model has positions."""
    return min(search.max_source_len, max_input_positions(model) or search.max_source_len)


def answer_limits(model: Any, search: Search, source_tokens: Any) -> np.ndarray:
    """The most tokens of each answer to a source of this length: those of the search, if the model has positions."""
    tokens, positions = search.max_answer_tokens(source_tokens), max_target_positions(model, source_tokens)
    return tokens if positions is None else np.minimum(tokens, positions)


def decode_request(trained: TrainedModel, search: Search, row_B: np.ndarray, batch: Batch) -> DecodeRequest:
    """BOS as the prompt of each row, and the limit of its own source length; 0 for fillers, the rows of number -1."""
    limit_B = np.where(row_B >= 0, answer_limits(trained.model, search, batch.source_valid_BS.sum(1)), 0)
    prompt_B1 = np.full((len(row_B), 1), trained.tokenizer.special.start, np.int32)
    return DecodeRequest(batch, prompt_B1, np.ones_like(prompt_B1, bool), limit_B)


def search_config(trained: TrainedModel, search: Search, source_length: int) -> BeamSearchConfig:
    """The room for answers, the ids that end one, and the beam, which must not generate the suppressed ids."""
    special = trained.tokenizer.special
    room = min(int(search.max_answer_tokens(source_length)), max_target_positions(trained.model, 1) or sys.maxsize)
    suppress = (*search.beam.suppress_tokens, *special.suppress)
    beam = replace(search.beam, suppress_tokens=suppress)
    return BeamSearchConfig(room, special.end_ids, beam)


def _decode_in_batches(
    trained: TrainedModel, column: Ragged, search: Search, texts: Sequence[str]
) -> Iterator[tuple[np.ndarray, Any]]:
    """The same under a grammar; one batch is on the device while the one before it is turned into text."""
    previous, special = None, trained.tokenizer.special
    for row_B, batch in eval_batches(
        {"source": column},
        search.batch_tokens,
        row_multiple=1,
        max_length=max_source_tokens(trained.model, search),
        special=special,
    ):
        request = decode_request(trained, search, row_B, batch)
        sources = [texts[row] if row >= 0 else "" for row in row_B]
        request = replace(request, limit_B=search.constraint.limits(request.limit_B, sources))
        grammar = search.constraint.grammar(batch.source_BS, batch.source_valid_BS, request.limit_B, sources)
        config = search_config(trained, search, batch.source_BS.shape[1])
        hypotheses = beam_search(trained.model, trained.params, replace(request, grammar=grammar), config)
        if previous is not None:
            yield previous[0], _to_host(previous[1])
        previous = row_B, hypotheses
    if previous is not None:
        yield previous[0], _to_host(previous[1])


def _to_host(hypotheses: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in vars(hypotheses).items()}


def to_hypotheses(arrays: dict[str, np.ndarray], row: int, tokenizer: Tokenizer) -> list[Hypothesis]:
    """The hypotheses of one row of a batch; `arrays` are the fields of `jaxlm.decode.results.Hypotheses`."""
    hypotheses = []
    for slot in range(arrays["length_BN"].shape[1]):
        size = int(arrays["length_BN"][row, slot])
        ids = arrays["tokens_BNT"][row, slot, :size].tolist()
        text, reason = to_single_line(tokenizer.decode([ids])[0]), FINISH_REASONS[int(arrays["reason_BN"][row, slot])]
        logprob, score = (float(arrays[name][row, slot]) for name in ("logprob_BN", "score_BN"))
        token_logprobs = tuple(map(float, arrays["token_logprob_BNT"][row, slot, :size]))
        hypotheses.append(Hypothesis(text, logprob, score, size, reason, token_logprobs, tuple(ids)))
    return hypotheses


def to_answer(line: str, hypotheses: Sequence[Hypothesis]) -> Answer:
    """The texts with TABs between them (a single text keeps its own TABs), and the record of all hypotheses."""
    best, *others = hypotheses
    text = "\t".join(item.text.replace("\t", " ") for item in hypotheses) if others else best.text
    names = ("text", "score", "logprob", "tokens", "reason")
    records = [{name: getattr(item, name) for name in names} for item in hypotheses if item.reason != "none"]
    record = {"source": line, "prediction": best.text, "score": best.score, "logprob": best.logprob}
    return Answer(text, record | {"hypotheses": records})


def answer_attention_weights(
    trained: TrainedModel, lines: Sequence[str], answers: Sequence[Hypothesis], search: Search
) -> list[dict[str, Any]]:
    """For each answer {"source": tokens, "target": tokens, "weights": a row for each target token}, from one more
    forward pass. Raises UserError for a model without the method `cross_attention_weights`.
    """
    if not hasattr(trained.model, "cross_attention_weights"):
        raise UserError(
            f"{type(trained.model).__name__} has no attention weights, a Seq2Seq with context='attention' has them: "
            "leave --attention out"
        )
    records: list[dict[str, Any]] = [{"source": [], "target": [], "weights": []} for _ in lines]
    indices = [index for index, answer in enumerate(answers) if answer.ids]
    if not indices:
        return records
    tokenizer, special = trained.tokenizer, trained.tokenizer.special
    columns: Columns = {
        "source": Ragged.from_rows(tokenizer.encode([lines[index] for index in indices])),
        "target": Ragged.from_rows([[i for i in answers[index].ids if i not in special.end_ids] for index in indices]),
    }
    columns, _ = cut_to_positions(trained.model, columns, search.max_source_len)
    for row_B, batch in eval_batches(columns, search.batch_tokens, row_multiple=1, special=special):
        weight_BTS = np.asarray(_jitted_attention(trained.model, trained.params, batch))
        for row in np.flatnonzero(row_B >= 0):
            target_size, source_size = batch.target_valid_BT[row].sum(), batch.source_valid_BS[row].sum()
            records[indices[row_B[row]]] = {
                "source": token_texts(tokenizer.side("source"), batch.source_BS[row, :source_size].tolist()),
                "target": token_texts(tokenizer.side("target"), batch.label_BT[row, :target_size].tolist()),
                "weights": weight_BTS[row, :target_size, :source_size].astype(float).round(4).tolist(),
            }
    return records


@functools.partial(jax.jit, static_argnums=0)
def _jitted_attention(model: Any, params: Params, batch: Batch) -> Array:
    return model.apply({"params": params}, batch, method="cross_attention_weights")

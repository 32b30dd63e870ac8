"""Lines in, lines out: tokenise, batch by length, search on the device, detokenise, restore the order."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxlm.data.batching.eval_batches import collate_rows, eval_batches, queue_shapes
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import SpecialIds, Tokenizer
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.continuous_batching import beam_search_queue
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_REASONS
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.inference.base import ProgressCallback, TrainedModel
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class Search:
    """How a line is decoded: the beam, and the most tokens of an answer, `ratio` x source tokens + `extra`.

    tokens: source positions a batch (times the beam, decoder rows).
    max_source: source tokens kept of a longer line, EOS included.
    attention: `predict` also tells what each token of the best answer looked at.
    """

    beam: Beam = Beam()
    max_len_ratio: float = 1.0
    max_len_extra: int = 50
    batch_tokens: int = 2048
    max_source_len: int = 512
    attention: bool = False

    def max_answer_tokens(self, source_tokens: Any) -> np.ndarray:
        """The most tokens of each answer, a function of its own source length (EOS included) only."""
        return np.asarray(source_tokens * self.max_len_ratio + self.max_len_extra, np.int32)

    @property
    def is_constrained(self) -> bool:
        """Whether `grammar` gives one."""
        return False

    def grammar(self, source_BS: Any, valid_BS: Any, limit_B: Any) -> Any:
        """What the answers of a batch must be (`jaxlm.decode.grammar.Grammar`): here anything."""
        return None


@dataclass(frozen=True)
class Hypothesis:
    """One answer: text, log-probability s (natural log, EOS included), score S, tokens, why it ended."""

    text: str
    logprob: float
    score: float
    tokens: int
    reason: str
    token_logprobs: tuple[float, ...]
    ids: tuple[int, ...] = ()


def translate(
    trained: TrainedModel,
    lines: Sequence[str],
    search: Search,
    progress: ProgressCallback = None,
) -> list[list[Hypothesis]]:
    """`search.beam.num_return_sequences` answers for each line, best first, in the order of the lines.

    A blank line gets blank answers and never reaches the model. No line's answer depends on another line.
    """
    if multihost.num_hosts() > 1:
        local = replace(trained, params=multihost.to_local(trained.params))

        def some_of(lines: Sequence[str]) -> list[list[dict]]:
            found = _translate_local(local, lines, search, progress)
            return [[vars(hypothesis) for hypothesis in hypotheses] for hypotheses in found]

        return [[_from_json(said) for said in answers] for answers in multihost.map_over_hosts(lines, some_of)]
    return _translate_local(trained, lines, search, progress)


def _translate_local(
    trained: TrainedModel,
    lines: Sequence[str],
    search: Search,
    progress: ProgressCallback,
) -> list[list[Hypothesis]]:
    answers = [[Hypothesis("", 0.0, 0.0, 0, "blank", ())] * search.beam.num_return_sequences for _ in lines]
    asked = [index for index, line in enumerate(lines) if line.strip()]
    if not asked:
        return answers
    column = Ragged.from_rows([ids for ids in trained.tokenizer.encode([lines[index] for index in asked])])
    for row_B, found in _decode_queue(trained, column, search):
        for at in np.flatnonzero(row_B >= 0):
            answers[asked[row_B[at]]] = _to_hypotheses(found, int(at), trained.tokenizer)
        if progress:
            progress(int((row_B >= 0).sum()))
    return answers


def _from_json(fields_json: dict[str, Any]) -> Hypothesis:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields_json.items()
    }
    return Hypothesis(**fields)


def _decode_queue(trained: TrainedModel, column: Ragged, search: Search) -> Iterator[tuple[np.ndarray, Any]]:
    """(rows, hypotheses as NumPy) for some rows at a time, the longest sources first."""
    if search.is_constrained:
        yield from _decode_in_batches(trained, column, search)
        return
    special = trained.tokenizer.special
    for rows, length, places, group in queue_shapes(column, search.batch_tokens, search.max_source_len):
        padded = np.pad(rows, (0, -len(rows) % group), constant_values=-1)
        batches = (
            (row_G, _request(search, row_G, collate_rows({"source": column}, row_G, length, special), special))
            for row_G in padded.reshape(-1, group)
        )
        config = _search_config(search, length, special)
        yield from beam_search_queue(trained.model, trained.params, batches, places, config)


def _request(search: Search, row_B: np.ndarray, batch: Batch, special: SpecialIds) -> DecodeRequest:
    """BOS as the prompt of each row, and the limit of its own source length; 0 for fillers, the rows of number -1."""
    limit_B = np.where(row_B >= 0, search.max_answer_tokens(batch.source_valid_BS.sum(1)), 0)
    prompt_B1 = np.full((len(row_B), 1), special.start, np.int32)
    return DecodeRequest(batch, prompt_B1, np.ones_like(prompt_B1, bool), limit_B)


def _search_config(search: Search, source_length: int, special: SpecialIds) -> BeamSearchConfig:
    """The room for answers, the ids that end one, and the beam, which must not generate the suppressed ids."""
    suppress = (*search.beam.suppress_tokens, *special.suppress)
    beam = replace(search.beam, suppress_tokens=suppress)
    return BeamSearchConfig(int(search.max_answer_tokens(np.asarray(source_length))), special.end_ids, beam)


def _decode_in_batches(trained: TrainedModel, column: Ragged, search: Search) -> Iterator[tuple[np.ndarray, Any]]:
    """The same under a grammar; one batch is on the device while the one before it is turned into text."""
    before, special = None, trained.tokenizer.special
    for row_B, batch in eval_batches(
        {"source": column}, search.batch_tokens, row_multiple=1, max_length=search.max_source_len, special=special
    ):
        request = _request(search, row_B, batch, special)
        request = replace(request, grammar=search.grammar(batch.source_BS, batch.source_valid_BS, request.limit_B))
        config = _search_config(search, batch.source_BS.shape[1], special)
        found = beam_search(trained.model, trained.params, request, config)
        if before is not None:
            yield before[0], _to_host(before[1])
        before = row_B, found
    if before is not None:
        yield before[0], _to_host(before[1])


def _to_host(found: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in vars(found).items()}


def _to_hypotheses(found: dict[str, np.ndarray], row: int, tokenizer: Tokenizer) -> list[Hypothesis]:
    answers = []
    for slot in range(found["length_BN"].shape[1]):
        size = int(found["length_BN"][row, slot])
        ids = found["tokens_BNT"][row, slot, :size]
        answers.append(
            Hypothesis(
                text=to_single_line(tokenizer.decode([ids.tolist()])[0]),
                logprob=float(found["logprob_BN"][row, slot]),
                score=float(found["score_BN"][row, slot]),
                tokens=size,
                reason=FINISH_REASONS[int(found["reason_BN"][row, slot])],
                token_logprobs=tuple(float(x) for x in found["token_logprob_BNT"][row, slot, :size]),
                ids=tuple(ids.tolist()),
            )
        )
    return answers


def answer_attention_weights(
    trained: TrainedModel,
    lines: Sequence[str],
    answers: Sequence[Hypothesis],
    search: Search,
) -> list[dict[str, Any]]:
    """For each answer {"source": pieces, "target": pieces, "weights": a row a target piece}: it is read once more.

    Raises UserError for a model without attention weights (it has no method `attention`).
    """
    if not hasattr(trained.model, "cross_attention_weights"):
        raise UserError(
            f"{type(trained.model).__name__} cannot tell attention weights, a Seq2Seq with context='attention' can: "
            "leave --attention out"
        )
    found: list[dict[str, Any]] = [{"source": [], "target": [], "weights": []} for _ in lines]
    asked = [index for index, answer in enumerate(answers) if answer.ids]
    special = trained.tokenizer.special
    answer_ids = [[i for i in answers[index].ids if i not in special.end_ids] for index in asked]
    source = Ragged.from_rows(trained.tokenizer.encode([lines[index] for index in asked]))
    if not asked:
        return found
    for row_B, batch in eval_batches(
        {"source": source, "target": Ragged.from_rows(answer_ids)}, search.batch_tokens, row_multiple=1, special=special
    ):
        weight_BTS = np.asarray(_jitted_attention(trained.model, trained.params, batch))
        for row in np.flatnonzero(row_B >= 0):
            sizes = batch.target_valid_BT[row].sum(), batch.source_valid_BS[row].sum()
            pieces = [_pieces(trained.tokenizer, ids[:size]) for ids, size in
                      ((batch.source_BS[row], sizes[1]), (batch.label_BT[row], sizes[0]))]  # fmt: skip
            weights = weight_BTS[row, : sizes[0], : sizes[1]].round(4).tolist()
            found[asked[row_B[row]]] = {"source": pieces[0], "target": pieces[1], "weights": weights}
    return found


@functools.partial(jax.jit, static_argnums=0)
def _jitted_attention(model: Any, params: Params, batch: Batch) -> Array:
    return model.apply({"params": params}, batch, method="cross_attention_weights")


def _pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    return ["</s>" if i == tokenizer.special.eos else tokenizer.decode([[i]])[0] for i in ids.tolist()]


def to_single_line(text: str) -> str:
    """N lines in, N lines out, even from an untrained model that says a line break."""
    return text.replace("\r", " ").replace("\n", " ").strip()

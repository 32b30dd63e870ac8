"""The task of preferences: answers that are better or worse than others to the same prompt, or good or bad.

A row of pairs holds prompt and chosen answer, and as the other answer the prompt and the rejected one. A row of judged
answers (KTO) holds prompt and answer, and as the other answer the prompt and the answer of the next example in a fixed
random order that has another prompt. Both answers of a row share the ids of the prompt.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.batching.collate import OTHER
from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.batching.shuffle import permutation
from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord, Preference, Turn
from jaxlm.data.chat.encoding import DialogueEncoder, dialogue_columns
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns, Ragged, first_nonzero
from jaxlm.data.sources.base import Source, WithStats
from jaxlm.data.storage.token_cache import cached_columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, Answer, ProgressCallback, TrainedModel, non_blank, to_single_line
from jaxlm.inference.generate import GenerationDefaults
from jaxlm.models.reward_model import RewardModel
from jaxlm.objectives.log_probs import PAIR_SIDES, answer_log_probs, stack_answers
from jaxlm.tasks.base import EVAL_SPLITS, ChatTask, batch_losses, mean_losses, prefix_valid
from jaxlm.types import Array, Batch, Params

MAX_LENGTH_CORRELATION = 0.5
"""A reward model whose scores correlate more with the length of the answers has learned the length."""


@dataclass(frozen=True)
class Preferences(ChatTask):
    """Pairs of answers (`Preference`), or judged answers (`Judged`).

    Attributes:
      generation: the defaults of `generate`.
      batch_tokens: positions per batch of evaluation.
    """

    generation: GenerationDefaults = GenerationDefaults()
    batch_tokens: int = EVAL_BATCH_TOKENS

    eval_only_fields: ClassVar[tuple[str, ...]] = (*EVAL_SPLITS, "generation", "batch_tokens")
    batch_columns: ClassVar[tuple[str, ...]] = ("target", "loss_mask", "other_target", "other_loss_mask", "class")
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "accuracy", "margin")

    def texts(self) -> Iterator[str]:
        """Prompts and answers of the training split."""
        for row in self.train:
            yield row.prompt.text
            yield from (row.chosen, row.rejected) if isinstance(row, Preference) else (row.answer,)

    def encode_split(
        self, split: str, tokenizer: Tokenizer, folder: Path | None = None, read_stats: ReadStats | None = None
    ) -> Columns:
        """The columns of both answers, and "class": the margin of a pair, or the label of a judged answer.

        Raises UserError for judged answers of one label or to one prompt.
        """
        source = self.split(split)
        return cached_columns(
            WithStats(source, read_stats or ReadStats()),
            partial(self._encode, source, tokenizer),
            f"Preferences {self.chat_template} {tokenizer.fingerprint}",
            folder,
            block_size=sys.maxsize,  # at once: the other answer of a row may be that of any other one
        )

    def _encode(self, source: Source, tokenizer: Tokenizer, rows: list[Any]) -> Columns:
        encode = partial(_answer_columns, self.encoder(tokenizer), name=source.describe())
        if isinstance(rows[0], Preference):
            columns = encode([row.prompt.with_answer(row.chosen) for row in rows])
            other = encode([row.prompt.with_answer(row.rejected) for row in rows])
            columns["class"] = Ragged.from_rows([[row.margin] for row in rows], np.float32)
        else:
            columns = encode([row.prompt.with_answer(row.answer) for row in rows])
            other = _mismatched(columns, source.describe())
            columns["class"] = Ragged.from_rows([[int(row.good)] for row in rows])
            if len(labels := {row.good for row in rows}) < 2:
                raise UserError(
                    f"{source.describe()}: all {len(rows):,} answers are {'good' if labels == {True} else 'bad'}, and "
                    "KTO learns from the difference: add answers of the other kind"
                )
        return columns | {f"{OTHER}{name}": column for name, column in other.items()}

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """The loss and the figures of the objective; of a reward model also those of `_score_figures`."""
        columns = dict(self.encode_split("valid", trained.tokenizer))
        if (reference := getattr(objective, "valid_reference", None)) is not None:
            columns["reference"], objective = reference, objective.objective
        figures = mean_losses(batch_losses(trained, columns, objective, batch_tokens))
        if isinstance(trained.model, RewardModel):
            figures |= self._score_figures(trained, columns)
        return prefix_valid(figures)

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The figures that need no reference: scores (log-probabilities, or those of the reward model) and lengths."""
        columns = self.encode_split(split, trained.tokenizer)
        figures: dict[str, Any] = {"split": split, "lines": len(columns["target"])}
        figures |= self._score_figures(trained, columns, progress)
        if figures.get("length_correlation", 0.0) > MAX_LENGTH_CORRELATION:
            figures["note"] = "the scores follow the length of the answers: compare answers of equal length"
        return figures

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The first `count` rows of the test split, with the score of each answer."""
        columns = self.encode_split("test", trained.tokenizer)
        score_NA, _ = self._scores(trained, columns)
        for row, scores in zip(islice(self.test, count), score_NA.tolist(), strict=False):
            answers = (row.chosen, row.rejected) if isinstance(row, Preference) else (row.answer,)
            shown = (f"{to_single_line(text)} ({score:.2f})" for text, score in zip(answers, scores, strict=False))
            yield f"{to_single_line(row.prompt.text)} -> {' | '.join(shown)}"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The score of each line, prompt TAB answer: that of a reward model, or the log-probability of the answer."""
        answers, indices = [Answer("", {"source": line}) for line in lines], non_blank(lines)
        if not indices:
            return answers
        parts = [lines[index].rpartition("\t") for index in indices]
        dialogues = [Dialogue((Turn("user", prompt),)).with_answer(answer) for prompt, _, answer in parts]
        for index, score in zip(indices, self.score_answers(trained, dialogues, progress).tolist(), strict=True):
            answers[index] = Answer(f"{score:.4f}", {"source": lines[index], "score": score})
        return answers

    def score_answers(
        self, trained: TrainedModel, dialogues: Sequence[Dialogue], progress: ProgressCallback = None
    ) -> np.ndarray:
        """The score of the last answer of each dialogue: of a reward model, or its log-probability."""
        columns = _answer_columns(self.encoder(trained.tokenizer), dialogues, "the dialogues")
        return self._scores(trained, columns, progress)[0][:, 0]

    def _scores(
        self, trained: TrainedModel, columns: Columns, progress: ProgressCallback = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The scores of the answers of every row (N, A), and their numbers of tokens."""
        rows: dict[int, np.ndarray] = {}
        params = multihost.to_local(trained.params)
        for row_B, batch in eval_batches(columns, self.batch_tokens, special=trained.tokenizer.special):
            rows |= dict(zip(row_B.tolist(), np.asarray(_score_batch(trained.model, params, batch)), strict=True))
            if progress:
                progress(int((row_B >= 0).sum()))
        scored_NA2 = np.stack([rows[index] for index in range(len(columns["target"]))])
        return scored_NA2[..., 0], scored_NA2[..., 1]

    def _score_figures(
        self, trained: TrainedModel, columns: Columns, progress: ProgressCallback = None
    ) -> dict[str, float]:
        """Mean score and length of each kind of answer; accuracy of pairs; of a reward model also the spread."""
        score_NA, count_NA = self._scores(trained, columns, progress)
        is_pair, label_N = columns["class"].flat.dtype == np.float32, columns["class"].flat
        sides: dict[str, Any] = {side: np.s_[:, index] for index, side in enumerate(PAIR_SIDES)}
        if not is_pair:
            sides = {"desirable": (label_N == 1, 0), "undesirable": (label_N == 0, 0)}
        is_reward = isinstance(trained.model, RewardModel)
        columns_NA = {"score" if is_reward else "logp": score_NA, "length": count_NA}
        figures = {f"{name}/{side}": x_NA[at].mean() for name, x_NA in columns_NA.items() for side, at in sides.items()}
        if is_pair:
            figures["accuracy"] = (score_NA[:, 0] > score_NA[:, 1]).mean()
        if is_reward:
            figures |= {"score/mean": score_NA.mean(), "score/sd": score_NA.std()}
            figures["length_correlation"] = np.corrcoef(score_NA.reshape(-1), count_NA.reshape(-1))[0, 1]
        return {name: float(value) for name, value in figures.items()}


@partial(jax.jit, static_argnums=0)
def _score_batch(model: Any, params: Params, batch: Batch) -> Array:
    """(B, A, 2): the score of each answer and its number of tokens."""
    if not isinstance(model, RewardModel):
        answers = answer_log_probs(model, params, batch)
        return jnp.stack([answers.total_BA, answers.count_BA], -1)
    rows = stack_answers(batch)
    score_R: Any = model.apply({"params": params}, rows)
    return jnp.stack([score_R, rows.label_valid_BT.sum(1)], -1).reshape(len(batch.target_BT), -1, 2)


def _answer_columns(encoder: DialogueEncoder, dialogues: Sequence[Dialogue], name: str) -> dict[str, Ragged]:
    """The columns "target" and "loss_mask" of dialogues, of which the last answer is trained."""
    try:
        return dialogue_columns(encoder.encode(dialogues), encoder.tokenizer)
    except InvalidRecord as error:
        raise UserError(f"{name}: {error}") from None


def _mismatched(columns: Columns, name: str) -> dict[str, Ragged]:
    """Each prompt with the answer of another example: the next one in a random order that has another prompt."""
    ids, mask = columns["target"], columns["loss_mask"]
    prompt_N = first_nonzero(mask)
    key_N = [ids[row][:size].tobytes() for row, size in enumerate(prompt_N)]
    if len(set(key_N)) < 2:
        raise UserError(
            f"{name}: all {len(ids):,} answers are to one prompt, and KTO compares each prompt with an answer to "
            "another one: add prompts, or train on pairs of these answers"
        )
    order = permutation(len(ids), 0, 0).tolist()
    partner = [0] * len(order)
    following = order[0]  # of the row at hand, the next one with another prompt
    for place in range(2 * len(order) - 1, -1, -1):  # twice around: the order is a circle
        row, after = order[place % len(order)], order[(place + 1) % len(order)]
        following = after if key_N[after] != key_N[row] else following
        partner[row] = following
    bounds = [(prompt_N[row], other, prompt_N[other]) for row, other in enumerate(partner)]
    return {
        column: Ragged.from_rows(
            [np.concatenate([x[row][:end], x[other][start:]]) for row, (end, other, start) in enumerate(bounds)],
            x.flat.dtype,
        )
        for column, x in columns.items()
    }

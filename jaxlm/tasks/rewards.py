"""The task of rewards: prompts, and a judge that gives a number to each answer that the model samples.

A judge (`jaxlm.training.judges`) is a frozen dataclass with `__call__(prompts, answers, rows) -> rewards`: a pure
function of the texts of the prompts, the answers without their ends, and the dialogues; one finite number an answer.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.chat.dialogue import Dialogue, InvalidRecord
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.sources.base import WithStats
from jaxlm.data.storage.token_cache import cached_columns, id_dtype
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.results import FINISH_REASONS, FINISH_STOP
from jaxlm.errors import UserError
from jaxlm.inference.base import ProgressCallback, TrainedModel
from jaxlm.metrics.text import distinct_ngrams
from jaxlm.tasks.base import EVAL_SPLITS, prefix_valid
from jaxlm.tasks.instruction_tuning import AnsweringTask


@dataclass(frozen=True)
class Rewards(AnsweringTask):
    """Prompts, to which the model samples answers, and their judge. The objective is a `PolicyGradient`.

    Attributes:
      train, valid, test: sources of `Dialogue`s, of which all turns before the first trained answer are the prompt.
      generation: sampler and limits of `evaluate`, `predict` and `generate`; training has those of its objective.
      judge: gives the reward of each answer.
    """

    judge: Any = None

    eval_only_fields: ClassVar[tuple[str, ...]] = (*EVAL_SPLITS, "generation", "batch_tokens")
    batch_columns: ClassVar[tuple[str, ...]] = ("target", "class")
    metric_names: ClassVar[tuple[str, ...]] = ("reward", "length", "ended", "distinct/1", "distinct/2", "kl")

    def __post_init__(self) -> None:
        if not callable(self.judge):
            raise UserError(f"judge = {self.judge!r:.60}: expected one that can be called, such as ExactMatch()")

    def encode_split(
        self, split: str, tokenizer: Tokenizer, folder: Path | None = None, read_stats: ReadStats | None = None
    ) -> Columns:
        """The column "target", the prompts, and as "class" the number of each row in the split."""
        source, encoder = self.split(split), self.encoder(tokenizer)

        def encode(rows: list[Dialogue]) -> Columns:
            try:
                prompts = encoder.encode_prompts([row.prompt for row in rows])
            except InvalidRecord as error:
                raise UserError(f"{source.describe()}: {error}") from None
            target = Ragged.from_rows([ids[1:] for ids in prompts], id_dtype(tokenizer))
            return {"target": target, "class": Ragged.from_rows([[number] for number in range(len(rows))])}

        counted, recipe = WithStats(source, read_stats or ReadStats()), f"{self.chat_template} {tokenizer.fingerprint}"
        return cached_columns(counted, encode, f"Rewards {recipe}", folder, block_size=sys.maxsize)

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """The means of one sample for each prompt; `objective`: the `Rollouts` of a run (`jaxlm.training.rollout`)."""
        columns, rows = self.encode_split("valid", trained.tokenizer), list(self.valid)
        longest = int(columns["target"].lengths.max()) + 1
        tokens = batch_tokens * longest // (longest + objective.objective.max_tokens)
        sums: dict[str, Any] = {}
        texts: list[str] = []
        for _, prompts in eval_batches(columns, tokens, special=trained.tokenizer.special):
            _, answers, figures = objective.roll_out(trained.params, prompts, rows, 1, "valid")
            texts += answers
            sums = {name: sums.get(name, 0.0) + x for name, x in figures.items() if not name.startswith("time/")}
        return prefix_valid(_means(sums | distinct_ngrams(texts)))

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Mean reward of the answers of a split; their length in words, the share that ended, and distinct n-grams."""
        rows = list(self.split(split))
        prompts = [row.prompt for row in rows]
        answers = self.answer(trained, prompts)
        texts = [text.strip() for text, _ in answers]
        if progress:
            progress(len(rows))
        ended, words = sum(reason == FINISH_REASONS[FINISH_STOP] for _, reason in answers), " ".join(texts).split()
        sums = {"ended": (ended, len(rows)), "words": (len(words), len(rows))}
        reward = float(judge_answers(self.judge, [prompt.text for prompt in prompts], texts, rows).mean())
        return {"split": split, "lines": len(rows), "reward": reward} | _means(sums | distinct_ngrams(texts))


def _means(figures: dict[str, Any]) -> dict[str, float]:
    return {name: float(total / max(count, 1)) for name, (total, count) in figures.items()}


def judge_answers(judge: Any, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Any]) -> np.ndarray:
    """The rewards, float32. Raises UserError, with the answer, for a judge that fails or gives no number."""
    name = getattr(judge, "__name__", type(judge).__name__)

    def fault(what: str, index: int) -> UserError:
        place = f"the answer {answers[index]!r:.200} to the prompt {prompts[index]!r:.200}"
        return UserError(f"the judge {name} {what} {place}: expected a finite number for each answer")

    try:
        rewards = np.asarray(judge(prompts, answers, rows), np.float32)
    except UserError:
        raise
    except Exception as error:
        for one in zip(prompts, answers, rows, strict=True) if len(answers) > 1 else ():
            judge_answers(judge, *([part] for part in one))  # raises for the answer that is to blame
        raise fault(f"raised {type(error).__name__} ({error}) for", 0) from None
    if rewards.shape != (len(answers),):
        raise fault(f"gave {rewards.size:,} rewards for {len(answers):,} answers, such as", 0)
    if len(wrong := np.flatnonzero(~np.isfinite(rewards))):
        raise fault(f"gave the reward {rewards[wrong[0]]} for", int(wrong[0]))
    return rewards

"""The task of telling a number of a text or of a pair, as how alike two sentences are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.base import Pair, Pairs
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, Answer, ProgressCallback, TrainedModel
from jaxlm.metrics.classification import pearson, spearman
from jaxlm.tasks.supervised import SupervisedTask, eval_loss, fit_to_model, predict_rows, source_columns


@dataclass(frozen=True)
class TextRegression(SupervisedTask):
    """A text, or a pair between a TAB, to a number; the sources give pairs (text, number).

    low, high: between which the numbers lie. The model tells (number - low) / (high - low).
    """

    min_value: float = 0.0
    max_value: float = 5.0

    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "pearson", "spearman")
    batch_columns: ClassVar[tuple[str, ...]] = ("source", "number")

    def __post_init__(self) -> None:
        if not self.min_value < self.max_value:
            raise UserError(f"numbers from {self.min_value} to {self.max_value}: expected low < high")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError for a model that tells anything but one number."""
        super().check_model(model, tokenizer)
        if model.num_labels != 1:
            raise UserError(f"the model tells {model.num_labels} numbers, the task has one: set its num_labels = 1")

    def validate(
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """Mean squared error, and the correlations, 0 to 100."""
        self.check_model(trained.model, trained.tokenizer)
        columns = self._encode_pairs(self.valid, list(self.valid), trained.tokenizer, trained.model)
        figures = eval_loss(trained, objective, columns, batch_tokens)
        gold, said = (
            columns["class"].flat,
            predict_rows(trained, _jitted_values(trained.model), columns, batch_tokens, progress)[:, 0],
        )
        return figures | {"valid/pearson": 100 * pearson(gold, said), "valid/spearman": 100 * spearman(gold, said)}

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Correlations, 0 to 100, and the mean squared error in the units of the data."""
        self.check_model(trained.model, trained.tokenizer)
        pairs = self.pairs(split)
        columns = self._encode_pairs(pairs, list(pairs), trained.tokenizer, trained.model)
        gold, said = (
            columns["class"].flat,
            predict_rows(trained, _jitted_values(trained.model), columns, EVAL_BATCH_TOKENS, progress)[:, 0],
        )
        error = float(((gold - said) ** 2).mean()) * (self.max_value - self.min_value) ** 2
        found = {"split": split, "lines": len(said), "pearson": 100 * pearson(gold, said)}
        return found | {"spearman": 100 * spearman(gold, said), "mean_squared_error": error}

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The number of each line, in the units of the data."""
        self.check_model(trained.model, trained.tokenizer)
        answers = [Answer("", {"source": line, "prediction": ""}) for line in lines]
        asked = [index for index, line in enumerate(lines) if line.strip()]
        if not asked:
            return answers
        columns = source_columns(
            trained.tokenizer, [lines[index] for index in asked], fit_to_model(self.sequence_format, trained.model)
        )
        for index, said in zip(
            asked,
            predict_rows(trained, _jitted_values(trained.model), columns, EVAL_BATCH_TOKENS, progress)[:, 0],
            strict=True,
        ):
            number = self.min_value + float(said) * (self.max_value - self.min_value)
            answers[index] = Answer(f"{number:.3f}", {"source": lines[index], "prediction": number})
        return answers

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The first `count` test texts, the number that was told, and the right one."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self.predict(trained, [text for text, _ in pairs])
        for (text, number), answer in zip(pairs, answers, strict=True):
            yield f"{text} -> {answer.text} (right: {number})"

    def _encode_pairs(
        self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None
    ) -> dict[str, Ragged]:
        """Rows that are judged are cut to what the model reads; training leaves out what its batches do not hold."""
        columns = source_columns(tokenizer, [text for text, _ in pairs], fit_to_model(self.sequence_format, model))
        numbers = [self._encode_label(source, index, *pair) for index, pair in enumerate(pairs)]
        return columns | {"class": Ragged.from_rows([np.array(number) for number in numbers], np.float32)}

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str) -> list[float]:
        try:
            number = float(label)
        except ValueError:
            number = float("nan")
        if not self.min_value <= number <= self.max_value:
            raise UserError(
                f"{pairs.describe()}: text {index + 1}, {text[:60]!r}, has {label!r}, expected a number from "
                f"{self.min_value} to {self.max_value}. Mend the file, or the task's min_value and max_value."
            )
        return [(number - self.min_value) / (self.max_value - self.min_value)]


@lru_cache(maxsize=8)
def _jitted_values(model: Any) -> Any:
    """The jitted number of a model: batch -> (B, 1)."""
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch))

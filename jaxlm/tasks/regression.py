"""The task of regression: a number for a text or a pair of texts, such as how similar two sentences are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.sources.base import Pair, Pairs
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, Answer, ProgressCallback, TrainedModel
from jaxlm.metrics.classification import pearson, spearman
from jaxlm.tasks.supervised import SupervisedTask, fit_to_model, predict_rows, source_columns


@dataclass(frozen=True)
class TextRegression(SupervisedTask):
    """A text, or a pair of texts with a TAB between them, to a number; the sources give pairs (text, number).

    Attributes:
      min_value, max_value: the range of the numbers, which the model sees scaled to 0..1.
    """

    min_value: float = 0.0
    max_value: float = 5.0

    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "pearson", "spearman")
    batch_columns: ClassVar[tuple[str, ...]] = ("source", "number")

    def __post_init__(self) -> None:
        if not self.min_value < self.max_value:
            raise UserError(f"numbers from {self.min_value} to {self.max_value}: expected min_value below max_value")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError for a model with more than one output."""
        super().check_model(model, tokenizer)
        if model.num_labels != 1:
            raise UserError(f"the model has {model.num_labels} outputs, the task needs one: set its num_labels = 1")

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Correlations, -100 to 100, and the mean squared error in the units of the data."""
        self.check_model(trained.model, trained.tokenizer)
        _, gold, predicted = self._predict_pairs(trained, self.split(split), EVAL_BATCH_TOKENS, progress)
        error = float(((gold - predicted) ** 2).mean()) * (self.max_value - self.min_value) ** 2
        figures = {"split": split, "lines": len(predicted)} | self._valid_metrics(gold, predicted)
        return figures | {"mean_squared_error": error}

    def _valid_metrics(self, gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        return {"pearson": 100 * pearson(gold, predicted), "spearman": 100 * spearman(gold, predicted)}

    def _predict_pairs(
        self, trained: TrainedModel, source: Pairs, batch_tokens: int, progress: ProgressCallback
    ) -> tuple[Columns, np.ndarray, np.ndarray]:
        columns = self._encode_pairs(source, list(source), trained.tokenizer, trained.model)
        value_N1 = predict_rows(trained, _jitted_values(trained.model), columns, batch_tokens, progress)
        return columns, columns["class"].flat, value_N1[:, 0]

    def _predict_texts(self, trained: TrainedModel, texts: Sequence[str], progress: ProgressCallback) -> np.ndarray:
        columns = source_columns(trained.tokenizer, texts, fit_to_model(self.sequence_format, trained.model))
        return predict_rows(trained, _jitted_values(trained.model), columns, EVAL_BATCH_TOKENS, progress)[:, 0]

    def _answer(self, line: str, output: np.ndarray | None) -> Answer:
        """The number in the units of the data."""
        if output is None:
            return Answer("", {"source": line, "prediction": ""})
        number = self.min_value + float(output) * (self.max_value - self.min_value)
        return Answer(f"{number:.3f}", {"source": line, "prediction": number})

    def _encode_pairs(self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None) -> Columns:
        """Columns "source" and "class", a float32 from 0 to 1."""
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
                f"{self.min_value} to {self.max_value}. Correct the file, or the task's min_value and max_value."
            )
        return [(number - self.min_value) / (self.max_value - self.min_value)]


@lru_cache(maxsize=8)
def _jitted_values(model: Any) -> Any:
    """The jitted number of a model: (parameters, batch) -> (B, 1)."""
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch))

"""The task of regression: a number for a text or a pair of texts, such as how similar two sentences are."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxlm.data.ragged import Columns
from jaxlm.data.sources.base import Pairs
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer
from jaxlm.metrics.classification import pearson, spearman
from jaxlm.tasks.supervised import SupervisedTask


@dataclass(frozen=True)
class TextRegression(SupervisedTask):
    """A text, or two with a TAB between them, to a number from `min_value` to `max_value`, scaled to 0..1."""

    min_value: float = 0.0
    max_value: float = 5.0

    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "pearson", "spearman")
    batch_columns: ClassVar[tuple[str, ...]] = ("source", "number")
    label_dtype: ClassVar[Any] = np.float32

    def __post_init__(self) -> None:
        if not self.min_value < self.max_value:
            raise UserError(f"numbers from {self.min_value} to {self.max_value}: expected min_value below max_value")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError for a model with more than one output."""
        super().check_model(model, tokenizer)
        if model.num_labels != 1:
            raise UserError(f"the model has {model.num_labels} outputs, the task needs one: set its num_labels = 1")

    def _test_metrics(
        self, tokenizer: Tokenizer, columns: Columns, gold: np.ndarray, predicted: np.ndarray
    ) -> dict[str, Any]:
        """Correlations, -100 to 100, and the mean squared error in the units of the data."""
        error = float(((gold - predicted) ** 2).mean()) * (self.max_value - self.min_value) ** 2
        return {**self._valid_metrics(gold, predicted), "mean_squared_error": error}

    def _decide(self, output_NC: np.ndarray) -> np.ndarray:
        return output_NC[:, 0]

    def _valid_metrics(self, gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        return {"pearson": 100 * pearson(gold, predicted), "spearman": 100 * spearman(gold, predicted)}

    def _answer(self, line: str, output: np.ndarray | None) -> Answer:
        """The number in the units of the data."""
        if output is None:
            return Answer("", {"source": line, "prediction": ""})
        number = self.min_value + float(output[0]) * (self.max_value - self.min_value)
        return Answer(f"{number:.3f}", {"source": line, "prediction": number})

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

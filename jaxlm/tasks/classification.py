"""The task of classification: one class for a text."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.ragged import Columns
from jaxlm.data.sources.base import Pairs
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer
from jaxlm.metrics.classification import accuracy, confusion_matrix, macro_f1, per_class_counts
from jaxlm.tasks.supervised import LabelTask


@dataclass(frozen=True)
class Classification(LabelTask):
    """A text to one of `labels`; the sources give pairs (text, class).

    With a `sequence_format` the text may be a pair, or a context and its endings (labeled by position), between TABs.
    """

    batch_columns: ClassVar[tuple[str, ...]] = ("source", "class")
    output_activation: ClassVar[Any] = staticmethod(jax.nn.softmax)

    def _test_metrics(
        self, tokenizer: Tokenizer, columns: Columns, gold: np.ndarray, predicted: np.ndarray
    ) -> dict[str, Any]:
        """Accuracy, macro F1, the figures of each class, and the confusion matrix (rows: the true classes)."""
        counts_CC = confusion_matrix(gold, predicted, len(self.labels))
        classes = {name: counts.to_json() for name, counts in per_class_counts(counts_CC, self.labels).items()}
        figures = {"accuracy": accuracy(counts_CC), "macro_f1": macro_f1(counts_CC), "classes": classes}
        return figures | {"confusion": counts_CC.tolist()}

    def _decide(self, output_NC: np.ndarray) -> np.ndarray:
        return output_NC.argmax(1)

    def _valid_metrics(self, gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        counts_CC = confusion_matrix(gold, predicted, len(self.labels))
        return {"accuracy": accuracy(counts_CC), "f1": macro_f1(counts_CC)}

    def _answer(self, line: str, output: np.ndarray | None) -> Answer:
        """The most probable class, and the probability of each."""
        if output is None:
            return Answer("", {"source": line, "prediction": "", "probabilities": {}})
        name = self.labels[int(output.argmax())]
        probabilities = dict(zip(self.labels, map(float, output), strict=True))
        return Answer(name, {"source": line, "prediction": name, "probabilities": probabilities})

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str) -> list[int]:
        place = f"{pairs.describe()}: text {index + 1}, {text[:60]!r},"
        number, endings = self._label_id(label, "class", place), text.count("\t")
        if self.sequence_format and self.sequence_format.input_format == "choices":
            if not number < endings <= len(self.labels):
                raise UserError(
                    f"{place} has {endings} endings and the class {label!r}, number {number + 1} of {len(self.labels)} "
                    "labels: expected an ending for it, and a label for each ending"
                )
        return [number]

"""The task of classification: one class for a text."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.sources.base import Pairs
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, Answer, ProgressCallback, TrainedModel
from jaxlm.metrics.classification import accuracy, confusion_matrix, macro_f1, per_class_counts
from jaxlm.tasks.supervised import LabelTask


@dataclass(frozen=True)
class Classification(LabelTask):
    """A text to one of `labels`; the sources give pairs (text, class).

    With a `sequence_format` the text may be a pair, or a context and its endings, between TABs; the labels of endings
    are their positions.
    """

    batch_columns: ClassVar[tuple[str, ...]] = ("source", "class")
    output_activation: ClassVar[Any] = staticmethod(jax.nn.softmax)

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Accuracy, macro F1, the figures of each class, and the confusion matrix (rows: the true classes)."""
        self.check_model(trained.model, trained.tokenizer)
        _, gold, predicted = self._predict_pairs(trained, self.split(split), EVAL_BATCH_TOKENS, progress)
        counts_CC = confusion_matrix(gold, predicted, len(self.labels))
        figures: dict[str, Any] = {"split": split, "lines": len(predicted)}
        figures |= {"accuracy": accuracy(counts_CC), "macro_f1": macro_f1(counts_CC)}
        classes = per_class_counts(counts_CC, self.labels)
        figures["classes"] = {name: counts.to_json() for name, counts in classes.items()}
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
        if label not in self.labels:
            raise UserError(
                f"{pairs.describe()}: text {index + 1}, {text[:60]!r}, has the class {label!r}, which is not among the "
                f"task's labels {', '.join(self.labels)}. Correct the file, or add the class to the labels and train "
                "again."
            )
        return [self.labels.index(label)]

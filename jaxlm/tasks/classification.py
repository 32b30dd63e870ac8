"""The task of classification: one class for a text."""

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
from jaxlm.metrics.classification import accuracy, confusion_matrix, macro_f1, per_class_counts
from jaxlm.tasks.supervised import LabelTask, fit_to_model, predict_rows, source_columns


@dataclass(frozen=True)
class Classification(LabelTask):
    """A text to one of `labels`; the sources give pairs (text, class).

    With a `sequence_format` the text may be a pair, or a context and its endings, between TABs; the labels of endings
    are their positions.
    """

    batch_columns: ClassVar[tuple[str, ...]] = ("source", "class")

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

    def _valid_metrics(self, gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        counts_CC = confusion_matrix(gold, predicted, len(self.labels))
        return {"accuracy": accuracy(counts_CC), "f1": macro_f1(counts_CC)}

    def _predict_pairs(
        self, trained: TrainedModel, source: Pairs, batch_tokens: int, progress: ProgressCallback
    ) -> tuple[Columns, np.ndarray, np.ndarray]:
        columns = self._encode_pairs(source, list(source), trained.tokenizer, trained.model)
        probs_NC = predict_rows(trained, _jitted_probs(trained.model), columns, batch_tokens, progress)
        return columns, columns["class"].flat, probs_NC.argmax(1)

    def _predict_texts(self, trained: TrainedModel, texts: Sequence[str], progress: ProgressCallback) -> np.ndarray:
        columns = source_columns(trained.tokenizer, texts, fit_to_model(self.sequence_format, trained.model))
        return predict_rows(trained, _jitted_probs(trained.model), columns, EVAL_BATCH_TOKENS, progress)

    def _answer(self, line: str, output: np.ndarray | None) -> Answer:
        """The most probable class, and the probability of each."""
        if output is None:
            return Answer("", {"source": line, "prediction": "", "probabilities": {}})
        name = self.labels[int(output.argmax())]
        probabilities = dict(zip(self.labels, map(float, output), strict=True))
        return Answer(name, {"source": line, "prediction": name, "probabilities": probabilities})

    def _encode_pairs(self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None) -> Columns:
        columns = source_columns(tokenizer, [text for text, _ in pairs], fit_to_model(self.sequence_format, model))
        labels = [self._encode_label(source, index, *pair) for index, pair in enumerate(pairs)]
        return columns | {"class": Ragged.from_rows(labels)}

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str) -> list[int]:
        if label not in self.labels:
            raise UserError(
                f"{pairs.describe()}: text {index + 1}, {text[:60]!r}, has the class {label!r}, which is not among the "
                f"task's labels {', '.join(self.labels)}. Correct the file, or add the class to the labels and train "
                "again."
            )
        return [self.labels.index(label)]


@lru_cache(maxsize=8)
def _jitted_probs(model: Any) -> Any:
    """The jitted probabilities of a model: (parameters, batch) -> (B, C)."""
    return jax.jit(lambda params, batch: jax.nn.softmax(model.apply({"params": params}, batch)))

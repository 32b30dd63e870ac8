"""The task of classification: one class for a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax

from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.base import Pair, Pairs
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, Answer, ProgressCallback, TrainedModel
from jaxlm.metrics.classification import accuracy, confusion_matrix, macro_f1, per_class_counts
from jaxlm.tasks.supervised import LabelTask, eval_loss, fit_to_model, predict_rows, source_columns


@dataclass(frozen=True)
class Classification(LabelTask):
    """A text to one of `labels`; the sources give pairs (text, class).

    With a `layout` the text may be a pair, or a context and its endings, between TABs; of endings the labels are those
    of their places.
    """

    batch_columns: ClassVar[tuple[str, ...]] = ("source", "class")

    def validate(
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """Loss, accuracy, and the mean F1 of the classes."""
        self.check_model(trained.model, trained.tokenizer)
        columns = self._encode_pairs(self.valid, list(self.valid), trained.tokenizer, trained.model)
        figures = eval_loss(trained, objective, columns, batch_tokens)
        said = predict_rows(trained, _jitted_probs(trained.model), columns, batch_tokens, progress).argmax(1)
        counts_CC = confusion_matrix(columns["class"].flat, said, len(self.labels))
        return figures | {"valid/accuracy": accuracy(counts_CC), "valid/f1": macro_f1(counts_CC)}

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Accuracy, macro F1, each class's figures, and the confusion: rows what is true, columns what was said."""
        self.check_model(trained.model, trained.tokenizer)
        pairs = self.pairs(split)
        columns = self._encode_pairs(pairs, list(pairs), trained.tokenizer, trained.model)
        said = predict_rows(trained, _jitted_probs(trained.model), columns, EVAL_BATCH_TOKENS, progress).argmax(1)
        counts_CC = confusion_matrix(columns["class"].flat, said, len(self.labels))
        figures: dict[str, Any] = {"split": split, "lines": len(said)}
        figures |= {"accuracy": accuracy(counts_CC), "macro_f1": macro_f1(counts_CC)}
        figures["classes"] = {name: found.to_json() for name, found in per_class_counts(counts_CC, self.labels).items()}
        return figures | {"confusion": counts_CC.tolist()}

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The likeliest class of each line, and the probability of each."""
        self.check_model(trained.model, trained.tokenizer)
        answers = [Answer("", {"source": line, "prediction": "", "probabilities": {}}) for line in lines]
        asked = [index for index, line in enumerate(lines) if line.strip()]
        if not asked:
            return answers
        columns = source_columns(
            trained.tokenizer, [lines[index] for index in asked], fit_to_model(self.sequence_format, trained.model)
        )
        for index, row in zip(
            asked,
            predict_rows(trained, _jitted_probs(trained.model), columns, EVAL_BATCH_TOKENS, progress),
            strict=True,
        ):
            name = self.labels[int(row.argmax())]
            probabilities = dict(zip(self.labels, map(float, row), strict=True))
            record = {"source": lines[index], "prediction": name, "probabilities": probabilities}
            answers[index] = Answer(name, record)
        return answers

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The first `count` test texts, what they were said to be, and what they are."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self.predict(trained, [text for text, _ in pairs])
        for (text, name), answer in zip(pairs, answers, strict=True):
            yield f"{text} -> {answer.text} (right: {name})"

    def _encode_pairs(
        self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None
    ) -> dict[str, Ragged]:
        """Rows that are judged are cut to what the model reads; training leaves out what its batches do not hold."""
        columns = source_columns(tokenizer, [text for text, _ in pairs], fit_to_model(self.sequence_format, model))
        columns["class"] = Ragged.from_rows(
            [self._encode_label(source, index, *pair) for index, pair in enumerate(pairs)]
        )
        return columns

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str) -> list[int]:
        if label not in self.labels:
            raise UserError(
                f"{pairs.describe()}: text {index + 1}, {text[:60]!r}, has the class {label!r}, which is none of the "
                f"task's labels {', '.join(self.labels)}. Mend the file, or add the class to the labels and train anew."
            )
        return [self.labels.index(label)]


@lru_cache(maxsize=8)
def _jitted_probs(model: Any) -> Any:
    """The jitted probabilities of a model: batch -> (B, C)."""
    return jax.jit(lambda params, batch: jax.nn.softmax(model.apply({"params": params}, batch)))

"""The task of classification: one class for a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm.agreement import accuracy, by_class, confusion, macro_f1
from jaxlm.data.batching import Columns
from jaxlm.data.pairs import Pair, Pairs, read
from jaxlm.data.ragged import Ragged
from jaxlm.data.text import BadLines
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError
from jaxlm.tasks.labelling import TOKENS, Labelled, mean_loss, readable, row_answers, source_columns
from jaxlm.tasks.task import Answer, Progress
from jaxlm.types import Params


@dataclass(frozen=True)
class Classification(Labelled):
    """A text to one of `labels`; the sources give pairs (text, class).

    With a `layout` the text may be a pair, or a context and its endings, between TABs; of endings the labels are those
    of their places.
    """

    reads: ClassVar[tuple[str, ...]] = ("source", "class")

    def columns(self, tokenizer: Tokenizer, folder: Path | None, bad: BadLines) -> Columns:
        """Columns "source", "class" and, if the tokenizer spells, "character" of the training pairs, in memory."""
        return self._columns(self.train, list(read(self.train, bad)), tokenizer)

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """Loss, accuracy, and the mean F1 of the classes."""
        self.check_model(model, tokenizer)
        columns = self._columns(self.valid, list(self.valid), tokenizer, model)
        figures = mean_loss(model, objective, params, columns, tokens)
        said = row_answers(model, _told(model), params, columns, tokens, progress).argmax(1)
        counts_CC = confusion(columns["class"].flat, said, len(self.labels))
        return figures | {"valid/accuracy": accuracy(counts_CC), "valid/f1": macro_f1(counts_CC)}

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """Accuracy, macro F1, each class's figures, and the confusion: rows what is true, columns what was said."""
        self.check_model(model, tokenizer)
        pairs = self.pairs(split)
        columns = self._columns(pairs, list(pairs), tokenizer, model)
        said = row_answers(model, _told(model), params, columns, TOKENS, progress).argmax(1)
        counts_CC = confusion(columns["class"].flat, said, len(self.labels))
        figures: dict[str, Any] = {"split": split, "lines": len(said)}
        figures |= {"accuracy": accuracy(counts_CC), "macro_f1": macro_f1(counts_CC)}
        figures["classes"] = {name: found.to_json() for name, found in by_class(counts_CC, self.labels).items()}
        return figures | {"confusion": counts_CC.tolist()}

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[Answer]:
        """The likeliest class of each line, and the probability of each."""
        self.check_model(model, tokenizer)
        answers = [Answer("", {"source": line, "prediction": "", "probabilities": {}}) for line in lines]
        asked = [index for index, line in enumerate(lines) if line.strip()]
        if not asked:
            return answers
        columns = source_columns(tokenizer, [lines[index] for index in asked], readable(self.layout, model))
        for index, row in zip(asked, row_answers(model, _told(model), params, columns, TOKENS, progress), strict=True):
            name = self.labels[int(row.argmax())]
            probabilities = dict(zip(self.labels, map(float, row), strict=True))
            record = {"source": lines[index], "prediction": name, "probabilities": probabilities}
            answers[index] = Answer(name, record)
        return answers

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> Iterator[str]:
        """The first `count` test texts, what they were said to be, and what they are."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self.predict(model, params, tokenizer, [text for text, _ in pairs])
        for (text, name), answer in zip(pairs, answers, strict=True):
            yield f"{text} -> {answer.text} (right: {name})"

    def _columns(self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None) -> dict[str, Ragged]:
        """Rows that are judged are cut to what the model reads; training leaves out what its batches do not hold."""
        columns = source_columns(tokenizer, [text for text, _ in pairs], readable(self.layout, model))
        columns["class"] = Ragged.of([self._ids(source, index, *pair) for index, pair in enumerate(pairs)])
        return columns

    def _ids(self, pairs: Pairs, index: int, text: str, label: str) -> list[int]:
        if label not in self.labels:
            raise UserError(
                f"{pairs.describe()}: text {index + 1}, {text[:60]!r}, has the class {label!r}, which is none of the "
                f"task's labels {', '.join(self.labels)}. Mend the file, or add the class to the labels and train anew."
            )
        return [self.labels.index(label)]


@lru_cache(maxsize=8)
def _told(model: Any) -> Any:
    """The jitted probabilities of a model: batch -> (B, C)."""
    return jax.jit(lambda params, batch: jax.nn.softmax(model.apply({"params": params}, batch)))

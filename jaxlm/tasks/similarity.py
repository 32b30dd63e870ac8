"""The task of telling a number of a text or of a pair, as how alike two sentences are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.agreement import pearson, spearman
from jaxlm.data.batching import Columns
from jaxlm.data.pairs import Pair, Pairs, read
from jaxlm.data.ragged import Ragged
from jaxlm.data.text import BadLines
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError
from jaxlm.tasks.labelling import TOKENS, Judging, mean_loss, readable, row_answers, source_columns
from jaxlm.tasks.task import Answer, Progress
from jaxlm.types import Params


@dataclass(frozen=True)
class Similarity(Judging):
    """A text, or a pair between a TAB, to a number; the sources give pairs (text, number).

    low, high: between which the numbers lie. The model tells (number - low) / (high - low).
    """

    low: float = 0.0
    high: float = 5.0

    figures: ClassVar[tuple[str, ...]] = ("loss", "nll", "pearson", "spearman")
    reads: ClassVar[tuple[str, ...]] = ("source", "number")

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"numbers from {self.low} to {self.high}: expected low < high")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError for a model that tells anything but one number."""
        super().check_model(model, tokenizer)
        if model.labels != 1:
            raise UserError(f"the model tells {model.labels} numbers, the task has one: set its labels = 1")

    def columns(self, tokenizer: Tokenizer, folder: Path | None, bad: BadLines) -> Columns:
        """Columns "source" and "class", a float32 from 0 to 1, of the training pairs, in memory."""
        return self._columns(self.train, list(read(self.train, bad)), tokenizer)

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """Mean squared error, and the correlations, 0 to 100."""
        self.check_model(model, tokenizer)
        columns = self._columns(self.valid, list(self.valid), tokenizer, model)
        figures = mean_loss(model, objective, params, columns, tokens)
        gold, said = columns["class"].flat, row_answers(model, _told(model), params, columns, tokens, progress)[:, 0]
        return figures | {"valid/pearson": 100 * pearson(gold, said), "valid/spearman": 100 * spearman(gold, said)}

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """Correlations, 0 to 100, and the mean squared error in the units of the data."""
        self.check_model(model, tokenizer)
        pairs = self.pairs(split)
        columns = self._columns(pairs, list(pairs), tokenizer, model)
        gold, said = columns["class"].flat, row_answers(model, _told(model), params, columns, TOKENS, progress)[:, 0]
        error = float(((gold - said) ** 2).mean()) * (self.high - self.low) ** 2
        found = {"split": split, "lines": len(said), "pearson": 100 * pearson(gold, said)}
        return found | {"spearman": 100 * spearman(gold, said), "mean_squared_error": error}

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[Answer]:
        """The number of each line, in the units of the data."""
        self.check_model(model, tokenizer)
        answers = [Answer("", {"source": line, "prediction": ""}) for line in lines]
        asked = [index for index, line in enumerate(lines) if line.strip()]
        if not asked:
            return answers
        columns = source_columns(tokenizer, [lines[index] for index in asked], readable(self.layout, model))
        for index, said in zip(
            asked, row_answers(model, _told(model), params, columns, TOKENS, progress)[:, 0], strict=True
        ):
            number = self.low + float(said) * (self.high - self.low)
            answers[index] = Answer(f"{number:.3f}", {"source": lines[index], "prediction": number})
        return answers

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> Iterator[str]:
        """The first `count` test texts, the number that was told, and the right one."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self.predict(model, params, tokenizer, [text for text, _ in pairs])
        for (text, number), answer in zip(pairs, answers, strict=True):
            yield f"{text} -> {answer.text} (right: {number})"

    def _columns(self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None) -> dict[str, Ragged]:
        """Rows that are judged are cut to what the model reads; training leaves out what its batches do not hold."""
        columns = source_columns(tokenizer, [text for text, _ in pairs], readable(self.layout, model))
        numbers = [self._ids(source, index, *pair) for index, pair in enumerate(pairs)]
        return columns | {"class": Ragged.of([np.array(number) for number in numbers], np.float32)}

    def _ids(self, pairs: Pairs, index: int, text: str, label: str) -> list[float]:
        try:
            number = float(label)
        except ValueError:
            number = float("nan")
        if not self.low <= number <= self.high:
            raise UserError(
                f"{pairs.describe()}: text {index + 1}, {text[:60]!r}, has {label!r}, expected a number from "
                f"{self.low} to {self.high}. Mend the file, or the task's low and high."
            )
        return [(number - self.low) / (self.high - self.low)]


@lru_cache(maxsize=8)
def _told(model: Any) -> Any:
    """The jitted number of a model: batch -> (B, 1)."""
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch))

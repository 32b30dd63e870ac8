"""The base of tasks with pairs (text, label or number): classification, tagging, regression."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.sources.base import Pair, Pairs, PairSource, WithStats
from jaxlm.data.storage.token_cache import cached_columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.simple import WordCharTokenizer
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.inference.base import (
    EVAL_BATCH_TOKENS,
    Answer,
    ProgressCallback,
    TrainedModel,
    apply_to_rows,
    batches_for_model,
    non_blank,
)
from jaxlm.models.properties import max_input_positions
from jaxlm.tasks.base import EVAL_SPLITS, Task, make_eval_step, mean_losses, prefix_valid
from jaxlm.types import Array


@dataclass(frozen=True)
class SupervisedTask(Task):
    """Base of the tasks that predict a label, labels or a number from a text: a subclass turns labels into ids
    (`_encode_label`), outputs into labels (`_decide`), an output into an answer (`_answer`), and gives the metrics.

    Attributes:
      train, valid, test: sources of pairs (text, label); `extra_tests` are further test sets by name.
      sequence_format: the special tokens of the rows, for models that read them; None: the ids of the text alone.
    """

    train: PairSource
    valid: PairSource
    test: PairSource
    extra_tests: dict[str, PairSource] = field(default_factory=dict)
    sequence_format: SequenceFormat | None = None

    recipe: ClassVar[str] = "classify"
    label_dtype: ClassVar[Any] = np.int32
    output_activation: ClassVar[Any] = staticmethod(lambda output: output)
    eval_only_fields: ClassVar[tuple[str, ...]] = EVAL_SPLITS

    def check(self) -> None:
        """Read the validation and test sets. Raises UserError for the first label that is not known."""
        for pairs in (self.valid, self.test, *self.extra_tests.values()):
            for index, (text, label) in enumerate(pairs):
                self._encode_label(pairs, index, text, label)

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError if the model does not read the rows of `sequence_format`."""
        model_format = getattr(model, "input_format", None)
        task_format = self.sequence_format and self.sequence_format.input_format
        if model_format != task_format:
            cure = f"SequenceFormat({model_format!r})" if model_format else "None"
            raise UserError(
                f"the rows of the task have the form {task_format!r}, {type(model).__name__} reads {model_format!r}: "
                f"set the task's sequence_format = {cure}, or choose another model"
            )

    def texts(self) -> Iterator[str]:
        """The texts of the training pairs, the parts of one between TABs apart."""
        for text, _ in self.train:
            yield from text.split("\t")

    def max_input_tokens(self, model: Any) -> int:
        sequence_format = fit_to_model(self.sequence_format, model)
        # A line that becomes several sequences has no single limit: it depends on its parts.
        return sequence_format.max_length if sequence_format and sequence_format.input_format == "single" else 0

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """The columns `batch_columns` of the training pairs and, if the tokenizer spells words, "character"."""
        splits = ("train", "valid", "test", "extra_tests")
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in splits}
        return cached_columns(
            WithStats(self.train, read_stats),
            lambda pairs: self._encode_pairs(self.train, pairs, tokenizer),
            f"{type(self).__name__} {settings} {tokenizer.fingerprint}",
            folder,
            block_size=sys.maxsize,  # at once: messages count the pairs from the first one
        )

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        self.check_model(trained.model, trained.tokenizer)
        columns, gold, predicted = self._predict_pairs(trained, self.valid, batch_tokens)
        evaluate = make_eval_step(trained.model, objective)
        losses = [evaluate(trained.params, batch) for _, batch in batches_for_model(trained, columns, batch_tokens)]
        return prefix_valid(mean_losses(losses) | self._valid_metrics(gold, predicted))

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        self.check_model(trained.model, trained.tokenizer)
        columns, gold, predicted = self._predict_pairs(trained, self.split(split), EVAL_BATCH_TOKENS, progress)
        figures = self._test_metrics(trained.tokenizer, columns, gold, predicted)
        return {"split": split, "lines": len(predicted)} | figures

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        self.check_model(trained.model, trained.tokenizer)
        answers = [self._answer(line, None) for line in lines]
        indices = non_blank(lines)
        if indices:
            outputs = self._predict_texts(trained, [lines[index] for index in indices], progress)
            for index, output in zip(indices, outputs, strict=True):
                answers[index] = self._answer(lines[index], output)
        return answers

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The first `count` test texts with the predicted and the true label."""
        pairs = list(islice(self.test, count))
        answers = self.predict(trained, [text for text, _ in pairs])
        for (text, label), answer in zip(pairs, answers, strict=True):
            yield self._example(text, answer.text, label)

    def _example(self, text: str, predicted: str, label: str) -> str:
        return f"{text} -> {predicted} (right: {label})"

    def _encode_pairs(self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None) -> Columns:
        """Columns with labels. With a model the rows are cut to its positions; in training, long rows are left out."""
        columns = source_columns(tokenizer, [text for text, _ in pairs], fit_to_model(self.sequence_format, model))
        labels = [np.array(self._encode_label(source, index, *pair)) for index, pair in enumerate(pairs)]
        return columns | {"class": Ragged.from_rows(labels, self.label_dtype)}

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str) -> list:
        """The id of the label, or of each label, of pair `index`. Raises UserError for an unknown one."""
        raise NotImplementedError

    def _predict_texts(self, trained: TrainedModel, texts: Sequence[str], progress: ProgressCallback) -> Any:
        """The output of the model for each text, for `_answer`."""
        columns = source_columns(trained.tokenizer, texts, fit_to_model(self.sequence_format, trained.model))
        return self._predict_rows(trained, columns, EVAL_BATCH_TOKENS, progress)

    def _predict_pairs(
        self, trained: TrainedModel, source: Pairs, batch_tokens: int, progress: ProgressCallback = None
    ) -> tuple[Columns, Any, Any]:
        """The columns of pairs, their labels or numbers, and the predicted ones."""
        columns = self._encode_pairs(source, list(source), trained.tokenizer, trained.model)
        predicted = self._decide(self._predict_rows(trained, columns, batch_tokens, progress))
        return columns, columns["class"].flat, predicted

    def _predict_rows(
        self, trained: TrainedModel, columns: Columns, batch_tokens: int, progress: ProgressCallback
    ) -> np.ndarray:
        """The output of the model for each row of column "source": (rows, C)."""
        inputs = {name: columns[name] for name in columns if name != "class"}
        apply, params = _jitted_apply(trained.model, self.output_activation), multihost.to_local(trained.params)
        return np.stack(apply_to_rows(partial(apply, params), trained, inputs, batch_tokens, progress))

    def _decide(self, output_NC: np.ndarray) -> np.ndarray:
        """The label or number of each row of outputs."""
        raise NotImplementedError

    def _answer(self, line: str, output: Any) -> Answer:
        """The answer to a line; `output` is None for a blank line."""
        raise NotImplementedError

    def _valid_metrics(self, gold: Any, predicted: Any) -> dict[str, float]:
        raise NotImplementedError

    def _test_metrics(self, tokenizer: Tokenizer, columns: Columns, gold: Any, predicted: Any) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class LabelTask(SupervisedTask):
    """Base of the tasks that predict labels; the id of a label is its index in `labels`."""

    labels: tuple[str, ...] = ()

    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "accuracy", "f1")

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise UserError(f"labels {self.labels}: expected two or more, all different")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError if the model has another number of labels or characters than the data."""
        super().check_model(model, tokenizer)
        names = ", ".join(self.labels)
        if model.num_labels != len(self.labels):
            raise UserError(
                f"the task has {len(self.labels)} labels ({names}), the model has {model.num_labels}: set the model's "
                f"num_labels = {len(self.labels)}"
            )
        if getattr(model, "tag_names", ()) not in ((), self.labels):
            raise UserError(
                f"the model's tags {', '.join(model.tag_names)} are not the task's labels {names}, in this order: "
                "write them once and give them to both"
            )
        if (network := getattr(model, "characters", None)) is None:
            return
        if not isinstance(tokenizer, WordCharTokenizer):
            raise UserError(
                f"the model reads characters, which {type(tokenizer).__name__} does not give: use the tokenizer "
                "WordsWithChars, or set the model's characters = None"
            )
        size = tokenizer.char_vocab_size
        if network.vocab < size:
            raise UserError(
                f"the tokenizer has {size} characters, the model's CharacterCNN embeds {network.vocab}: set its "
                f"vocab = {size}, or the tokenizer's char_vocab_size = {network.vocab}"
            )

    def _label_id(self, label: str, kind: str, place: str) -> int:
        """The id of a class or tag. Raises UserError if it is unknown."""
        if label not in self.labels:
            raise UserError(
                f"{place} has the {kind} {label!r}, which is not among the task's labels {', '.join(self.labels)}. "
                f"Correct the file, or add the {kind} to the labels and train again."
            )
        return self.labels.index(label)


def source_columns(
    tokenizer: Tokenizer, texts: Sequence[str], sequence_format: SequenceFormat | None = None
) -> dict[str, Ragged]:
    """Column "source", and "character" if the tokenizer spells words. See `jaxlm.data.batching.collate`."""
    if sequence_format is not None:
        return {"source": Ragged.from_rows(sequence_format.encode_rows(tokenizer, texts))}
    columns = {"source": Ragged.from_rows(tokenizer.encode(texts))}
    if isinstance(tokenizer, WordCharTokenizer):
        columns["character"] = Ragged.from_rows(tokenizer.encode_chars(texts))
    return columns


def fit_to_model(sequence_format: SequenceFormat | None, model: Any) -> SequenceFormat | None:
    """The format with sequences no longer than the model's positions: longer parts are cut at their ends."""
    return sequence_format and sequence_format.with_max_positions(max_input_positions(model))


@lru_cache(maxsize=8)
def _jitted_apply(model: Any, activation: Callable[[Array], Array]) -> Any:
    return jax.jit(lambda params, batch: activation(model.apply({"params": params}, batch)))

"""What tagging and classification share: pairs (text, labels), a set of labels, batches of texts without targets."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.sources.base import Pair, Pairs, PairSource, WithStats
from jaxlm.data.storage.token_cache import cached_columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.word_char import WordCharTokenizer
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.inference.base import ProgressCallback, TrainedModel, eval_batches_with_progress
from jaxlm.models.properties import max_input_positions
from jaxlm.tasks.base import Task, make_eval_step
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class SupervisedTask(Task):
    """Base of the tasks that say something about a source.

    Attributes:
      train, valid, test: sources of pairs (text, what is said of it); `more` holds further test sets by name.
      layout: the marks of the rows, for models that read them; None: the ids of the text alone.
    """

    train: PairSource
    valid: PairSource
    test: PairSource
    extra_tests: dict[str, PairSource] = field(default_factory=dict)
    sequence_format: SequenceFormat | None = None

    eval_only_fields: ClassVar[tuple[str, ...]] = ("test", "extra_tests")

    def pairs(self, split: str) -> Pairs:
        """The pairs of a split by name. Raises UserError with the names that exist."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test, **self.extra_tests}
        if split not in splits:
            raise UserError(f"no split {split!r}; this experiment has {', '.join(splits)}")
        return splits[split]

    def check(self) -> None:
        """Read all that is judged later, and know all of its labels. Raises UserError on the first fault."""
        for pairs in (self.valid, self.test, *self.extra_tests.values()):
            for index, (text, label) in enumerate(pairs):
                self._encode_label(pairs, index, text, label)

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the model does not read the rows of the layout."""
        read, made = getattr(model, "input_format", None), self.sequence_format and self.sequence_format.input_format
        if read != made:
            cure = f"SequenceFormat({read!r})" if read else "None"
            raise UserError(
                f"the rows of the task have the form {made!r}, {type(model).__name__} reads {read!r}: set the task's "
                f"sequence_format = {cure}, or choose another model"
            )

    def texts(self) -> Iterator[str]:
        """What the tokenizer learns from: the texts of the training pairs."""
        for text, _ in self.train:
            yield from text.split("\t")

    def describe(self, split: str = "train") -> str:
        """Which pairs a split has."""
        return self.pairs(split).describe()

    def count(self, split: str) -> int:
        """The texts of a split."""
        return sum(1 for _ in self.pairs(split))

    def max_input_tokens(self, model: Any) -> int:
        """Where the layout or the positions end; where a line becomes several sequences it depends on its parts."""
        layout = fit_to_model(self.sequence_format, model)
        return layout.max_length if layout and layout.input_format == "single" else 0

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """The columns `batch_columns` of the training pairs and, if the tokenizer spells words, "character"."""
        splits = ("train", "valid", "test", "extra_tests")
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in splits}
        return cached_columns(
            WithStats(self.train, read_stats),
            lambda pairs: self._encode_columns(pairs, tokenizer),
            f"{type(self).__name__} {settings} {tokenizer.fingerprint}",
            folder,
            block_size=sys.maxsize,  # at once: messages count the pairs from the first one
        )

    def _encode_columns(self, pairs: list[Pair], tokenizer: Tokenizer) -> Columns:
        return self._encode_pairs(self.train, pairs, tokenizer)

    def _encode_pairs(self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None) -> Any:
        raise NotImplementedError

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str) -> list:
        """What stands for the label or labels of pair `index`. Raises UserError for one that is not known."""
        raise NotImplementedError


@dataclass(frozen=True)
class LabelTask(SupervisedTask):
    """Base of the tasks that say labels.

    labels: the names of all labels; the id of a label is its place here.
    """

    labels: tuple[str, ...] = ()

    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "accuracy", "f1")

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise UserError(f"labels {self.labels}: expected two or more, all different")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the model has another number of labels or characters than the data."""
        super().check_model(model, tokenizer)
        if model.num_labels != len(self.labels):
            raise UserError(
                f"the task has {len(self.labels)} labels ({', '.join(self.labels)}), the model tells "
                f"{model.num_labels} "
                f"apart: set the model's num_labels = {len(self.labels)}"
            )
        if getattr(model, "tag_names", ()) not in ((), self.labels):
            raise UserError(
                f"the model's tags {', '.join(model.tag_names)} are not the task's labels "
                f"{', '.join(self.labels)}, in this "
                "order: write them once and give them to both"
            )
        if (net := getattr(model, "characters", None)) is None:
            return
        if not isinstance(tokenizer, WordCharTokenizer):
            raise UserError(
                f"the model reads characters, which {type(tokenizer).__name__} does not give: use the tokenizer "
                "WordsWithChars, or set the model's characters = None"
            )
        if net.vocab < tokenizer.char_vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.char_vocab_size} characters, the model's CharacterCNN embeds "
                f"{net.vocab}: "
                f"set its vocab = {tokenizer.char_vocab_size}, or the tokenizer's char_vocab_size = {net.vocab}"
            )


def source_columns(
    tokenizer: Tokenizer, texts: Sequence[str], sequence_format: SequenceFormat | None = None
) -> dict[str, Ragged]:
    """Column "source", and "character" where the tokenizer spells words. See `jaxlm.data.batching.collate`."""
    if sequence_format is not None:
        return {"source": Ragged.from_rows(sequence_format.encode_rows(tokenizer, texts))}
    columns = {"source": Ragged.from_rows(tokenizer.encode(texts))}
    if isinstance(tokenizer, WordCharTokenizer):
        columns["character"] = Ragged.from_rows(tokenizer.encode_chars(texts))
    return columns


def fit_to_model(sequence_format: SequenceFormat | None, model: Any) -> SequenceFormat | None:
    """The layout with rows that the model's positions reach: longer parts are cut at their ends."""
    return sequence_format and sequence_format.with_max_positions(
        max_input_positions(model), getattr(model, "num_sequences", 1)
    )


def predict_rows(
    trained: TrainedModel,
    predict_fn: Callable[[Params, Batch], Array],
    columns: Columns,
    batch_tokens: int,
    progress: ProgressCallback = None,
) -> np.ndarray:
    """What `told` (parameters, batch -> (B, C)) of a model says of each row: (rows, C), as column "source" goes."""
    asked, params = {name: columns[name] for name in columns if name != "class"}, multihost.to_local(trained.params)
    found: dict[int, np.ndarray] = {}
    for row_B, batch in eval_batches_with_progress(
        asked, batch_tokens, progress, max_input_positions(trained.model), trained.tokenizer.special
    ):
        found |= {row: said for row, said in zip(row_B.tolist(), np.asarray(predict_fn(params, batch)), strict=True)}
    return np.stack([found[row] for row in range(len(columns["source"]))])


def eval_loss(trained: TrainedModel, objective: Any, columns: dict[str, Ragged], batch_tokens: int) -> dict[str, float]:
    """ "valid/loss", what is minimised, and "valid/nll", in nats a label."""
    evaluate = make_eval_step(trained.model, objective)
    sums: Iterable = [
        evaluate(trained.params, batch)
        for _, batch in eval_batches(
            columns, batch_tokens, max_length=max_input_positions(trained.model), special=trained.tokenizer.special
        )
    ]
    loss = jax.tree.map(lambda *parts: math.fsum(float(part) for part in parts), *sums)
    return {"valid/loss": loss.total / loss.count, "valid/nll": loss.nll / loss.count}

"""What tagging and classification share: pairs (text, labels), a set of labels, batches of texts without targets."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm import hosts
from jaxlm.data.batching import Columns
from jaxlm.data.collate import in_order
from jaxlm.data.layout import Marked
from jaxlm.data.pairs import Pairs, PairSource
from jaxlm.data.ragged import Ragged
from jaxlm.data.spelling import SpelledWordTokenizer
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError
from jaxlm.models.reach import reach
from jaxlm.tasks.task import Progress, Task, evaluation
from jaxlm.types import Array, Batch, Params

TOKENS = 8192
"""Positions a batch, where nothing is trained."""


@dataclass(frozen=True)
class Judging(Task):
    """Base of the tasks that say something about a source.

    Attributes:
      train, valid, test: sources of pairs (text, what is said of it); `more` holds further test sets by name.
      layout: the marks of the rows, for models that read them; None: the ids of the text alone.
    """

    train: PairSource
    valid: PairSource
    test: PairSource
    more: dict[str, PairSource] = field(default_factory=dict)
    layout: Marked | None = None

    judging: ClassVar[tuple[str, ...]] = ("test", "more")

    def pairs(self, split: str) -> Pairs:
        """The pairs of a split by name. Raises UserError with the names that exist."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test, **self.more}
        if split not in splits:
            raise UserError(f"no split {split!r}; this experiment has {', '.join(splits)}")
        return splits[split]

    def check(self) -> None:
        """Read all that is judged later, and know all of its labels. Raises UserError on the first fault."""
        for pairs in (self.valid, self.test, *self.more.values()):
            for index, (text, label) in enumerate(pairs):
                self._ids(pairs, index, text, label)

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the model does not read the rows of the layout."""
        read, made = getattr(model, "form", None), self.layout and self.layout.form
        if read != made:
            cure = f"Marked({read!r})" if read else "None"
            raise UserError(
                f"the rows of the task have the form {made!r}, {type(model).__name__} reads {read!r}: set the task's "
                f"layout = {cure}, or choose another model"
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

    def cut_at(self, model: Any) -> int:
        """Where the layout or the positions end; where a line becomes several sequences it depends on its parts."""
        layout = readable(self.layout, model)
        return layout.max_length if layout and layout.form == "once" else 0

    def _ids(self, pairs: Pairs, index: int, text: str, label: str) -> list:
        """What stands for the label or labels of pair `index`. Raises UserError for one that is not known."""
        raise NotImplementedError


@dataclass(frozen=True)
class Labelled(Judging):
    """Base of the tasks that say labels.

    labels: the names of all labels; the id of a label is its place here.
    """

    labels: tuple[str, ...] = ()

    figures: ClassVar[tuple[str, ...]] = ("loss", "nll", "accuracy", "f1")

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise UserError(f"labels {self.labels}: expected two or more, all different")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the model has another number of labels or characters than the data."""
        super().check_model(model, tokenizer)
        if model.labels != len(self.labels):
            raise UserError(
                f"the task has {len(self.labels)} labels ({', '.join(self.labels)}), the model tells {model.labels} "
                f"apart: set the model's labels = {len(self.labels)}"
            )
        if getattr(model, "tags", ()) not in ((), self.labels):
            raise UserError(
                f"the model's tags {', '.join(model.tags)} are not the task's labels {', '.join(self.labels)}, in this "
                "order: write them once and give them to both"
            )
        if (net := getattr(model, "characters", None)) is None:
            return
        if not isinstance(tokenizer, SpelledWordTokenizer):
            raise UserError(
                f"the model reads characters, which {type(tokenizer).__name__} does not give: use the tokenizer "
                "SpelledWords, or set the model's characters = None"
            )
        if net.vocab < tokenizer.characters:
            raise UserError(
                f"the tokenizer has {tokenizer.characters} characters, the model's CharacterCNN embeds {net.vocab}: "
                f"set its vocab = {tokenizer.characters}, or the tokenizer's characters = {net.vocab}"
            )


def source_columns(tokenizer: Tokenizer, texts: Sequence[str], layout: Marked | None = None) -> dict[str, Ragged]:
    """Column "source", and "character" where the tokenizer spells words. See `jaxlm.data.collate`."""
    if layout is not None:
        return {"source": Ragged.of(layout.rows(tokenizer, texts))}
    columns = {"source": Ragged.of(tokenizer.encode(texts))}
    if isinstance(tokenizer, SpelledWordTokenizer):
        columns["character"] = Ragged.of(tokenizer.spell(texts))
    return columns


def readable(layout: Marked | None, model: Any) -> Marked | None:
    """The layout with rows that the model's positions reach: longer parts are cut at their ends."""
    return layout and layout.within(reach(model), getattr(model, "sequences", 1))


def batches(
    columns: dict[str, Ragged], tokens: int, progress: Progress = None, longest: int | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row once, in at most `longest` positions: (row_B, batch), and `progress` told of the rows."""
    for row_B, batch in in_order(columns, tokens, max_length=longest):
        yield row_B, batch
        if progress:
            progress(int((row_B >= 0).sum()))


def row_answers(
    model: Any,
    told: Callable[[Params, Batch], Array],
    params: Params,
    columns: Columns,
    tokens: int,
    progress: Progress = None,
) -> np.ndarray:
    """What `told` (parameters, batch -> (B, C)) of a model says of each row: (rows, C), as column "source" goes."""
    asked, params = {name: columns[name] for name in columns if name != "class"}, hosts.own(params)
    found: dict[int, np.ndarray] = {}
    for row_B, batch in batches(asked, tokens, progress, reach(model)):
        found |= {row: said for row, said in zip(row_B.tolist(), np.asarray(told(params, batch)), strict=True)}
    return np.stack([found[row] for row in range(len(columns["source"]))])


def mean_loss(model: Any, objective: Any, params: Params, columns: dict[str, Ragged], tokens: int) -> dict[str, float]:
    """ "valid/loss", what is minimised, and "valid/nll", in nats a label."""
    evaluate = evaluation(model, objective)
    sums: Iterable = [evaluate(params, batch) for _, batch in in_order(columns, tokens, max_length=reach(model))]
    loss = jax.tree.map(lambda *parts: math.fsum(float(part) for part in parts), *sums)
    return {"valid/loss": loss.total / loss.count, "valid/nll": loss.nll / loss.count}

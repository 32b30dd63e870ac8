"""What a task is: which data, what the tokenizer learns from, what batches are made of, how answers are judged.

What the tasks that learn from plain texts share: their splits by name.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.sources.text import TextSource
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.distributed.placement import put_like_params, serialize_on_cpu
from jaxlm.distributed.sharding import all_gather_params
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel


@lru_cache(maxsize=8)
def make_eval_step(model: Any, objective: Any) -> Any:
    """The evaluation of one model under one objective, jitted: (parameters, batch) -> sums.

    Where the parameters lie on a mesh the rows of the batch are split over it.
    """
    sums = jax.jit(lambda params, batch: objective(model, all_gather_params(params), batch, None))
    return lambda params, batch: serialize_on_cpu(sums(params, put_like_params(params, batch)))


class Task:
    """Base of the tasks, which are frozen dataclasses.

    judging: the fields that decide how a model is judged, not what is trained: a resumed run may change them.
    search: how answers are decoded, where they are; a field of the tasks that search.
    prompts: what `generate` and `score` take: a "source" to answer, a "text" to go on from, or "" (neither).
    ends: a text ends with EOS, which then counts.
    reads: the columns of its batches (see `jaxlm.data.batching.collate`), "number" for a "class" that is no
      id; spelled words bring "character" besides.
    figures: what `validate` gives, without its "valid/".
    """

    eval_only_fields: ClassVar[tuple[str, ...]] = ()
    input_kind: ClassVar[str] = ""
    batch_columns: ClassVar[tuple[str, ...]] = ("source", "target")
    metric_names: ClassVar[tuple[str, ...]] = ()
    search: Any = None
    append_eos: bool = True

    def check(self) -> None:
        """Read, before anything is trained, what is needed only later. Raises UserError on the first fault."""
        raise NotImplementedError

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the model's sizes are not those of the task or its tokenizer."""

    def max_input_tokens(self, model: Any) -> int:
        """Tokens of a line beyond which `predict` reads no more of it, those of its marks counted; 0: nowhere."""
        return getattr(self.search, "max_source_len", 0)

    def texts(self) -> Iterable[str]:
        """What the tokenizer learns from."""
        raise NotImplementedError

    def describe(self, split: str = "train") -> str:
        """One line about a split. Raises UserError with the names that exist."""
        raise NotImplementedError

    def count(self, split: str) -> int:
        """How many items `evaluate` will tell `progress` of."""
        raise NotImplementedError

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """The training split as ids, kept in `folder`; `bad` counts what was left out. See
        `jaxlm.data.batching.collate`.
        """
        raise NotImplementedError

    def validate(
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """Figures of the validation split during training, named "valid/...", in batches of `tokens` positions."""
        raise NotImplementedError

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """All scores of a split, for a JSON object; holds "split" and "lines"."""
        raise NotImplementedError

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """A few lines for a person to read: what was asked, what was answered, what was right."""
        raise NotImplementedError

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """One answer for each line, in order; a blank line gets a blank answer and never reaches the model."""
        raise NotImplementedError


@dataclass(frozen=True)
class TextTask(Task):
    """Base of the tasks whose data are texts.

    Attributes:
      train, valid, test: where the texts are; `more` holds further test sets by name.
    """

    train: TextSource
    valid: TextSource
    test: TextSource
    extra_tests: dict[str, TextSource] = field(default_factory=dict)

    def check(self) -> None:
        """Reads the validation and test texts once."""
        for texts in (self.valid, self.test):
            texts.check()

    def texts(self) -> Iterator[str]:
        """The training texts."""
        return iter(self.train)

    def split(self, name: str) -> TextSource:
        """The texts of a split. Raises UserError with the names that exist."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test, **self.extra_tests}
        if name not in splits:
            raise UserError(f"no split {name!r}; this experiment has {', '.join(splits)}")
        return splits[name]

    def describe(self, split: str = "train") -> str:
        """Where the texts of a split are."""
        return self.split(split).describe()

    def count(self, split: str) -> int:
        """The texts of a split."""
        return sum(1 for _ in self.split(split))

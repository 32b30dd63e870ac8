"""What a task is: which data, what the tokenizer learns from, what batches are made of, how answers are judged."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm.data.batching import Columns
from jaxlm.data.text import BadLines
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.parallel import gathered
from jaxlm.placing import in_turn, put_beside
from jaxlm.types import Params

Progress = Callable[[int], None] | None


@lru_cache(maxsize=8)
def evaluation(model: Any, objective: Any) -> Any:
    """The evaluation of one model under one objective, jitted: (parameters, batch) -> sums.

    Where the parameters lie on a mesh the rows of the batch are split over it.
    """
    sums = jax.jit(lambda params, batch: objective(model, gathered(params), batch, None))
    return lambda params, batch: in_turn(sums(params, put_beside(params, batch)))


@dataclass(frozen=True)
class Answer:
    """What `predict` says of one line: `text` for a person, `record` for `--jsonl`."""

    text: str
    record: dict[str, Any] = field(default_factory=dict)


class Task:
    """Base of the tasks, which are frozen dataclasses.

    judging: the fields that decide how a model is judged, not what is trained: a resumed run may change them.
    search: how answers are decoded, where they are; a field of the tasks that search.
    prompts: what `generate` and `score` take: a "source" to answer, a "text" to go on from, or "" (neither).
    ends: a text ends with EOS, which then counts.
    reads: the columns of its batches (see `jaxlm.data.collate`), "number" for a "class" that is no id; spelled words
      bring "character" besides.
    figures: what `validate` gives, without its "valid/".
    """

    judging: ClassVar[tuple[str, ...]] = ()
    prompts: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ("source", "target")
    figures: ClassVar[tuple[str, ...]] = ()
    search: Any = None
    ends: bool = True

    def check(self) -> None:
        """Read, before anything is trained, what is needed only later. Raises UserError on the first fault."""
        raise NotImplementedError

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the model's sizes are not those of the task or its tokenizer."""

    def cut_at(self, model: Any) -> int:
        """Tokens of a line beyond which `predict` reads no more of it, those of its marks counted; 0: nowhere."""
        return getattr(self.search, "max_source", 0)

    def texts(self) -> Iterable[str]:
        """What the tokenizer learns from."""
        raise NotImplementedError

    def describe(self, split: str = "train") -> str:
        """One line about a split. Raises UserError with the names that exist."""
        raise NotImplementedError

    def count(self, split: str) -> int:
        """How many items `evaluate` will tell `progress` of."""
        raise NotImplementedError

    def columns(self, tokenizer: Tokenizer, folder: Path | None, bad: BadLines) -> Columns:
        """The training split as ids, kept in `folder`; `bad` counts what was left out. See `jaxlm.data.batching`."""
        raise NotImplementedError

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """Figures of the validation split during training, named "valid/...", in batches of `tokens` positions."""
        raise NotImplementedError

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """All scores of a split, for a JSON object; holds "split" and "lines"."""
        raise NotImplementedError

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> Iterator[str]:
        """A few lines for a person to read: what was asked, what was answered, what was right."""
        raise NotImplementedError

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[Answer]:
        """One answer for each line, in order; a blank line gets a blank answer and never reaches the model."""
        raise NotImplementedError

"""The base of tasks: which data to learn from, and how a model is judged on them."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm import runtime
from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.chat.encoding import DialogueEncoder
from jaxlm.data.chat.jinja_template import JinjaChatTemplate
from jaxlm.data.chat.template import PLAIN, ChatTemplate
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.sources.base import Source
from jaxlm.data.sources.text import TextSource
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.distributed.placement import put_like_params, serialize_on_cpu
from jaxlm.distributed.sharding import all_gather_params
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel
from jaxlm.models.properties import check_positions, max_input_positions
from jaxlm.types import Batch, Params

EVAL_SPLITS = ("test", "extra_tests")
"""The splits that training does not read: a resumed run may change them."""


class Task:
    """Base of the tasks, which are frozen dataclasses with three splits and further test sets by name.

    Attributes:
      eval_only_fields: the fields that decide only how a model is judged: a resumed run may change them.
      input_kind: what `generate` and `score` take: a "source" to answer, a "text" to continue, or "" (neither).
      batch_columns: the columns of its batches (see `jaxlm.data.batching.collate`), "number" for a "class" that is
        not an id; word-level tokenizers with characters add "character".
      metric_names: the figures of `validate`, without "valid/".
      search: how answers are decoded; None for a task without a search.
      recipe: the recipe of `jaxlm train` that reads files as its data; "" for none.
      append_eos: whether texts end with EOS, which then counts as a token.
    """

    eval_only_fields: ClassVar[tuple[str, ...]] = ()
    input_kind: ClassVar[str] = ""
    recipe: ClassVar[str] = ""
    batch_columns: ClassVar[tuple[str, ...]] = ("source", "target")
    metric_names: ClassVar[tuple[str, ...]] = ()
    train: Any
    valid: Any
    test: Any
    extra_tests: Any
    search: Any = None
    append_eos: bool = True

    def check(self) -> None:
        """Read the data that are needed after training starts. Raises UserError for the first fault."""
        for source in (self.valid, self.test):
            for _ in source:
                pass

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError if the model does not fit the task or its tokenizer."""

    def max_input_tokens(self, model: Any) -> int:
        """Tokens of a line that `predict` reads, special tokens included; 0: all of them."""
        limits = getattr(self.search, "max_source_len", None), max_input_positions(model)
        return min((limit for limit in limits if limit is not None), default=0)

    def texts(self) -> Iterable[str]:
        """The texts that the tokenizer is trained on."""
        raise NotImplementedError

    def split(self, name: str) -> Any:
        """The source of a split. Raises UserError with the names of the splits if it does not exist."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test, **self.extra_tests}
        if name not in splits:
            raise UserError(f"no split {name!r}; this experiment has {', '.join(splits)}")
        return splits[name]

    def describe(self, split: str = "train") -> str:
        """One line about the data of a split. Raises UserError if it does not exist."""
        return self.split(split).describe()

    def count(self, split: str) -> int:
        """The number of items of a split: the sum of the numbers that `evaluate` reports to `progress`."""
        return sum(1 for _ in self.split(split))

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """The training split as columns of ids, cached in `folder`; `read_stats` counts the lines left out."""
        raise NotImplementedError

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """Figures of the validation split during training, named "valid/...", in batches of `batch_tokens`."""
        raise NotImplementedError

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """All scores of a split, for a JSON object; the first are "split" and "lines"."""
        raise NotImplementedError

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """A few lines for a person to read: inputs, answers and references."""
        raise NotImplementedError

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """One answer for each line, in order; a blank line gets a blank answer and never reaches the model."""
        raise NotImplementedError


@dataclass(frozen=True)
class TextTask(Task):
    """Base of the tasks whose data are texts; `extra_tests` are further test sets by name."""

    train: TextSource
    valid: TextSource
    test: TextSource
    extra_tests: dict[str, TextSource] = field(default_factory=dict)

    recipe: ClassVar[str] = "lm"

    def check(self) -> None:
        self.valid.check()
        self.test.check()

    def texts(self) -> Iterator[str]:
        return iter(self.train)


@dataclass(frozen=True)
class ChatTask(Task):
    """Base of the tasks whose data are dialogues, or answers to them.

    Attributes:
      train, valid, test: sources of them; `extra_tests` are further test sets by name.
      chat_template: the text around the turns; None: that of the model of `finetuning.init`.
    """

    train: Source
    valid: Source
    test: Source
    extra_tests: dict[str, Source] = field(default_factory=dict)
    chat_template: ChatTemplate | JinjaChatTemplate | None = PLAIN

    input_kind: ClassVar[str] = "text"

    def check(self) -> None:
        for source in (self.valid, self.test, *self.extra_tests.values()):
            source.check()

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError without a chat template, and if the tokenizer lacks its control tokens."""
        self.encoder(tokenizer)

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        task: Any = self
        return task.encode_split("train", tokenizer, folder, read_stats)

    def encoder(self, tokenizer: Tokenizer) -> DialogueEncoder:
        """The encoder of dialogues. Raises UserError without a chat template."""
        if self.chat_template is None:
            raise UserError(
                "the task has no chat template, and neither has the model that it starts from: set chat_template, such "
                "as PLAIN, in the experiment"
            )
        return DialogueEncoder(tokenizer, self.chat_template)


class CorruptedTextTask(TextTask):
    """Base of the tasks on running text of which a part is hidden, always the same one in evaluation.

    Attributes:
      eval_batching: the batches of evaluation.
      valid_batches: number of batches of the validation split to evaluate during training; 0: all.
      eval_objective: the objective of `evaluate`.
    """

    eval_batching: Any
    valid_batches: int
    eval_objective: ClassVar[Any]

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """The figures `metric_names`, each per predicted token, accuracies in percent."""
        figures = self._metrics(trained, objective, "valid", self.valid_batches)
        return {f"valid/{name}": figures[name] for name in self.metric_names if name in figures}

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The figures of a whole split; `lines` are rows, `tokens` the predicted ones."""
        figures = self._metrics(trained, self.eval_objective, split, None)
        if progress:
            progress(self.count(split))
        return {"split": split} | figures

    def _eval_batches(self, trained: TrainedModel, split: str, max_batches: int | None = None) -> Iterator[Batch]:
        columns = self._encode_split(split, trained.tokenizer)
        batches = self.eval_batching.batches(columns, special=trained.tokenizer.special)
        check_positions(trained.model, batches.longest_example())
        return islice(map(batches.__getitem__, range(batches.batches_per_epoch)), max_batches or None)

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        return self._encode_split("train", tokenizer, read_stats, folder)

    def _encode_split(
        self, split: str, tokenizer: Tokenizer, read_stats: ReadStats | None = None, folder: Path | None = None
    ) -> Columns:
        """The column "target" of a split, and flags of the tokenizer's ids."""
        raise NotImplementedError

    def _metrics(self, trained: TrainedModel, objective: Any, split: str, max_batches: int | None) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class NoTask(Task):
    """The task of an imported encoder before fine-tuning: for `embed`, `report` and `train --finetuning.init`."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UserError(
            "this workdir holds an encoder without a task: `jaxlm embed` gives its vectors, and "
            "`jaxlm train EXPERIMENT --finetuning.init` starts from it"
        )

    check = texts = split = encode_train = validate = evaluate = show_examples = predict = _refuse


@lru_cache(maxsize=8)
def make_eval_step(model: Any, objective: Any) -> Any:
    """The jitted evaluation of a model, on the mesh of its parameters: (parameters, batch) -> `jaxlm.losses.Loss`."""
    prepare_batch = getattr(objective, "prepare_batch", lambda model, params, batch: batch)

    @jax.jit
    def loss(params: Params, batch: Batch) -> Any:
        params = all_gather_params(params)
        return objective(model, params, prepare_batch(model, params, batch), None)

    in_flight: deque[Any] = deque(maxlen=2)

    def evaluate(params: Params, batch: Batch) -> Any:
        runtime.between_batches()
        if len(in_flight) == in_flight.maxlen:
            jax.block_until_ready(in_flight[0])  # else all batches are dispatched before the first look is of use
        result = serialize_on_cpu(loss(params, put_like_params(params, batch)))
        in_flight.append(result.count)
        return result

    return evaluate


def batch_losses(trained: TrainedModel, columns: Columns, objective: Any, batch_tokens: int) -> list[Any]:
    """The `Loss` of every batch of the columns, of about `batch_tokens` positions each."""
    evaluate, special = make_eval_step(trained.model, objective), trained.tokenizer.special
    return [evaluate(trained.params, batch) for _, batch in eval_batches(columns, batch_tokens, special=special)]


def sum_losses(losses: list[Any]) -> tuple[float, float, float]:
    """(total, negative log-likelihood, tokens) of all batches: exactly rounded sums, independent of the order."""
    host_losses = jax.device_get(losses)
    total, nll, count = (
        math.fsum(float(getattr(loss, name)) for loss in host_losses) for name in ("total", "nll", "count")
    )
    return total, nll, max(count, 1.0)


def mean_losses(losses: list[Any]) -> dict[str, float]:
    """ "loss", the value that training minimizes, "nll" in nats, both per token or label, and further figures."""
    total, nll, count = sum_losses(losses)
    figures = {"loss": total / count, "nll": nll / count}
    for name in losses[0].figures if losses else ():
        sums, counts = zip(*jax.device_get([loss.figures[name] for loss in losses]), strict=True)
        figures[name] = math.fsum(map(float, sums)) / max(math.fsum(map(float, counts)), 1.0)
    return figures


def prefix_valid(metrics: dict[str, float]) -> dict[str, float]:
    """The figures under their names in the log of a run."""
    return {f"valid/{name}": value for name, value in metrics.items()}

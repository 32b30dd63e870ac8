"""The task of completing texts: say the spans that were cut out, or how the text goes on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm.data.batching.batches import RunningTextBatches
from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.span_corruption import PrefixLMWindows, SpanCorruption
from jaxlm.data.pretraining.token_types import mask_token_column
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel
from jaxlm.inference.translate import Search, to_single_line, translate
from jaxlm.objectives.next_token import NextToken
from jaxlm.tasks.base import TextTask, make_eval_step
from jaxlm.tasks.translation import to_answer

T5_SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
"""As T5's tokenizer has them."""


@dataclass(frozen=True)
class Denoising(TextTask):
    """Texts of which a part is the source and the rest the target. `predict` answers lines that are such sources.

    Attributes:
      rows: how a split is read when it is judged: always in the same way.
      sentinels: what stands for a span, symbols of the tokenizer.
      search: how `predict` decodes.
      quick: batches of the validation split that are judged during training; 0: all.
    """

    eval_batching: SpanCorruption | PrefixLMWindows = SpanCorruption()
    sentinels: tuple[str, ...] = T5_SENTINELS[:32]
    search: Search = Search()
    valid_batches: int = 0

    eval_only_fields: ClassVar[tuple[str, ...]] = ("test", "extra_tests", "eval_batching", "valid_batches", "search")
    input_kind: ClassVar[str] = "source"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity")

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """Columns "target" and "symbol"."""
        return self._encode_split("train", tokenizer, read_stats, folder)

    def validate(
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """What is minimised, and negative log-likelihood and perplexity of a target token."""
        figures = self._compute_metrics(trained, objective, "valid", self.valid_batches)
        return {f"valid/{name}": figures[name] for name in self.metric_names}

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The same of a whole split; `lines` are rows, `tokens` those of the targets."""
        figures = self._compute_metrics(trained, NextToken(), split, 0)
        if progress:
            progress(self.count(split))
        return {"split": split} | figures

    def _encode_split(
        self, split: str, tokenizer: Tokenizer, read_stats: ReadStats | None = None, folder: Path | None = None
    ) -> Columns:
        """A prefix needs no sentinels, and its tokenizer need not have them."""
        sentinels = self.sentinels if isinstance(self.eval_batching, SpanCorruption) else ()
        target = self.split(split).encode(tokenizer, read_stats, folder)
        return mask_token_column(tokenizer, sentinels) | {"target": target}

    def _eval_batches(self, tokenizer: Tokenizer, split: str) -> RunningTextBatches:
        columns = self._encode_split(split, tokenizer)
        return self.eval_batching.batches(columns, special=tokenizer.special)

    def _compute_metrics(self, trained: TrainedModel, objective: Any, split: str, max_batches: int) -> dict[str, Any]:
        batches = self._eval_batches(trained.tokenizer, split)
        evaluate = make_eval_step(trained.model, objective)
        count = min(batches.batches_per_epoch, max_batches or batches.batches_per_epoch)
        found = jax.device_get([evaluate(trained.params, batches[k]) for k in range(count)])
        total, nll, tokens = (
            math.fsum(float(getattr(loss, name)) for loss in found) for name in ("total", "nll", "count")
        )
        figures = {"lines": count * self.eval_batching.rows, "tokens": int(tokens), "loss": total / max(tokens, 1.0)}
        nll /= max(tokens, 1.0)
        return figures | {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """A few rows of the test split, what was answered, and what is right."""
        batch = self._eval_batches(trained.tokenizer, "test")[0]
        sides = ((batch.source_BS, batch.source_valid_BS), (batch.label_BT, batch.target_valid_BT))
        rows = [[row[valid].tolist() for row, valid in zip(*side, strict=True)] for side in sides]
        texts = [trained.tokenizer.decode(side) for side in rows]
        sources = [to_single_line(text) for text in texts[0][:count]]
        answers = translate(trained, sources, self.search)
        for source, found, target in zip(sources, answers, texts[1], strict=False):
            yield f"{source} -> {found[0].text} (reference: {to_single_line(target)})"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The answers to each line, best first, by `search`."""
        found = translate(trained, lines, self.search, progress)
        return [to_answer(line, hypotheses) for line, hypotheses in zip(lines, found, strict=True)]

"""The task of completing texts: say the spans that were cut out, or how the text goes on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm.data.batching import Columns
from jaxlm.data.denoising import PrefixLM, SpanCorruption
from jaxlm.data.pieces import symbol_column
from jaxlm.data.text import BadLines
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.tasks.task import Answer, Progress, evaluation
from jaxlm.tasks.texts import TextTask
from jaxlm.tasks.translate import Search, one_line, translate
from jaxlm.tasks.translation import as_answer
from jaxlm.train.objective import NextToken
from jaxlm.types import Params

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
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

    rows: SpanCorruption | PrefixLM = SpanCorruption()
    sentinels: tuple[str, ...] = SENTINELS[:32]
    search: Search = Search()
    quick: int = 0

    judging: ClassVar[tuple[str, ...]] = ("test", "more", "rows", "quick", "search")
    prompts: ClassVar[str] = "source"
    figures: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity")

    def columns(self, tokenizer: Tokenizer, folder: Path | None, bad: BadLines) -> Columns:
        """Columns "target" and "symbol"."""
        return self._columns("train", tokenizer, bad)

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """What is minimised, and negative log-likelihood and perplexity of a target token."""
        figures = self._figures(model, params, tokenizer, objective, "valid", self.quick)
        return {f"valid/{name}": figures[name] for name in self.figures}

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """The same of a whole split; `lines` are rows, `tokens` those of the targets."""
        figures = self._figures(model, params, tokenizer, NextToken(), split, 0)
        if progress:
            progress(self.count(split))
        return {"split": split} | figures

    def _columns(self, split: str, tokenizer: Tokenizer, bad: BadLines) -> Columns:
        """A prefix needs no sentinels, and its tokenizer need not have them."""
        sentinels = self.sentinels if isinstance(self.rows, SpanCorruption) else ()
        return symbol_column(tokenizer, sentinels) | {"target": self.split(split).encoded(tokenizer, bad)}

    def _figures(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, split: str, quick: int
    ) -> dict[str, Any]:
        batches = self.rows.plan(self._columns(split, tokenizer, BadLines()))
        evaluate = evaluation(model, objective)
        count = min(batches.per_epoch, quick or batches.per_epoch)
        found = jax.device_get([evaluate(params, batches[k]) for k in range(count)])
        total, nll, tokens = (
            math.fsum(float(getattr(loss, name)) for loss in found) for name in ("total", "nll", "count")
        )
        figures = {"lines": count * self.rows.rows, "tokens": int(tokens), "loss": total / max(tokens, 1.0)}
        nll /= max(tokens, 1.0)
        return figures | {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> Iterator[str]:
        """A few rows of the test split, what was answered, and what is right."""
        batch = self.rows.plan(self._columns("test", tokenizer, BadLines()))[0]
        sides = ((batch.source_BS, batch.source_valid_BS), (batch.label_BT, batch.target_valid_BT))
        texts = [tokenizer.decode([row[real].tolist() for row, real in zip(*side, strict=True)]) for side in sides]
        sources = [one_line(text) for text in texts[0][:count]]
        answers = translate(model, params, tokenizer, sources, self.search)
        for source, found, target in zip(sources, answers, texts[1], strict=False):
            yield f"{source} -> {found[0].text} (reference: {one_line(target)})"

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[Answer]:
        """The answers to each line, best first, by `search`."""
        found = translate(model, params, tokenizer, lines, self.search, progress)
        return [as_answer(line, hypotheses) for line, hypotheses in zip(lines, found, strict=True)]

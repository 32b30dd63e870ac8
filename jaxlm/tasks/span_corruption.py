"""The task of denoising: predict the spans that were cut out of a text, or its continuation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.span_corruption import PrefixLMWindows, SpanCorruption
from jaxlm.data.pretraining.token_types import mask_token_column
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel, to_single_line
from jaxlm.inference.translate import Search, to_answer, translate
from jaxlm.metrics.text import perplexity
from jaxlm.objectives.next_token import NextToken
from jaxlm.tasks.base import EVAL_SPLITS, CorruptedTextTask, make_eval_step, sum_losses

T5_SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
"""The sentinels of T5's tokenizer."""


@dataclass(frozen=True)
class Denoising(CorruptedTextTask):
    """Texts of which a part is the source and the rest the target. `predict` answers lines that are such sources.

    Attributes:
      eval_batching: how a split is corrupted in evaluation, always in the same way.
      sentinels: the symbols of the tokenizer that replace the spans.
      search: how `predict` decodes.
    """

    eval_batching: SpanCorruption | PrefixLMWindows = SpanCorruption()
    sentinels: tuple[str, ...] = T5_SENTINELS[:32]
    search: Search = Search()
    valid_batches: int = 0

    eval_only_fields: ClassVar[tuple[str, ...]] = (*EVAL_SPLITS, "eval_batching", "valid_batches", "search")
    input_kind: ClassVar[str] = "source"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity")
    eval_objective: ClassVar[Any] = NextToken()

    def _encode_split(
        self, split: str, tokenizer: Tokenizer, read_stats: ReadStats | None = None, folder: Path | None = None
    ) -> Columns:
        # A prefix needs no sentinels, and its tokenizer may lack them.
        sentinels = self.sentinels if isinstance(self.eval_batching, SpanCorruption) else ()
        target = self.split(split).encode(tokenizer, read_stats, folder)
        return mask_token_column(tokenizer, sentinels) | {"target": target}

    def _metrics(self, trained: TrainedModel, objective: Any, split: str, max_batches: int | None) -> dict[str, Any]:
        evaluate = make_eval_step(trained.model, objective)
        batches = self._eval_batches(trained, split, max_batches)
        losses = [evaluate(trained.params, batch) for batch in batches]
        total, nll, tokens = sum_losses(losses)
        figures = {"lines": len(losses) * self.eval_batching.rows, "tokens": int(tokens)}
        return figures | {"loss": total / tokens, "nll": nll / tokens, "perplexity": perplexity(nll / tokens)}

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """A few rows of the test split, the answers and the references."""
        batch = next(self._eval_batches(trained, "test"))
        sides = ((batch.source_BS, batch.source_valid_BS), (batch.label_BT, batch.target_valid_BT))
        rows = [[row[valid].tolist() for row, valid in zip(*side, strict=True)] for side in sides]
        sources, targets = ([to_single_line(text) for text in trained.tokenizer.decode(side)] for side in rows)
        hypotheses = translate(trained, sources[:count], self.search)
        for source, best_first, target in zip(sources, hypotheses, targets, strict=False):
            yield f"{source} -> {best_first[0].text} (reference: {target})"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The hypotheses for each line, best first, by `search`."""
        return [to_answer(*pair) for pair in zip(lines, translate(trained, lines, self.search, progress), strict=True)]

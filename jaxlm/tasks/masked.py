"""The task of masked language modelling: say the tokens that were hidden, and whether two spans belong together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.batching import Columns
from jaxlm.data.masked_rows import MaskedRows
from jaxlm.data.pieces import piece_columns
from jaxlm.data.text import BadLines
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError
from jaxlm.models.encoder import Encoder
from jaxlm.models.renumbered import numbered
from jaxlm.tasks.gaps import answers, sought
from jaxlm.tasks.task import Answer, Progress
from jaxlm.tasks.texts import TextTask
from jaxlm.tasks.translate import one_line
from jaxlm.train.masked import MaskedTokens, read
from jaxlm.types import Array, Batch, Params


@dataclass(frozen=True)
class MaskedLanguageModelling(TextTask):
    """Texts with gaps. `predict` fills those that a line has.

    Attributes:
      rows: how a split is read and hidden when it is judged: always in the same way.
      mask: what stands for a gap, a symbol of the tokenizer; "" is its unknown id.
      quick: batches of the validation split that are judged during training; 0: all.
      tokens: positions of a batch of lines.
    """

    rows: MaskedRows = MaskedRows()
    mask: str = "[MASK]"
    quick: int = 0
    tokens: int = 8192

    judging: ClassVar[tuple[str, ...]] = ("test", "more", "rows", "quick", "tokens")
    figures: ClassVar[tuple[str, ...]] = ("loss", "nll", "accuracy", "next_sentence")

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError for a model that cannot do what is judged."""
        inner = numbered(model)
        if not isinstance(inner, Encoder) or not inner.head:
            raise UserError(f"{type(inner).__name__} does not fill gaps: the task needs an Encoder with head = True")
        if self.rows.pairs and (not inner.pairs or inner.types < 2):
            raise UserError(
                f"the rows are pairs of spans, and the model has pairs = {inner.pairs} and types = {inner.types}: "
                "set --model.pairs --model.types 2, or --task.rows.no-pairs --batching.no-pairs"
            )

    def columns(self, tokenizer: Tokenizer, folder: Path | None, bad: BadLines) -> Columns:
        """Columns "target", "piece" and "symbol"."""
        return piece_columns(tokenizer, [self.mask]) | {"target": self.train.encoded(tokenizer, bad)}

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """What is minimised, negative log-likelihood and accuracy (%) of a hidden token, accuracy of the pairs (%)."""
        figures = self._figures(model, params, tokenizer, objective, "valid", self.quick)
        return {f"valid/{name}": figures[name] for name in self.figures if name in figures}

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """The same of a whole split; `lines` are rows, `tokens` those that were hidden."""
        figures = self._figures(model, params, tokenizer, MaskedTokens(), split, 0)
        if progress:
            progress(self.count(split))
        perplexity = math.exp(min(figures["nll"], 700.0))
        return {"split": split} | figures | {"perplexity": perplexity}

    def _figures(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, split: str, quick: int
    ) -> dict[str, Any]:
        columns = piece_columns(tokenizer, [self.mask])
        columns |= {"target": self.split(split).encoded(tokenizer, BadLines())}
        batches, sums = self.rows.plan(columns), np.zeros(6)
        count = min(batches.per_epoch, quick or batches.per_epoch)
        judge = _judged(model, objective)
        for batch in map(batches.__getitem__, range(count)):
            sums += np.asarray(judge(params, batch, sought(batch.label_BS >= 0)), np.float64)
        total, nll, tokens, right, pairs, right_pairs = sums.tolist()
        figures = {"lines": count * self.rows.rows, "tokens": int(tokens), "loss": total / max(tokens, 1.0)}
        figures |= {"nll": nll / max(tokens, 1.0), "accuracy": 100.0 * right / max(tokens, 1.0)}
        return figures | ({"next_sentence": 100.0 * right_pairs / pairs} if pairs else {})

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> Iterator[str]:
        """The beginnings of a few test texts with a word left out, what was put there, and the word."""
        for text in islice((text for text in self.test if len(text.split()) > 4), count if self.mask else 0):
            words = one_line(text).split()[:16]
            place = len(words) // 2
            gapped = " ".join([*words[:place], self.mask, *words[place + 1 :]])
            filled = self.predict(model, params, tokenizer, [gapped])[0]
            yield f"{gapped} -> {filled.record['gaps'][0][0]['text']} (right: {words[place]})"

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[Answer]:
        """Each line with its gaps filled by the likeliest token of each, and the likeliest ones with probabilities."""
        return answers(model, params, tokenizer, self.mask, lines, self.tokens, progress)


@lru_cache(maxsize=8)
def _judged(model: Any, objective: Any) -> Any:
    """(parameters, batch, places) -> loss, nll, hidden tokens, those guessed right, pairs, those told right."""

    def judge(params: Params, batch: Batch, at_M: Array) -> tuple[Any, ...]:
        loss = objective(model, params, batch, None)
        features_BSD, logits_BC = model.apply({"params": params}, batch, method=read)  # computed once: XLA sees it
        flat = features_BSD.reshape(-1, features_BSD.shape[-1])[at_M]
        said_M = model.apply({"params": params}, flat, method="readout").argmax(-1)
        right = ((said_M == batch.label_BS.reshape(-1)[at_M]) & (at_M < batch.label_BS.size)).sum()
        if logits_BC is None:
            return loss.total, loss.nll, loss.count, right, 0, 0
        return loss.total, loss.nll, loss.count, right, len(logits_BC), (logits_BC.argmax(-1) == batch.label_B).sum()

    return jax.jit(judge)

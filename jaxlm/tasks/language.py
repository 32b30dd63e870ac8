"""The task of language modelling: say each token after all those before it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.batching import Columns
from jaxlm.data.collate import in_order
from jaxlm.data.plain import TextSource
from jaxlm.data.ragged import Ragged
from jaxlm.data.text import BadLines
from jaxlm.data.vocabulary import UNK, Tokenizer
from jaxlm.data.windows import Windows
from jaxlm.decode.choose import Sampler
from jaxlm.errors import UserError
from jaxlm.tasks.generate import Request, continuations
from jaxlm.tasks.task import Answer, Progress, evaluation
from jaxlm.tasks.texts import TextTask
from jaxlm.tasks.translate import one_line
from jaxlm.train.state import blank_state
from jaxlm.types import Params


@dataclass(frozen=True)
class LanguageModelling(TextTask):
    """Texts, each one by itself or all of them as one stream.

    Attributes:
      windows: how a split is read where the texts are a stream: in rows whose state is carried on. None: a text is a
        row of its own, between BOS and EOS.
      tokens: positions of a batch of texts.
      sample_tokens: the length of the samples that are shown after training.
    """

    windows: Windows | None = Windows(length=64, rows=8)
    tokens: int = 8192
    sample_tokens: int = 100

    judging: ClassVar[tuple[str, ...]] = ("test", "more", "windows", "tokens", "sample_tokens")
    prompts: ClassVar[str] = "text"
    reads: ClassVar[tuple[str, ...]] = ("target",)
    figures: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity")

    @property
    def ends(self) -> bool:
        """True if a text ends with EOS."""
        return self.windows is None or self.windows.end

    def columns(self, tokenizer: Tokenizer, folder: Path | None, bad: BadLines) -> Columns:
        """The column "target"."""
        return encoded(self.train, tokenizer, bad)

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """Loss a token (what is trained), negative log-likelihood a token, and its exponential."""
        total, nll, count = self._sums(model, params, encoded(self.valid, tokenizer), objective)
        return {
            "valid/loss": total / count,
            "valid/nll": nll / count,
            "valid/perplexity": math.exp(min(nll / count, 700.0)),
        }

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """Per token (EOS counted where texts have one), and per character of the text, which any tokenizer shares."""
        from jaxlm.train.objective import NextToken

        columns = encoded(self.split(split), tokenizer)
        _, nll, count = self._sums(model, params, columns, NextToken())
        characters = sum(len(text) + self.ends for text in self.split(split))
        if progress:
            progress(self.count(split))
        unknown = float((np.asarray(columns["target"].flat) == UNK).mean())
        return {
            "split": split, "lines": len(columns["target"]), "tokens": int(count), "nll": nll / count,
            "perplexity": math.exp(min(nll / count, 700.0)), "bits_per_character": nll / math.log(2) / characters,
            "unknown_tokens": unknown,
        }  # fmt: skip

    def _sums(self, model: Any, params: Params, columns: Columns, objective: Any) -> tuple[float, float, float]:
        """Sums over all tokens: loss, negative log-likelihood, number."""
        evaluate = evaluation(model, objective)
        if self.windows is None:
            losses = [evaluate(params, batch) for _, batch in in_order(columns, self.tokens)]
        else:
            losses, state = [], None
            batches = replace(self.windows, carry=True).plan(columns)
            for k in range(batches.per_epoch):
                batch = batches[k]
                if batch.begins_B is not None:
                    batch = replace(batch, state=blank_state(model, params, batch) if state is None else state)
                losses.append(evaluate(params, batch))
                state = losses[-1].state
                losses[-1] = replace(losses[-1], state=None)
        found = jax.device_get(losses)
        total, nll, count = (math.fsum(float(getattr(x, name)) for x in found) for name in ("total", "nll", "count"))
        return total, nll, max(count, 1.0)

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> Iterator[str]:
        """What the model makes of the beginnings of a few test texts."""
        beginnings = (" ".join(text[:200].split(" ")[:8]) for text in self.test if text.strip())
        request = Request(Sampler(temperature=0.8), max_tokens=self.sample_tokens)
        try:
            for prompt in islice(beginnings, count):
                for sample in continuations(model, params, tokenizer, [prompt], request):
                    yield f"{one_line(prompt)} | {one_line(sample.text)}"
        except UserError as error:  # they are to look at: a run does not fail for them
            yield f"no samples: {error} (here: task.sample_tokens)"

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[Answer]:
        """Raises UserError: there is no one answer."""
        raise UserError("a language model has no answer to a line: `jaxlm generate` goes on from it, `score` weighs it")


def encoded(texts: TextSource, tokenizer: Tokenizer, bad: BadLines | None = None) -> dict[str, Ragged]:
    """The texts as the column "target"."""
    return {"target": texts.encoded(tokenizer, BadLines() if bad is None else bad)}

"""The task of language modelling: say each token after all those before it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel
from jaxlm.inference.generate import GenerationRequest, draw_samples
from jaxlm.inference.translate import to_single_line
from jaxlm.models.properties import zero_model_state
from jaxlm.tasks.base import TextTask, make_eval_step


@dataclass(frozen=True)
class LanguageModeling(TextTask):
    """Texts, each one by itself or all of them as one stream.

    Attributes:
      windows: how a split is read where the texts are a stream: in rows whose state is carried on. None: a text is a
        row of its own, between BOS and EOS.
      tokens: positions of a batch of texts.
      sample_tokens: the length of the samples that are shown after training.
    """

    windows: Windows | None = Windows(length=64, rows=8)
    batch_tokens: int = 8192
    sample_tokens: int = 100

    eval_only_fields: ClassVar[tuple[str, ...]] = ("test", "extra_tests", "windows", "batch_tokens", "sample_tokens")
    input_kind: ClassVar[str] = "text"
    batch_columns: ClassVar[tuple[str, ...]] = ("target",)
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity")

    @property
    def append_eos(self) -> bool:
        """True if a text ends with EOS."""
        return self.windows is None or self.windows.append_eos

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """The column "target"."""
        return {"target": self.train.encode(tokenizer, read_stats, folder)}

    def validate(
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """Loss a token (what is trained), negative log-likelihood a token, and its exponential."""
        total, nll, count = self._sum_losses(trained, {"target": self.valid.encode(trained.tokenizer)}, objective)
        return {
            "valid/loss": total / count,
            "valid/nll": nll / count,
            "valid/perplexity": math.exp(min(nll / count, 700.0)),
        }

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Per token (EOS counted where texts have one), and per character of the text, which any tokenizer shares."""
        from jaxlm.objectives.next_token import NextToken

        columns = {"target": self.split(split).encode(trained.tokenizer)}
        _, nll, count = self._sum_losses(trained, columns, NextToken())
        characters = sum(len(text) + self.append_eos for text in self.split(split))
        if progress:
            progress(self.count(split))
        unknown = float(trained.tokenizer.special.is_unknown(columns["target"].flat).mean())
        return {
            "split": split, "lines": len(columns["target"]), "tokens": int(count), "nll": nll / count,
            "perplexity": math.exp(min(nll / count, 700.0)), "bits_per_character": nll / math.log(2) / characters,
            "unknown_tokens": unknown,
        }  # fmt: skip

    def _sum_losses(self, trained: TrainedModel, columns: Columns, objective: Any) -> tuple[float, float, float]:
        """Sums over all tokens: loss, negative log-likelihood, number."""
        evaluate = make_eval_step(trained.model, objective)
        if self.windows is None:
            eval_rows = eval_batches(columns, self.batch_tokens, special=trained.tokenizer.special)
            losses = [evaluate(trained.params, batch) for _, batch in eval_rows]
        else:
            losses, state = [], None
            windows = replace(self.windows, carry_state=True)
            batches = windows.batches(columns, special=trained.tokenizer.special)
            for k in range(batches.batches_per_epoch):
                batch = batches[k]
                if batch.reset_B is not None:
                    state = zero_model_state(trained.model, trained.params, batch) if state is None else state
                    batch = replace(batch, state=state)
                losses.append(evaluate(trained.params, batch))
                state = losses[-1].state
                losses[-1] = replace(losses[-1], state=None)
        found = jax.device_get(losses)
        total, nll, count = (math.fsum(float(getattr(x, name)) for x in found) for name in ("total", "nll", "count"))
        return total, nll, max(count, 1.0)

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """What the model makes of the beginnings of a few test texts."""
        beginnings = (" ".join(text[:200].split(" ")[:8]) for text in self.test if text.strip())
        request = GenerationRequest(Sampler(temperature=0.8), max_tokens=self.sample_tokens)
        try:
            for prompt in islice(beginnings, count):
                for sample in draw_samples(trained, [prompt], request):
                    yield f"{to_single_line(prompt)} | {to_single_line(sample.text)}"
        except UserError as error:  # they are to look at: a run does not fail for them
            yield f"no samples: {error} (here: task.sample_tokens)"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """Raises UserError: there is no one answer."""
        raise UserError("a language model has no answer to a line: `jaxlm generate` goes on from it, `score` weighs it")

"""The task of language modeling: predict each token from all those before it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.chat.jinja_template import JinjaChatTemplate
from jaxlm.data.chat.template import ChatTemplate
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel, cut_to_positions, to_single_line
from jaxlm.inference.generate import GenerationDefaults, GenerationRequest, draw_samples
from jaxlm.losses import Loss
from jaxlm.metrics.text import perplexity
from jaxlm.models.properties import check_positions, zero_model_state
from jaxlm.tasks.base import EVAL_SPLITS, TextTask, batch_losses, make_eval_step, mean_losses, prefix_valid, sum_losses


@dataclass(frozen=True)
class LanguageModeling(TextTask):
    """Texts, each one by itself or all of them as one stream.

    Attributes:
      windows: evaluation cuts the stream of texts into these windows and carries the state over. None: each text is a
        row, between BOS and EOS.
      batch_tokens: positions per batch of texts.
      sample_tokens: tokens of the samples that are shown after training.
      generation: the defaults of `generate`.
      chat_template: the text around the turns of a dialogue, for `generate --chat`.
    """

    windows: Windows | None = Windows(length=64, rows=8)
    batch_tokens: int = 8192
    sample_tokens: int = 100
    generation: GenerationDefaults = GenerationDefaults()
    chat_template: ChatTemplate | JinjaChatTemplate | None = None

    eval_only_fields: ClassVar[tuple[str, ...]] = (
        *EVAL_SPLITS, "windows", "batch_tokens", "sample_tokens", "generation", "chat_template"
    )  # fmt: skip
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

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """Loss per token (the value that training minimizes), negative log-likelihood per token, perplexity."""
        figures = mean_losses(self._losses(trained, {"target": self.valid.encode(trained.tokenizer)}, objective))
        return prefix_valid(figures | {"perplexity": perplexity(figures["nll"])})

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Per token (EOS counted if texts end with it), and per character, which is comparable for all tokenizers.

        Of a text that is longer than the model's positions ("truncated" counts them) the beginning is evaluated.
        """
        from jaxlm.objectives.next_token import NextToken

        columns: Columns = {"target": self.split(split).encode(trained.tokenizer)}
        texts, truncated = list(self.split(split)), 0
        if self.windows is None:
            columns, is_cut_N = cut_to_positions(trained.model, columns)
            truncated = int(is_cut_N.sum())
            for row in np.flatnonzero(is_cut_N).tolist():
                texts[row] = trained.tokenizer.decode([columns["target"][row].tolist()])[0]
        _, nll, count = sum_losses(self._losses(trained, columns, NextToken()))
        characters = sum(len(text) + self.append_eos for text in texts)
        if progress:
            progress(self.count(split))
        figures: dict[str, Any] = {"split": split, "lines": len(columns["target"]), "tokens": int(count)}
        figures |= {"truncated": truncated, "nll": nll / count, "perplexity": perplexity(nll / count)}
        figures["bits_per_character"] = nll / math.log(2) / characters
        unknown = trained.tokenizer.special.is_unknown(columns["target"].flat)
        return figures | {"unknown_tokens": float(unknown.mean())}

    def _losses(self, trained: TrainedModel, columns: Columns, objective: Any) -> list[Loss]:
        """The loss of each batch of texts, or of each window with the state carried over from the one before it."""
        if self.windows is None:
            columns, _ = cut_to_positions(trained.model, columns)
            return batch_losses(trained, columns, objective, self.batch_tokens)
        evaluate, losses, state = make_eval_step(trained.model, objective), [], None
        windows = replace(self.windows, carry_state=True, reset_prob=0.0)
        size = len(columns["target"].flat) + self.append_eos * len(columns["target"])
        if size < max(windows.length, windows.rows):  # a text of the user's that fills no batch
            windows = replace(windows, length=min(windows.length, size), rows=1)
        batches = windows.batches(columns, special=trained.tokenizer.special)
        check_positions(trained.model, batches.longest_example())
        for k in range(batches.batches_per_epoch):
            batch = batches[k]
            if batch.reset_B is not None:
                state = zero_model_state(trained.model, trained.params, batch) if state is None else state
                batch = replace(batch, state=state)
            loss = evaluate(trained.params, batch)
            state = loss.state
            losses.append(replace(loss, state=None))  # only the last state stays in memory
        return losses

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """Continuations of the beginnings of a few test texts."""
        beginnings = (" ".join(text[:200].split(" ")[:8]) for text in self.test if text.strip())
        request = GenerationRequest(Sampler(temperature=0.8), max_tokens=self.sample_tokens)
        try:
            for prompt in islice(beginnings, count):
                for sample in draw_samples(trained, [prompt], request):
                    yield f"{to_single_line(prompt)} | {to_single_line(sample.text)}"
        except UserError as error:  # samples are only for a person: a run does not fail for them
            yield f"no samples: {error} (here: task.sample_tokens)"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """Raises UserError: a language model has no single answer."""
        raise UserError("a language model has no answer to a line: see `jaxlm generate` and `jaxlm score`")

"""Episodes: rows `x y x y ...` of symbols and labels that are drawn for the row alone, and the task to learn them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxlm import LanguageModeling, NextToken, TrainedModel
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.sources.text import TextSource
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.tasks.base import batch_losses, mean_losses, prefix_valid

SYMBOLS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LABELS = "01234567"
VOCAB = 4 + len(SYMBOLS) + len(LABELS)


@dataclass(frozen=True)
class Episodes(TextSource):
    """Episodes as texts: `count` rows of `pairs` pairs with `symbols` symbols, for each of the stages in turn."""

    seed: int
    stages: tuple[tuple[int, int, int], ...]  # (count, symbols, pairs)

    def describe(self) -> str:
        return f"{sum(count for count, _, _ in self.stages):,} episodes"

    def read(self, stats: ReadStats) -> Iterator[str]:
        for number, (count, symbols, pairs) in enumerate(self.stages):
            rng = np.random.Generator(np.random.PCG64([self.seed, number]))
            chosen_NX = rng.random((count, len(SYMBOLS))).argsort(axis=1)[:, :symbols]
            label_NX = rng.integers(0, len(LABELS), (count, symbols))
            place_NP = rng.integers(0, symbols, (count, pairs))
            stats.kept += count
            for chosen, label, places in zip(chosen_NX.tolist(), label_NX.tolist(), place_NP.tolist(), strict=True):
                yield " ".join(f"{SYMBOLS[chosen[place]]} {LABELS[label[place]]}" for place in places)


@dataclass(frozen=True)
class Retrieval(LanguageModeling):
    """Language modeling of episodes; the loss covers every second token, the labels."""

    batch_columns: ClassVar[tuple[str, ...]] = ("target", "loss_mask")

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        return with_label_mask(self.train.encode(tokenizer, read_stats, folder))

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        return prefix_valid(self._figures(trained, "valid", objective))

    def evaluate(self, trained: TrainedModel, split: str, progress: Any = None) -> dict[str, Any]:
        return {"split": split, "lines": self.count(split)} | self._figures(trained, split, NextToken())

    def _figures(self, trained: TrainedModel, split: str, objective: Any) -> dict[str, float]:
        columns = with_label_mask(self.split(split).encode(trained.tokenizer))
        return mean_losses(batch_losses(trained, columns, objective, self.batch_tokens))


def with_label_mask(target: Ragged) -> Columns:
    """The columns of episodes; a row has an even number of tokens."""
    length_N = target.lengths + 1
    place = np.arange(length_N.sum()) - np.repeat(np.cumsum(length_N) - length_N, length_N)
    is_label = (place % 2 == 1).astype(np.uint8)  # the EOS after a row has an even place
    return {"target": target, "loss_mask": Ragged(is_label, np.append(0, np.cumsum(length_N)))}


@dataclass(frozen=True)
class EpisodePairs:
    """The pairs of test episodes, all but the last one of each (shots), or the last one (questions)."""

    last: bool
    count: int = 1000

    def __iter__(self) -> Iterator[Mapping[str, str]]:
        for number, text in enumerate(Episodes(2, ((self.count, 4, 33),))):
            words = text.split()
            for place in range(0, len(words), 2):
                if self.last == (place == len(words) - 2):
                    yield {"episode": str(number), "source": words[place], "target": words[place + 1]}

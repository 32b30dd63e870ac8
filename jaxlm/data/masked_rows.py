"""Batches of text with gaps: rows of joined documents (RoBERTa), or of two spans that may follow each other (BERT).

    BOS A EOS B EOS     types 0 0 0 1 1; label_B 0 where B follows A, 1 where it is from elsewhere
    BOS A EOS           A is a window over the documents one after the other, each with EOS at its end

Windows are cut anew in every epoch and gaps in every batch; batch k is a pure function of (columns, config, seed, k).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching import Columns
from jaxlm.data.masking import Masking
from jaxlm.data.order import uniform
from jaxlm.data.ragged import runs
from jaxlm.data.sentence_pairs import SentencePairs
from jaxlm.data.token_stream import Stream
from jaxlm.data.vocabulary import BOS, EOS
from jaxlm.data.windows import WindowBatches, Windows
from jaxlm.errors import UserError
from jaxlm.types import Batch

LANE = 0


@dataclass(frozen=True)
class MaskedRows:
    """Batches of `rows` rows of `length` positions, BOS and EOS included.

    masking: which tokens are hidden, and how.
    pairs: two spans a row, and the question whether the second follows the first.
    short: the share of pairs that are cut to a random length.
    """

    length: int = 128
    rows: int = 32
    masking: Masking = Masking()
    pairs: bool = False
    short: float = 0.1

    def __post_init__(self) -> None:
        if self.length < 8 or self.rows < 1:
            raise UserError(f"rows of {self.length} positions, {self.rows} a batch: expected 8 or more, and 1 or more")

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    def plan(self, columns: Columns, seed: int = 0) -> "MaskedBatches":
        """Columns "target", "piece" and "symbol". Raises UserError where there is too little text."""
        return MaskedBatches(columns, self, seed)


@dataclass(frozen=True, eq=False)
class MaskedBatches:
    """`batches[k]` is batch k."""

    columns: Columns
    config: MaskedRows
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self._spans  # raises where the text does not suffice

    @property
    def multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        return self.config.rows

    @property
    def per_epoch(self) -> int:
        """Batches until everything was seen."""
        spans = self._spans
        return math.ceil(spans.order.per_epoch) if isinstance(spans, SentencePairs) else spans.per_epoch

    @cached_property
    def _spans(self) -> SentencePairs | WindowBatches:
        config, column = self.config, self.columns["target"]
        if config.pairs:
            kind_V = self.columns["piece"].flat
            return SentencePairs(column, kind_V, config.length - 3, config.rows, self.seed, config.short)
        return Windows(config.length - 2, config.rows, carry=False).plan(self.columns, self.seed)

    def statistics(self) -> dict[str, float]:
        """Numbers for a log, as `jaxlm.data.batching.Plan` has them."""
        column, pairs = self.columns["target"], self.config.pairs
        rows = self.per_epoch * self.config.rows
        real = len(column.flat) + (3 if pairs else 2) * rows + (0 if pairs else len(column))
        tokens = min(real / self.per_epoch, self.config.tokens)
        padding = 1 - tokens / self.config.tokens
        figures: dict[str, float]
        figures = {"examples": len(column), "dropped": 0, "truncated": 0, "shapes": 1}
        figures |= {"batches_per_epoch": self.per_epoch, "tokens": tokens, "positions": self.config.tokens}
        return figures | {"padding_source": padding, "padding_both": padding}

    def __getitem__(self, k: int) -> Batch:
        config, pairs = self.config, self._spans
        if isinstance(pairs, SentencePairs):
            first, second, elsewhere_B = pairs.spans(k)
            ids_BS, type_BS = _lay(Stream(self.columns["target"], end=False), (first, second), config.length)
            fields = {"source_type_BS": type_BS, "label_B": elsewhere_B.astype(np.int32)}
        else:
            ids_BS, _ = _lay(pairs.stream, (pairs.spans(k),), config.length)
            fields = {}
        draw_3BS = uniform(3 * ids_BS.size, self.seed, k, LANE).reshape(3, *ids_BS.shape)
        mask = int(self.columns["symbol"].flat[0])
        source_BS, label_BS = config.masking.hide(ids_BS, self.columns["piece"].flat, mask, draw_3BS)
        return Batch(source_BS=source_BS, source_valid_BS=ids_BS > 0, label_BS=label_BS, **fields)


def _lay(
    stream: Stream, spans: tuple[tuple[np.ndarray, np.ndarray], ...], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """BOS, then each span with EOS at its end: ids, 0 on padding, and the number of the span that each is of."""
    rows = len(spans[0][0])
    ids_BS, type_BS = (np.zeros((rows, length), np.int32) for _ in range(2))
    ids_BS[:, 0] = BOS
    at_B = np.arange(rows) * length + 1
    for number, (first_B, size_B) in enumerate(spans):
        ids_BS.reshape(-1)[runs(at_B, size_B)] = stream[runs(first_B, size_B)]
        ids_BS.reshape(-1)[at_B + size_B] = EOS
        type_BS.reshape(-1)[runs(at_B, size_B + 1)] = number
        at_B = at_B + size_B + 1
    return ids_BS, type_BS

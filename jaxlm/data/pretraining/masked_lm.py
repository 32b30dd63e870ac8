"""Batches of text with gaps: rows of joined documents (RoBERTa), or of two spans that may follow each other (BERT).

    BOS A EOS B EOS     types 0 0 0 1 1; label_B 0 where B follows A, 1 where it is from elsewhere
    BOS A EOS           A is a window over the documents one after the other, each with EOS at its end

Windows are cut anew in every epoch and gaps in every batch; batch k is a pure function of (columns, config, seed, k).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching.lm_windows import TokenStream, WindowBatches, Windows
from jaxlm.data.batching.plan import Columns
from jaxlm.data.batching.shuffle import uniform_draws
from jaxlm.data.pretraining.masking import Masking
from jaxlm.data.pretraining.next_sentence import NextSentencePairs
from jaxlm.data.ragged import concat_ranges
from jaxlm.data.tokenizers.base import BOS, EOS
from jaxlm.errors import UserError
from jaxlm.types import Batch

MASKING_RNG_LANE = 0


@dataclass(frozen=True)
class MaskedLMRows:
    """Batches of `rows` rows of `length` positions, BOS and EOS included.

    masking: which tokens are hidden, and how.
    pairs: two spans a row, and the question whether the second follows the first.
    short: the share of pairs that are cut to a random length.
    """

    length: int = 128
    rows: int = 32
    masking: Masking = Masking()
    next_sentence: bool = False
    short_seq_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.length < 8 or self.rows < 1:
            raise UserError(f"rows of {self.length} positions, {self.rows} a batch: expected 8 or more, and 1 or more")

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    def plan(self, columns: Columns, seed: int = 0) -> "MaskedLMBatches":
        """Columns "target", "piece" and "symbol". Raises UserError where there is too little text."""
        return MaskedLMBatches(columns, self, seed)


@dataclass(frozen=True, eq=False)
class MaskedLMBatches:
    """`batches[k]` is batch k."""

    columns: Columns
    config: MaskedLMRows
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self._span_batches  # raises where the text does not suffice

    @property
    def row_multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        return self.config.rows

    @property
    def batches_per_epoch(self) -> int:
        """Batches until everything was seen."""
        spans = self._span_batches
        return (
            math.ceil(spans.order.batches_per_epoch)
            if isinstance(spans, NextSentencePairs)
            else spans.batches_per_epoch
        )

    @cached_property
    def _span_batches(self) -> NextSentencePairs | WindowBatches:
        config, column = self.config, self.columns["target"]
        if config.next_sentence:
            kind_V = self.columns["piece"].flat
            return NextSentencePairs(column, kind_V, config.length - 3, config.rows, self.seed, config.short_seq_prob)
        return Windows(config.length - 2, config.rows, carry_state=False).plan(self.columns, self.seed)

    def statistics(self) -> dict[str, float]:
        """Numbers for a log, as `jaxlm.data.batching.plan.Plan` has them."""
        column, pairs = self.columns["target"], self.config.next_sentence
        rows = self.batches_per_epoch * self.config.rows
        real = len(column.flat) + (3 if pairs else 2) * rows + (0 if pairs else len(column))
        tokens = min(real / self.batches_per_epoch, self.config.tokens)
        padding = 1 - tokens / self.config.tokens
        figures: dict[str, float]
        figures = {"examples": len(column), "dropped": 0, "truncated": 0, "shapes": 1}
        figures |= {"batches_per_epoch": self.batches_per_epoch, "tokens": tokens, "positions": self.config.tokens}
        return figures | {"padding_source": padding, "padding_both": padding}

    def __getitem__(self, k: int) -> Batch:
        config, pairs = self.config, self._span_batches
        if isinstance(pairs, NextSentencePairs):
            first, second, elsewhere_B = pairs.spans(k)
            ids_BS, type_BS = _assemble_rows(
                TokenStream(self.columns["target"], append_eos=False), (first, second), config.length
            )
            fields = {"token_type_BS": type_BS, "label_B": elsewhere_B.astype(np.int32)}
        else:
            ids_BS, _ = _assemble_rows(pairs.stream, (pairs.window_spans(k),), config.length)
            fields = {}
        draw_3BS = uniform_draws(3 * ids_BS.size, self.seed, k, MASKING_RNG_LANE).reshape(3, *ids_BS.shape)
        mask = int(self.columns["symbol"].flat[0])
        source_BS, label_BS = config.masking.mask_tokens(ids_BS, self.columns["piece"].flat, mask, draw_3BS)
        return Batch(source_BS=source_BS, source_valid_BS=ids_BS > 0, token_label_BS=label_BS, **fields)


def _assemble_rows(
    stream: TokenStream, spans: tuple[tuple[np.ndarray, np.ndarray], ...], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """BOS, then each span with EOS at its end: ids, 0 on padding, and the number of the span that each is of."""
    rows = len(spans[0][0])
    ids_BS, type_BS = (np.zeros((rows, length), np.int32) for _ in range(2))
    ids_BS[:, 0] = BOS
    at_B = np.arange(rows) * length + 1
    for number, (first_B, size_B) in enumerate(spans):
        ids_BS.reshape(-1)[concat_ranges(at_B, size_B)] = stream[concat_ranges(first_B, size_B)]
        ids_BS.reshape(-1)[at_B + size_B] = EOS
        type_BS.reshape(-1)[concat_ranges(at_B, size_B + 1)] = number
        at_B = at_B + size_B + 1
    return ids_BS, type_BS

"""Batches for masked language modeling: rows of running text (RoBERTa) or of two spans (BERT's next sentence).

    BOS A EOS B EOS     token types 0 0 0 1 1; class_B is 0 if B follows A, 1 if it is from another document
    BOS A EOS           A is a window over the documents one after the other, each with EOS at its end

Every epoch cuts new windows, every batch masks other tokens.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching.batches import RunningText, RunningTextBatches
from jaxlm.data.batching.lm_windows import TokenStream, WindowBatches, Windows
from jaxlm.data.batching.shuffle import uniform_draws
from jaxlm.data.pretraining.masking import Masking
from jaxlm.data.pretraining.next_sentence import NextSentencePairs
from jaxlm.data.ragged import Columns, concat_ranges
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.types import Batch

MASKING_RNG_LANE = 0


@dataclass(frozen=True)
class MaskedLMRows(RunningText):
    """Batches of `rows` rows of `length` positions, BOS and EOS included.

    Attributes:
      masking: which tokens are masked, and how.
      next_sentence: rows are two spans, with the label of next-sentence prediction.
      short_seq_prob: the fraction of pairs that are cut to a random length.
    """

    length: int = 128
    rows: int = 32
    masking: Masking = Masking()
    next_sentence: bool = False
    short_seq_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.length < 8 or self.rows < 1:
            raise UserError(f"rows of {self.length} positions, {self.rows} a batch: expected 8 or more, and 1 or more")

    def batches(self, columns: Columns, seed: int = 0, *, special: SpecialIds = OWN_SPECIAL_IDS) -> "MaskedLMBatches":
        """Of the columns "target", "piece" and "symbol". Raises UserError if there is too little text."""
        return MaskedLMBatches(columns, self, seed, special)


@dataclass(frozen=True, eq=False)
class MaskedLMBatches(RunningTextBatches):
    """Batches of masked rows."""

    columns: Columns
    config: MaskedLMRows
    seed: int = 0
    special: SpecialIds = OWN_SPECIAL_IDS

    def __post_init__(self) -> None:
        _ = self._spans  # raises if there is too little text

    @cached_property
    def batches_per_epoch(self) -> int:  # type: ignore[override]
        if isinstance(self._spans, NextSentencePairs):
            return math.ceil(self._spans.order.batches_per_epoch)
        return self._spans.batches_per_epoch

    @cached_property
    def _spans(self) -> NextSentencePairs | WindowBatches:
        config, column = self.config, self.columns["target"]
        if config.next_sentence:
            flags_V = self.columns["piece"].flat
            return NextSentencePairs(column, flags_V, config.length - 3, config.rows, self.seed, config.short_seq_prob)
        windows = Windows(config.length - 2, config.rows, carry_state=False)
        return windows.batches(self.columns, self.seed, special=self.special)

    def statistics(self) -> dict[str, float]:
        column, rows = self.columns["target"], self.batches_per_epoch * self.config.rows
        # The special ids of the rows, and in windows the EOS of each document.
        num_special = 3 * rows if self.config.next_sentence else 2 * rows + len(column)
        tokens = min((len(column.flat) + num_special) / self.batches_per_epoch, self.config.tokens)
        return self._statistics(len(column), tokens, "source")

    def __getitem__(self, k: int) -> Batch:
        config, spans = self.config, self._spans
        if isinstance(spans, NextSentencePairs):
            first, second, random_B = spans.spans(k)
            stream = TokenStream(self.columns["target"], append_eos=False)
            ids_BS, type_BS, valid_BS = _assemble_rows(stream, (first, second), config.length, self.special)
            fields = {"token_type_BS": type_BS, "class_B": random_B.astype(np.int32)}
        else:
            span = spans.window_spans(k)
            ids_BS, _, valid_BS = _assemble_rows(spans.stream, (span,), config.length, self.special)
            fields = {}
        draw_3BS = uniform_draws(3 * ids_BS.size, self.seed, k, MASKING_RNG_LANE).reshape(3, *ids_BS.shape)
        flags_V, mask_id = self.columns["piece"].flat, int(self.columns["symbol"].flat[0])
        source_BS, label_BS = config.masking.mask_tokens(ids_BS, valid_BS, flags_V, mask_id, draw_3BS)
        return Batch(source_BS=source_BS, source_valid_BS=valid_BS, token_label_BS=label_BS, **fields)


def _assemble_rows(
    stream: TokenStream, spans: tuple[tuple[np.ndarray, np.ndarray], ...], length: int, special: SpecialIds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BOS, then each span followed by EOS: ids (0 on padding), the number of each token's span, the mask; (B, S)."""
    rows = len(spans[0][0])
    ids_BS, type_BS = (np.zeros((rows, length), np.int32) for _ in range(2))
    ids_BS[:, 0] = special.start
    ids, types = ids_BS.reshape(-1), type_BS.reshape(-1)  # views (B * S,)
    next_B = np.arange(rows) * length + 1  # the flat index behind what each row holds so far
    for number, (first_B, size_B) in enumerate(spans):
        ids[concat_ranges(next_B, size_B)] = stream[concat_ranges(first_B, size_B)]
        ids[next_B + size_B] = special.eos
        types[concat_ranges(next_B, size_B + 1)] = number
        next_B = next_B + size_B + 1
    return ids_BS, type_BS, np.arange(ids.size).reshape(rows, length) < next_B[:, None]

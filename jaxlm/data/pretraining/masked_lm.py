"""Masked language modeling (Devlin et al. 2019): rows of running text (RoBERTa) or of two spans (next sentence).

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
from jaxlm.data.batching.shuffle import EpochOrder, uniform_draws
from jaxlm.data.pretraining.token_types import ENDS_SENTENCE, IS_TEXT, STARTS_WORD
from jaxlm.data.ragged import Columns, Ragged, concat_ranges
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.types import Batch

MASKING_RNG_LANE = 0


@dataclass(frozen=True)
class Masking:
    """The tokens to predict, and their replacements.

    Attributes:
      mlm_probability: fraction of the text tokens of a row to predict; their number is rounded, and at least one.
      mask_replace_prob, random_replace_prob: fractions of the tokens to predict that the mask replaces, and that a
        random text token replaces; the others stay.
      whole_word_mask: a word is masked with all of its tokens or not at all. The number of masked tokens is then
        bounded by the fraction, except that one word is always masked.
    """

    mlm_probability: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    whole_word_mask: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.mlm_probability < 1.0:
            raise UserError(
                f"mlm_probability = {self.mlm_probability}: expected a share of the tokens, more than 0 and less than 1"
            )
        shares = self.mask_replace_prob, self.random_replace_prob
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise UserError(
                f"mask_replace_prob = {shares[0]} and random_replace_prob = {shares[1]}: expected shares, together 1 "
                "at most"
            )

    def mask_tokens(
        self, ids_BS: np.ndarray, valid_BS: np.ndarray, flags_V: np.ndarray, mask_id: int, draw_3BS: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The masked row and `token_label_BS`: the original token where it is to be predicted, else -1.

        Only valid ids with the flag IS_TEXT (`jaxlm.data.pretraining.token_types`) are masked. `draw_3BS` are random
        numbers in [0, 1): for the choice of tokens, the kind of replacement and the random token.
        """
        flags_BS = np.where(valid_BS, flags_V[ids_BS], 0)
        text_BS = flags_BS & IS_TEXT > 0
        masked_BS = self._select_tokens(text_BS, flags_BS & STARTS_WORD > 0, draw_3BS[0])
        text_ids_M = np.flatnonzero(flags_V & IS_TEXT)
        random_BS = text_ids_M[(draw_3BS[2] * len(text_ids_M)).astype(np.int64)]
        is_random_BS = draw_3BS[1] < self.mask_replace_prob + self.random_replace_prob
        replaced_BS = np.where(is_random_BS, random_BS, ids_BS)
        replaced_BS = np.where(draw_3BS[1] < self.mask_replace_prob, mask_id, replaced_BS)
        source_BS = np.where(masked_BS, replaced_BS, ids_BS).astype(np.int32)
        return source_BS, np.where(masked_BS, ids_BS, -1).astype(np.int32)

    def _select_tokens(self, text_BS: np.ndarray, starts_word_BS: np.ndarray, draw_BS: np.ndarray) -> np.ndarray:
        """True for the tokens of words in random order, as many as fit; without `whole_word_mask` a word is a token."""
        after_text_BS = np.pad(text_BS, ((0, 0), (1, 0)))[:, :-1]
        # The number of each token's word, from 1. All tokens of a word get one key; what is not text sorts to the end.
        word_BS = np.cumsum(text_BS & (starts_word_BS | ~after_text_BS | (not self.whole_word_mask)), axis=1)
        key_BS = np.where(text_BS, np.take_along_axis(draw_BS, word_BS - 1, axis=1), np.inf)
        order_BS = np.argsort(key_BS, axis=1, kind="stable")
        sorted_BS = np.take_along_axis(key_BS, order_BS, axis=1)
        place_S = np.arange(text_BS.shape[1])
        # In sorted order the tokens of a word are neighbors: first_BS and last_BS mark its ends, start_BS and end_BS
        # are their places for every token.
        last_BS = np.pad(sorted_BS[:, 1:] != sorted_BS[:, :-1], ((0, 0), (0, 1)), constant_values=True)
        first_BS = np.pad(last_BS, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
        end_BS = np.minimum.accumulate(np.where(last_BS, place_S, len(place_S))[:, ::-1], axis=1)[:, ::-1]
        start_BS = np.maximum.accumulate(np.where(first_BS, place_S, 0), axis=1)
        budget_B1 = np.maximum(np.round(self.mlm_probability * text_BS.sum(1, keepdims=True)), 1)
        # Words that end within the budget, and always the first one.
        chosen_BS = ((end_BS < budget_B1) | (start_BS == 0)) & np.isfinite(sorted_BS)
        masked_BS = np.zeros_like(text_BS)
        np.put_along_axis(masked_BS, order_BS, chosen_BS, axis=1)
        return masked_BS


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
    def _spans(self) -> "NextSentencePairs | WindowBatches":
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


NEXT_SENTENCE_RNG_LANE = 1

RANDOM_NEXT_PROB = 0.5
"""The fraction of pairs whose B is from another document."""


@dataclass(frozen=True, eq=False)
class NextSentencePairs:
    """The spans of batches of `rows` pairs (Devlin et al. 2019, section 3.1); a pure function of the fields.

    A chunk of a document is split at a random start of a sentence, or else of a word: A is its first part; B is the
    remainder or, in half of the pairs, as many tokens of another document, so that lengths give nothing away.

    Attributes:
      flags_V: see `jaxlm.data.pretraining.token_types`.
      short_seq_prob: the fraction of pairs that are cut to a random length, as full rows alone would mislead a model.
    """

    column: Ragged
    flags_V: np.ndarray
    max_tokens: int
    rows: int
    seed: int
    short_seq_prob: float

    def __post_init__(self) -> None:
        if np.count_nonzero(self.column.lengths) < 2:
            raise UserError(
                "pairs of sentences need two documents or more that are not empty, for a sentence from elsewhere: "
                "give more of them, or set --batching.no-next-sentence --task.eval-batching.no-next-sentence"
            )

    @cached_property
    def _chunk_offsets(self) -> np.ndarray:
        """The number of the first chunk of each document, and of all chunks at the end."""
        return np.concatenate([[0], np.cumsum(-(-self.column.lengths // self.max_tokens))])

    @cached_property
    def order(self) -> EpochOrder:
        """The chunks of each batch."""
        return EpochOrder([int(self._chunk_offsets[-1])], [self.rows], self.seed)

    def spans(self, k: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
        """(first token, number of tokens) of each A and each B of batch k, and whether B is from another document."""
        chunk_B = self.order[k][1]
        draws = uniform_draws(self.rows * (4 + 2 * self.max_tokens), self.seed, k, NEXT_SENTENCE_RNG_LANE)
        draw_4B = draws[: 4 * self.rows].reshape(4, -1)
        draw_2BR = draws[4 * self.rows :].reshape(2, self.rows, -1)  # R: tokens of a chunk
        first_B, size_B, document_B = self._chunk_bounds(chunk_B)
        cut_B = 2 + (draw_4B[1] * (self.max_tokens - 1)).astype(np.int64)
        size_B = np.where(draw_4B[0] < self.short_seq_prob, np.minimum(size_B, cut_B), size_B)
        # A chunk of one token cannot be split: it is A, and B is from another document.
        split_B = np.where(size_B < 2, size_B, self._find_start(first_B, size_B, draw_2BR[0], inside=True))
        random_B = (draw_4B[2] < RANDOM_NEXT_PROB) | (size_B < 2)
        # Another document's chunk, all with equal probability: the document's own ones are skipped.
        before_B, after_B = self._chunk_offsets[document_B], self._chunk_offsets[document_B + 1]
        drawn_B = (draw_4B[3] * (self._chunk_offsets[-1] - (after_B - before_B))).astype(np.int64)
        drawn_B = np.where(drawn_B < before_B, drawn_B, drawn_B + (after_B - before_B))
        other_B, other_size_B, _ = self._chunk_bounds(drawn_B)
        other_B = other_B + self._find_start(other_B, other_size_B, draw_2BR[1], inside=False)
        document_end_B = self.column.offsets[np.searchsorted(self.column.offsets, other_B, side="right")]
        random_size_B = np.minimum(np.maximum(size_B - split_B, 1), document_end_B - other_B)
        second_B = np.where(random_B, other_B, first_B + split_B)
        second_size_B = np.where(random_B, random_size_B, size_B - split_B)
        return (first_B, split_B), (second_B, second_size_B), random_B

    def _chunk_bounds(self, chunk_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first token, number of tokens, document) of each chunk."""
        document_B = np.searchsorted(self._chunk_offsets, chunk_B, side="right") - 1
        first_B = self.column.offsets[document_B] + (chunk_B - self._chunk_offsets[document_B]) * self.max_tokens
        return first_B, np.minimum(self.column.offsets[document_B + 1] - first_B, self.max_tokens), document_B

    def _find_start(self, first_B: np.ndarray, size_B: np.ndarray, draw_BR: np.ndarray, inside: bool) -> np.ndarray:
        """A random start of a sentence in each chunk, else of a word, else any token; not the first if `inside`."""
        place_R = np.arange(self.max_tokens)
        token_BR = first_B[:, None] + np.minimum(place_R, size_B[:, None] - 1)
        flags_BR = self.flags_V[TokenStream(self.column, append_eos=False)[token_BR]]
        possible_BR = (place_R >= inside) & (place_R < size_B[:, None])
        word_BR = possible_BR & (flags_BR & STARTS_WORD > 0)
        after_sentence_BR = np.pad(flags_BR & ENDS_SENTENCE > 0, ((0, 0), (1, 0)), constant_values=not inside)[:, :-1]
        # Draws are below 1, so any start of a sentence beats any start of a word, and that any other token.
        score_BR = draw_BR + 2.0 * word_BR + 4.0 * (word_BR & after_sentence_BR)
        return np.argmax(np.where(possible_BR, score_BR, -1.0), axis=1)

"""Span pairs for next-sentence prediction (Devlin et al. 2019, section 3.1): B follows A or is from another document.

A chunk of a document is split at a random start of a sentence, or else of a word: A is its first part; B is the
remainder or, in half of the pairs, as many tokens of another document, so that lengths give nothing away.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching.lm_windows import TokenStream
from jaxlm.data.batching.shuffle import EpochOrder, uniform_draws
from jaxlm.data.pretraining.token_types import ENDS_SENTENCE, STARTS_WORD
from jaxlm.data.ragged import Ragged
from jaxlm.errors import UserError

NEXT_SENTENCE_RNG_LANE = 1

RANDOM_NEXT_PROB = 0.5
"""The fraction of pairs whose B is from another document."""


@dataclass(frozen=True, eq=False)
class NextSentencePairs:
    """The spans of batches of `rows` pairs; a pure function of the fields.

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

"""Two spans of text, of which the second follows the first or is from elsewhere (Devlin et al. 2019, section 3.1).

Every document is cut into chunks of at most `room` tokens. A chunk is split where a sentence begins, by chance: its
first part is A, and B is the rest or, every second time, as many tokens of another document from the beginning of a
sentence on. So lengths tell nothing. Without a sentence's beginning in it a chunk is split where a word begins.
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
"""The share of pairs that do not belong together."""


@dataclass(frozen=True, eq=False)
class NextSentencePairs:
    """The chunks of the documents of a column, `rows` to a batch; a pure function of its fields.

    kind_V: see `jaxlm.data.pretraining.token_types`. short: the share of pairs that are cut to a random
    length, lest models see full rows alone.
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
        return np.concatenate([[0], np.cumsum(-(-self.column.lengths // self.max_tokens))])

    @cached_property
    def order(self) -> EpochOrder:
        """Which chunks a batch takes."""
        return EpochOrder([int(self._chunk_offsets[-1])], [self.rows], self.seed)

    def spans(self, k: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Of batch k: (first token, number of tokens) of A, the same of B, and True where B is from elsewhere."""
        chunk_B = self.order[k][1]
        draws = uniform_draws(self.rows * (4 + 2 * self.max_tokens), self.seed, k, NEXT_SENTENCE_RNG_LANE)
        draw_4B, draw_2BR = draws[: 4 * self.rows].reshape(4, -1), draws[4 * self.rows :].reshape(2, self.rows, -1)
        first_B, size_B, document_B = self._chunk_bounds(chunk_B)
        cut_B = 2 + (draw_4B[1] * (self.max_tokens - 1)).astype(np.int64)
        size_B = np.where(draw_4B[0] < self.short_seq_prob, np.minimum(size_B, cut_B), size_B)
        split_B = np.where(size_B < 2, size_B, self._find_start(first_B, size_B, draw_2BR[0], inside=True))
        elsewhere_B = (draw_4B[2] < RANDOM_NEXT_PROB) | (size_B < 2)
        other_B, room_B, _ = self._chunk_bounds(self._other_document_chunk(document_B, draw_4B[3]))
        other_B = other_B + self._find_start(other_B, room_B, draw_2BR[1], inside=False)
        left_B = self._document_end(other_B) - other_B
        rest_B = np.where(elsewhere_B, np.minimum(np.maximum(size_B - split_B, 1), left_B), size_B - split_B)
        return (first_B, split_B), (np.where(elsewhere_B, other_B, first_B + split_B), rest_B), elsewhere_B

    def _chunk_bounds(self, chunk_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First token, number of tokens and document of each chunk."""
        document_B = np.searchsorted(self._chunk_offsets, chunk_B, side="right") - 1
        place_B = chunk_B - self._chunk_offsets[document_B]
        first_B = self.column.offsets[document_B] + place_B * self.max_tokens
        return first_B, np.minimum(self.column.offsets[document_B + 1] - first_B, self.max_tokens), document_B

    def _other_document_chunk(self, document_B: np.ndarray, draw_B: np.ndarray) -> np.ndarray:
        """A chunk of another document, each with the same chance."""
        before_B, after_B = self._chunk_offsets[document_B], self._chunk_offsets[document_B + 1]
        drawn_B = (draw_B * (self._chunk_offsets[-1] - (after_B - before_B))).astype(np.int64)
        return np.where(drawn_B < before_B, drawn_B, drawn_B + (after_B - before_B))

    def _document_end(self, token_B: np.ndarray) -> np.ndarray:
        return self.column.offsets[np.searchsorted(self.column.offsets, token_B, side="right")]

    def _find_start(self, first_B: np.ndarray, size_B: np.ndarray, draw_BR: np.ndarray, inside: bool) -> np.ndarray:
        """A place in each chunk where a sentence begins, else a word, else any; `inside`: not the chunk's beginning."""
        place_R = np.arange(self.max_tokens)
        kind_BR = self.flags_V[
            TokenStream(self.column, append_eos=False)[first_B[:, None] + np.minimum(place_R, size_B[:, None] - 1)]
        ]
        possible_BR = (place_R >= inside) & (place_R < size_B[:, None])
        word_BR = possible_BR & (kind_BR & STARTS_WORD > 0)
        ended_BR = np.pad(kind_BR & ENDS_SENTENCE > 0, ((0, 0), (1, 0)), constant_values=not inside)[:, :-1]
        sentence_BR = word_BR & ended_BR
        best_BR = draw_BR + 2.0 * word_BR + 4.0 * sentence_BR
        return np.argmax(np.where(possible_BR, best_BR, -1.0), axis=1)

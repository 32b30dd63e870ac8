"""Windows over running text, for language models with or without truncated back-propagation through time.

The texts of the column "target" are joined to one stream of ids, which is never built: memory-mapped ids stay on disk.
With a carried state the stream is cut into `rows` pieces of equal length. Batch k holds the k-th window of every piece,
so the state after a row of batch k is the state before the same row of batch k + 1. An epoch has every token as a label
exactly once: the first one follows BOS, the first one of each other row follows the token before it, and the last
windows are padded.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching.batches import RunningText, RunningTextBatches, host_slice
from jaxlm.data.batching.shuffle import PermutationCache, permutation, uniform_draws
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.tokenizers.base import EOS, OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.types import Batch


@dataclass(frozen=True, eq=False)
class TokenStream:
    """The rows of a column one after the other, each followed by EOS if `append_eos`: `stream[indices]` is int32."""

    column: Ragged
    append_eos: bool = True
    eos: int = EOS

    def __len__(self) -> int:
        return int(self.column.offsets[-1]) + self.append_eos * len(self.column)

    @cached_property
    def _eos_positions(self) -> np.ndarray:
        return self.column.offsets[1:] + np.arange(len(self.column))

    def is_eos(self, indices: np.ndarray) -> np.ndarray:
        """True for the indices of EOS that were appended to a text."""
        return self._eos_positions[np.searchsorted(self._eos_positions, indices)] == indices

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        if not self.append_eos:
            return self.column.flat[indices].astype(np.int32)
        row = np.searchsorted(self._eos_positions, indices)
        is_eos = self._eos_positions[row] == indices
        ids = np.full(indices.shape, self.eos, np.int32)
        ids[~is_eos] = self.column.flat[(indices - row)[~is_eos]]  # `row` EOS lie before this index
        return ids


RESET_LANE = 100
"""The lane of the random numbers that reset rows."""


@dataclass(frozen=True)
class Windows(RunningText):
    """Batches of `rows` windows of `length` tokens.

    Attributes:
      carry_state: windows follow each other and carry the model's state (truncated back-propagation through time),
        from an empty state in every epoch. Otherwise each epoch draws new windows, and each begins from an empty state.
      append_eos: every text ends with EOS; without it the texts are one text.
      isolate_documents: tokens attend only to their own text, which begins after BOS and has a segment of its own.
        No state is carried: `carry_state` then decides only the order.
      reset_prob: probability that a row starts from an empty state instead of the carried one (Melis et al. 2018), in
        training: evaluation begins from an empty state, which a model whose states were all carried has never met.
    """

    length: int = 35
    rows: int = 20
    carry_state: bool = True
    append_eos: bool = True
    isolate_documents: bool = False
    reset_prob: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 <= self.reset_prob <= 1.0:
            raise UserError(f"reset_prob = {self.reset_prob}: expected a probability")
        if self.isolate_documents and not self.append_eos:
            raise UserError(
                "isolate_documents=True and append_eos=False: texts that are one text cannot be kept apart; set "
                "append_eos=True"
            )

    @property
    def carry_rows(self) -> int:
        """Rows whose state is carried from batch to batch."""
        return self.rows if self.carry_state and not self.isolate_documents else 0

    def batches(self, columns: Columns, seed: int = 0, *, special: SpecialIds = OWN_SPECIAL_IDS) -> "WindowBatches":
        """Raises UserError if the text is shorter than one window."""
        stream = TokenStream(columns["target"], self.append_eos, special.eos)
        if len(stream) < max(self.length, self.rows):
            raise UserError(
                f"the text has {len(stream):,} tokens, a batch {self.rows} rows of {self.length}: "
                "lower --batching.rows and --batching.length, or give more text"
            )
        return WindowBatches(stream, self, seed, special)


@dataclass(frozen=True, eq=False)
class WindowBatches(RunningTextBatches):
    """Batches of windows."""

    stream: TokenStream
    config: Windows
    seed: int = 0
    special: SpecialIds = OWN_SPECIAL_IDS

    @cached_property
    def batches_per_epoch(self) -> int:  # type: ignore[override]
        if not self.config.carry_state:
            return math.ceil(self._num_random_windows / self.config.rows)
        return math.ceil(self._piece_length / self.config.length)

    @property
    def _piece_length(self) -> int:
        """Tokens of a row in one epoch if the state is carried."""
        return math.ceil(len(self.stream) / self.config.rows)

    @property
    def _num_random_windows(self) -> int:
        """Windows of an epoch; one more than fit, as the first one may begin before the text."""
        return math.ceil(len(self.stream) / self.config.length) + 1

    def statistics(self) -> dict[str, float]:
        batches = self.batches_per_epoch
        return self._statistics(self.config.rows * batches, len(self.stream) / batches, "target")

    def longest_example(self) -> dict[str, int]:
        """The length of a row, or of the longest text in one if texts are isolated."""
        longest = self.config.length
        if self.config.isolate_documents:
            longest = min(longest, int(self.stream.column.lengths.max(initial=0)) + 1)
        return {"source": 0, "target": longest, "both": longest}

    def host_part(self, k: int, host_index: int, num_hosts: int) -> Batch:
        window, length, size = k % self.batches_per_epoch, self.config.length, len(self.stream)
        first_B, end_B = self._edges(k)
        rows = host_slice(self.config.rows, host_index, num_hosts)
        index_BT = first_B[rows, None] + np.arange(length)
        valid_BT = (index_BT < end_B[rows, None]) & (index_BT >= 0)
        label_BT = np.where(valid_BT, self.stream[np.clip(index_BT, 0, size - 1)], 0)
        before_BT = np.clip(index_BT - 1, 0, size - 1)
        input_BT = np.where(index_BT > 0, self.stream[before_BT], self.special.start)
        segment_BT = None
        if self.config.isolate_documents:
            first_BT = (index_BT <= 0) | self.stream.is_eos(before_BT)  # the first token of a text
            input_BT = np.where(first_BT, self.special.start, input_BT)
            segment_BT = np.where(valid_BT, np.cumsum(first_BT, axis=1) + 1, 0).astype(np.int32)
        reset_B = np.full(self.config.rows, window == 0)  # the rows that start from an empty state
        if self.config.reset_prob:
            reset_B |= uniform_draws(self.config.rows, self.seed, k, RESET_LANE) < self.config.reset_prob
        return Batch(
            target_BT=np.where(valid_BT, input_BT, 0).astype(np.int32),
            target_valid_BT=valid_BT,
            label_BT=label_BT.astype(np.int32),
            reset_B=reset_B[rows] if self.config.carry_rows else None,
            target_segment_BT=segment_BT,
        )

    def window_spans(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(first token, number of tokens) of each row of batch k."""
        first_B, end_B = self._edges(k)
        end_B, first_B = np.minimum(end_B, first_B + self.config.length), np.maximum(first_B, 0)
        return first_B, np.maximum(end_B - first_B, 0)

    def reads(self, k: int, row: int) -> bool:
        """True if batch k has a token of a row of the column as an input or a label."""
        starts, extra = self.stream.column.offsets, int(self.config.append_eos)
        first, end = (int(starts[index]) + extra * index for index in (row, row + 1))
        first_B, size_B = self.window_spans(k)
        return bool(((first_B < end + 1) & (first_B + size_B > first) & (size_B > 0)).any())

    def _edges(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(first token, end of the text) of each row; drawn windows have new cuts and a new order in every epoch."""
        epoch, batch = divmod(k, self.batches_per_epoch)
        length = self.config.length
        if self.config.carry_state:
            piece_B = np.arange(self.config.rows) * self._piece_length
            return piece_B + batch * length, np.minimum(piece_B + self._piece_length, len(self.stream))
        shift = int(permutation(length, self.seed, epoch, rng_lane=1)[0])
        order = self._permutation(self._num_random_windows, epoch)
        items = np.arange(batch * self.config.rows, (batch + 1) * self.config.rows)
        first_B = order[items % len(order)] * length - shift
        return first_B, np.minimum(first_B + length, len(self.stream))

    @cached_property
    def _permutation(self) -> PermutationCache:
        return PermutationCache(self.seed, 3)

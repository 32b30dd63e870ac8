"""One long text in rows: windows that follow each other from batch to batch, for states that are carried on.

The texts of the column "target" are joined to one stream, each with EOS at its end. It is cut into `rows` pieces of
equal length; batch k holds the k-th window of every piece, so that what a model remembers after a row of batch k is
what it must remember before the same row of batch k + 1. An epoch says every token exactly once: the first token of all
is said after BOS, the first one of each other row after the token before it, and the last windows are padded.

With `isolate_documents` a text sees itself alone: it begins after BOS wherever it lies in a row, and has a
segment of its own.

Many documents as one long sequence of ids that is never built: memory-mapped ids stay on disk.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching.collate import host_slice
from jaxlm.data.batching.plan import Columns
from jaxlm.data.batching.shuffle import permutation, uniform_draws
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import BOS, EOS
from jaxlm.errors import UserError
from jaxlm.types import Batch


@dataclass(frozen=True, eq=False)
class TokenStream:
    """The rows of a column one after the other, each with EOS at its end where `end`: `stream[indexes]` is int32."""

    column: Ragged
    append_eos: bool = True

    def __len__(self) -> int:
        return int(self.column.offsets[-1]) + self.append_eos * len(self.column)

    @cached_property
    def _eos_positions(self) -> np.ndarray:
        """The place of each row's EOS."""
        return self.column.offsets[1:] + np.arange(len(self.column))

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        if not self.append_eos:
            return self.column.flat[indices].astype(np.int32)
        row = np.searchsorted(self._eos_positions, indices)
        ends = self._eos_positions[row] == indices
        found = np.full(indices.shape, EOS, np.int32)
        found[~ends] = self.column.flat[(indices - row)[~ends]]
        return found


RESET_LANE = 100
"""The lane of the draws of which rows forget."""


@dataclass(frozen=True)
class Windows:
    """Batches of `rows` windows of `length` tokens.

    carry_state: windows follow each other and the model's state with them (truncated back-propagation through
      time), from an empty state in every epoch. Else they are drawn anew in every epoch, with new cuts, and
      each is read from nothing.
    append_eos: every text ends with EOS; without it the texts are one text.
    isolate_documents: no token sees another text than its own, and nothing is carried: `carry_state` then
      only means the order.
    reset_prob: chance of a row to go on from an empty state in the place of the one before (Melis et al.
      2018: 0.01): what is carried for a whole epoch never shows the model how a text begins.
    """

    length: int = 35
    rows: int = 20
    carry_state: bool = True
    append_eos: bool = True
    isolate_documents: bool = False
    reset_prob: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.reset_prob <= 1.0:
            raise UserError(f"reset_prob = {self.reset_prob}: expected a probability")
        if self.isolate_documents and not self.append_eos:
            raise UserError(
                "isolate_documents=True and append_eos=False: texts that are one text cannot be kept apart; set "
                "append_eos=True"
            )

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    @property
    def carry_rows(self) -> int:
        """Rows whose state goes on from batch to batch."""
        return self.rows if self.carry_state and not self.isolate_documents else 0

    def plan(self, columns: Columns, seed: int = 0) -> "WindowBatches":
        """Raises UserError where the text is shorter than one window."""
        stream = TokenStream(columns["target"], self.append_eos)
        if len(stream) < max(self.length, self.rows):
            raise UserError(
                f"the text has {len(stream):,} tokens, a batch {self.rows} rows of {self.length}: "
                "lower --batching.rows and --batching.length, or give more text"
            )
        return WindowBatches(stream, self, seed)


@dataclass(frozen=True, eq=False)
class WindowBatches:
    """`batches[k]` is batch k: a pure function of (stream, config, seed, k)."""

    stream: TokenStream
    config: Windows
    seed: int = 0

    @property
    def row_multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        return self.config.rows

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch."""
        if not self.config.carry_state:
            return math.ceil(self._num_random_windows / self.config.rows)
        piece = math.ceil(len(self.stream) / self.config.rows)
        return math.ceil(piece / self.config.length)

    @property
    def _num_random_windows(self) -> int:
        """Windows of an epoch whose first one may begin before the text does."""
        return math.ceil(len(self.stream) / self.config.length) + 1

    def statistics(self) -> dict[str, float]:
        """Numbers for a log, as `jaxlm.data.batching.plan.Plan` has them."""
        positions, tokens = self.batches_per_epoch * self.config.tokens, len(self.stream)
        padding = 1 - tokens / positions
        figures: dict[str, float]
        figures = {
            "examples": tokens,
            "dropped": 0,
            "truncated": 0,
            "shapes": 1,
            "batches_per_epoch": self.batches_per_epoch,
        }
        figures |= {"tokens": tokens / self.batches_per_epoch, "positions": self.config.tokens}
        return figures | {"padding_target": padding, "padding_both": padding}

    def __getitem__(self, k: int) -> Batch:
        return self.host_part(k, 0, 1)

    def host_part(self, k: int, host_index: int, num_hosts: int) -> Batch:
        """The rows of batch k that one of `num_hosts` hosts needs."""
        epoch, window = divmod(k, self.batches_per_epoch)
        length, size = self.config.length, len(self.stream)
        if self.config.carry_state:
            piece = math.ceil(size / self.config.rows)
            row_B = np.arange(self.config.rows) * piece
            first_B, last_B = row_B + window * length, np.minimum(row_B + piece, size)
        else:
            first_B, last_B = self._random_windows(epoch, window)
        rows = host_slice(self.config.rows, host_index, num_hosts)
        first_B, last_B = first_B[rows], last_B[rows]
        at_BT = first_B[:, None] + np.arange(length)
        valid_BT = (at_BT < last_B[:, None]) & (at_BT >= 0)
        label_BT = np.where(valid_BT, self.stream[np.clip(at_BT, 0, size - 1)], 0)
        begun_BT = np.where(at_BT > 0, self.stream[np.clip(at_BT - 1, 0, size - 1)], BOS)
        begins_B = self._reset_mask(k)[rows] if self.config.carry_rows else None
        segment_BT = None
        if self.config.isolate_documents:
            begun_BT = np.where(begun_BT == EOS, BOS, begun_BT)
            segment_BT = np.where(valid_BT, np.cumsum(begun_BT == BOS, axis=1) + 1, 0).astype(np.int32)
        return Batch(
            target_BT=np.where(valid_BT, begun_BT, 0).astype(np.int32), target_valid_BT=valid_BT,
            label_BT=label_BT.astype(np.int32), reset_B=begins_B, target_segment_BT=segment_BT,
        )  # fmt: skip

    def _reset_mask(self, k: int) -> np.ndarray:
        """Which rows of batch k go on from an empty state."""
        begins_B = np.full(self.config.rows, k % self.batches_per_epoch == 0)
        if self.config.reset_prob:
            begins_B |= uniform_draws(self.config.rows, self.seed, k, RESET_LANE) < self.config.reset_prob
        return begins_B

    def window_spans(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Where in the stream each row of batch k begins, and how many tokens it has, of windows that are drawn."""
        first_B, last_B = self._random_windows(*divmod(k, self.batches_per_epoch))
        first_B = np.maximum(first_B, 0)
        return first_B, np.maximum(last_B - first_B, 0)

    def _random_windows(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """First token and end of each row: the windows of an epoch in a new order, cut at new places."""
        length, size = self.config.length, len(self.stream)
        shift = int(permutation(length, self.seed, epoch, rng_lane=1)[0])
        order = self._window_order(epoch)
        rows = np.arange(batch * self.config.rows, (batch + 1) * self.config.rows)
        first_B = order[rows % len(order)] * length - shift
        return first_B, np.minimum(first_B + length, size)

    def _window_order(self, epoch: int) -> np.ndarray:
        if epoch not in self._order_cache:
            while len(self._order_cache) > 2:
                self._order_cache.pop(next(iter(self._order_cache)), None)
            self._order_cache[epoch] = permutation(self._num_random_windows, self.seed, epoch)
        return self._order_cache[epoch]

    @cached_property
    def _order_cache(self) -> dict[int, np.ndarray]:
        return {}

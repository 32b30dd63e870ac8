"""One long text in rows: windows that follow each other from batch to batch, for states that are carried on.

The texts of the column "target" are joined to one stream, each with EOS at its end. It is cut into `rows` pieces of
equal length; batch k holds the k-th window of every piece, so that what a model remembers after a row of batch k is
what it must remember before the same row of batch k + 1. An epoch says every token exactly once: the first token of all
is said after BOS, the first one of each other row after the token before it, and the last windows are padded.

With `documents` a text sees itself alone: it begins after BOS wherever it lies in a row, and has a segment of its own.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.batching import Columns
from jaxlm.data.collate import share
from jaxlm.data.order import permutation, uniform
from jaxlm.data.token_stream import Stream
from jaxlm.data.vocabulary import BOS, EOS
from jaxlm.errors import UserError
from jaxlm.types import Batch

FORGETTING = 100
"""The lane of the draws of which rows forget."""


@dataclass(frozen=True)
class Windows:
    """Batches of `rows` windows of `length` tokens.

    carry: windows follow each other and the model's state with them (truncated back-propagation through time), from an
      empty state in every epoch. Else they are drawn anew in every epoch, with new cuts, and each is read from nothing.
    end: every text ends with EOS; without it the texts are one text.
    documents: no token sees another text than its own, and nothing is carried: `carry` then only means the order.
    forget: chance of a row to go on from an empty state in the place of the one before (Melis et al. 2018: 0.01): what
      is carried for a whole epoch never shows the model how a text begins.
    """

    length: int = 35
    rows: int = 20
    carry: bool = True
    end: bool = True
    documents: bool = False
    forget: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.forget <= 1.0:
            raise UserError(f"forget = {self.forget}: expected a probability")
        if self.documents and not self.end:
            raise UserError("documents=True and end=False: texts that are one text cannot be kept apart; set end=True")

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    @property
    def carry_rows(self) -> int:
        """Rows whose state goes on from batch to batch."""
        return self.rows if self.carry and not self.documents else 0

    def plan(self, columns: Columns, seed: int = 0) -> "WindowBatches":
        """Raises UserError where the text is shorter than one window."""
        stream = Stream(columns["target"], self.end)
        if len(stream) < max(self.length, self.rows):
            raise UserError(
                f"the text has {len(stream):,} tokens, a batch {self.rows} rows of {self.length}: "
                "lower --batching.rows and --batching.length, or give more text"
            )
        return WindowBatches(stream, self, seed)


@dataclass(frozen=True, eq=False)
class WindowBatches:
    """`batches[k]` is batch k: a pure function of (stream, config, seed, k)."""

    stream: Stream
    config: Windows
    seed: int = 0

    @property
    def multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        return self.config.rows

    @cached_property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        if not self.config.carry:
            return math.ceil(self._drawable / self.config.rows)
        piece = math.ceil(len(self.stream) / self.config.rows)
        return math.ceil(piece / self.config.length)

    @property
    def _drawable(self) -> int:
        """Windows of an epoch whose first one may begin before the text does."""
        return math.ceil(len(self.stream) / self.config.length) + 1

    def statistics(self) -> dict[str, float]:
        """Numbers for a log, as `jaxlm.data.batching.Plan` has them."""
        positions, tokens = self.per_epoch * self.config.tokens, len(self.stream)
        padding = 1 - tokens / positions
        figures: dict[str, float]
        figures = {"examples": tokens, "dropped": 0, "truncated": 0, "shapes": 1, "batches_per_epoch": self.per_epoch}
        figures |= {"tokens": tokens / self.per_epoch, "positions": self.config.tokens}
        return figures | {"padding_target": padding, "padding_both": padding}

    def __getitem__(self, k: int) -> Batch:
        return self.part(k, 0, 1)

    def part(self, k: int, index: int, of: int) -> Batch:
        """The rows of batch k that one of `of` hosts needs."""
        epoch, window = divmod(k, self.per_epoch)
        length, size = self.config.length, len(self.stream)
        if self.config.carry:
            piece = math.ceil(size / self.config.rows)
            row_B = np.arange(self.config.rows) * piece
            first_B, last_B = row_B + window * length, np.minimum(row_B + piece, size)
        else:
            first_B, last_B = self._drawn(epoch, window)
        rows = share(self.config.rows, index, of)
        first_B, last_B = first_B[rows], last_B[rows]
        at_BT = first_B[:, None] + np.arange(length)
        valid_BT = (at_BT < last_B[:, None]) & (at_BT >= 0)
        label_BT = np.where(valid_BT, self.stream[np.clip(at_BT, 0, size - 1)], 0)
        begun_BT = np.where(at_BT > 0, self.stream[np.clip(at_BT - 1, 0, size - 1)], BOS)
        begins_B = self._begins(k)[rows] if self.config.carry_rows else None
        segment_BT = None
        if self.config.documents:
            begun_BT = np.where(begun_BT == EOS, BOS, begun_BT)
            segment_BT = np.where(valid_BT, np.cumsum(begun_BT == BOS, axis=1) + 1, 0).astype(np.int32)
        return Batch(
            target_BT=np.where(valid_BT, begun_BT, 0).astype(np.int32), target_valid_BT=valid_BT,
            label_BT=label_BT.astype(np.int32), begins_B=begins_B, target_segment_BT=segment_BT,
        )  # fmt: skip

    def _begins(self, k: int) -> np.ndarray:
        """Which rows of batch k go on from an empty state."""
        begins_B = np.full(self.config.rows, k % self.per_epoch == 0)
        if self.config.forget:
            begins_B |= uniform(self.config.rows, self.seed, k, FORGETTING) < self.config.forget
        return begins_B

    def spans(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Where in the stream each row of batch k begins, and how many tokens it has, of windows that are drawn."""
        first_B, last_B = self._drawn(*divmod(k, self.per_epoch))
        first_B = np.maximum(first_B, 0)
        return first_B, np.maximum(last_B - first_B, 0)

    def _drawn(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """First token and end of each row: the windows of an epoch in a new order, cut at new places."""
        length, size = self.config.length, len(self.stream)
        shift = int(permutation(length, self.seed, epoch, lane=1)[0])
        order = self._order(epoch)
        rows = np.arange(batch * self.config.rows, (batch + 1) * self.config.rows)
        first_B = order[rows % len(order)] * length - shift
        return first_B, np.minimum(first_B + length, size)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._kept:
            while len(self._kept) > 2:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[epoch] = permutation(self._drawable, self.seed, epoch)
        return self._kept[epoch]

    @cached_property
    def _kept(self) -> dict[int, np.ndarray]:
        return {}

"""Text to be completed from text: spans that were cut out (T5), or the rest of a text whose beginning is given.

Both take windows over the documents one after the other, cut anew in every epoch; batch k is a pure function of
(columns, config, seed, k).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxlm.data.batching.collate import collate
from jaxlm.data.batching.lm_windows import WindowBatches, Windows
from jaxlm.data.batching.plan import Columns
from jaxlm.data.batching.shuffle import uniform_draws
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import BOS, EOS
from jaxlm.errors import UserError
from jaxlm.types import Batch

DENOISING_RNG_LANE = 2


@dataclass(frozen=True)
class SpanCorruption:
    """Raffel et al. 2020, section 3.1.4: `density` of the tokens are cut out in spans of `mean_span` on average.

    In the place of each span stands a sentinel, another one each time, and the target is every sentinel with the span
    that it stands for. Documents follow each other without a mark, as in the paper. `length` bounds the source.
    """

    length: int = 128
    rows: int = 32
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0

    append_eos: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 < self.noise_density < 1.0 or self.mean_noise_span_length < 1.0 or self.length < 8:
            raise UserError(
                f"noise_density = {self.noise_density}, mean_noise_span_length = {self.mean_noise_span_length}, "
                f"length = {self.length}: expected a share "
                "between 0 and 1, spans of 1 token or more, and rows of 8 or more"
            )

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    @property
    def window_length(self) -> int:
        """The tokens of a row before anything is cut out: as many as leave `length` with the sentinels and EOS."""
        most = int(self.length / (1.0 - self.noise_density)) + 1
        return next(n for n in range(most, 1, -1) if self._source_length(n) <= self.length)

    def _source_length(self, size: int) -> int:
        noise, spans = self.noise_counts(size)
        return size - noise + spans + 1

    def noise_counts(self, size: int) -> tuple[int, int]:
        """How many tokens are cut out of `size`, in how many spans."""
        noise = min(max(round(size * self.noise_density), 1), size - 1)
        return noise, min(max(round(noise / self.mean_noise_span_length), 1), size - noise)

    def plan(self, columns: Columns, seed: int = 0) -> "DenoisingBatches":
        """Columns "target" and "symbol", the sentinels. Raises UserError where these or the text do not suffice."""
        spans, there = self.noise_counts(self.window_length)[1], len(columns["symbol"].flat)
        if spans > there:
            raise UserError(
                f"rows of {self.length} have {spans} spans, and there are {there} sentinels: name more "
                "(--task.sentinels, symbols of the tokenizer), or take shorter rows"
            )
        return DenoisingBatches(columns, self, _plan_windows(columns, self.window_length, self, seed))

    def make_batch(self, rows: list[np.ndarray], columns: Columns, draws: np.ndarray) -> Batch:
        """Sources with gaps, targets that fill them; `draws` are numbers in [0, 1), one for each token of a window."""
        sentinels = columns["symbol"].flat
        parts = [self.corrupt(ids, sentinels, draw) for ids, draw in zip(rows, draws, strict=True)]
        sources, targets = (Ragged.from_rows([part[side] for part in parts]) for side in (0, 1))
        place, noise_spans = np.arange(len(rows)), sum(self.noise_counts(self.window_length))
        sides = {"source": sources, "target": targets}
        return collate(sides, place, place, len(rows), self.length, noise_spans + 1, packed=False)

    def corrupt(self, ids: np.ndarray, sentinels: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, target) of one window, which begins with text and ends with a span; of less than two tokens, none
        is cut out."""
        if len(ids) < 2:
            return ids, ids[:0]
        noise, spans = self.noise_counts(len(ids))
        kept = _random_segmentation(len(ids) - noise, spans, draws[noise:])
        sizes = np.stack([kept, _random_segmentation(noise, spans, draws[:noise])], 1).reshape(-1)
        run = np.repeat(np.arange(2 * spans), sizes)  # even: text, odd: a span that is cut out
        first = np.diff(run, prepend=-1) > 0
        hidden = run % 2 == 1
        marked = np.where(first, sentinels[run // 2], ids)
        return np.where(hidden, marked, ids)[~hidden | first], np.where(hidden, ids, marked)[hidden | first]


@dataclass(frozen=True)
class PrefixLMWindows:
    """Raffel et al. 2020, section 3.2.1: the beginning of a window is the source, the rest the target.

    A batch is cut at one of `cuts` - 1 places, by chance, so that no row has padding. Each document ends with EOS.
    """

    length: int = 128
    rows: int = 32
    prefix_steps: int = 8

    append_eos: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.prefix_steps <= self.length:
            raise UserError(
                f"prefix_steps = {self.prefix_steps} of rows of {self.length}: expected 2 at least, and one a "
                "token at most"
            )

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    @property
    def window_length(self) -> int:
        """The tokens of a row, source and target together."""
        return self.length

    def plan(self, columns: Columns, seed: int = 0) -> "DenoisingBatches":
        """Column "target". Raises UserError where there is too little text."""
        return DenoisingBatches(columns, self, _plan_windows(columns, self.length, self, seed))

    def make_batch(self, rows: list[np.ndarray], columns: Columns, draws: np.ndarray) -> Batch:
        """The source ends with EOS; the target begins with BOS, and its end is no end of a text unless it says so."""
        cut = self.length * (1 + int(draws[0, 0] * (self.prefix_steps - 1))) // self.prefix_steps
        size_B1 = np.array([[len(ids)] for ids in rows])
        ids_BL = np.stack([np.pad(ids, (0, self.length - len(ids))) for ids in rows])
        source_BS = np.pad(ids_BL[:, :cut], ((0, 0), (0, 1)))
        head_B1 = np.minimum(size_B1, cut)
        np.put_along_axis(source_BS, head_B1, EOS, axis=1)
        label_BT = ids_BL[:, cut:]
        valid_BT = np.arange(cut, self.length) < size_B1
        target_BT = np.where(valid_BT, np.pad(label_BT[:, :-1], ((0, 0), (1, 0)), constant_values=BOS), 0)
        return Batch(
            source_BS=source_BS, source_valid_BS=np.arange(cut + 1) <= head_B1, target_BT=target_BT,
            target_valid_BT=valid_BT, label_BT=label_BT,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class DenoisingBatches:
    """`batches[k]` is batch k."""

    columns: Columns
    config: SpanCorruption | PrefixLMWindows
    windows: WindowBatches

    @property
    def row_multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        return self.config.rows

    @property
    def batches_per_epoch(self) -> int:
        """Batches until everything was seen."""
        return self.windows.batches_per_epoch

    def statistics(self) -> dict[str, float]:
        """Numbers for a log, of the windows that the rows are made of."""
        return self.windows.statistics()

    def __getitem__(self, k: int) -> Batch:
        rows = [
            self.windows.stream[first + np.arange(size)]
            for first, size in zip(*self.windows.window_spans(k), strict=True)
        ]
        draws = uniform_draws(len(rows) * self.config.window_length, self.windows.seed, k, DENOISING_RNG_LANE).reshape(
            len(rows), -1
        )
        return self.config.make_batch(rows, self.columns, draws)


def _plan_windows(columns: Columns, length: int, config: SpanCorruption | PrefixLMWindows, seed: int) -> WindowBatches:
    return Windows(length, config.rows, carry_state=False, append_eos=config.append_eos).plan(columns, seed)


def _random_segmentation(size: int, count: int, draws: np.ndarray) -> np.ndarray:
    """`size` as a sum of `count` numbers of at least 1, each such sum with the same chance."""
    cuts = np.sort(np.argsort(draws[: size - 1], kind="stable")[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [size]]))

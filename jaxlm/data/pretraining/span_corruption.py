"""Span corruption (T5) and prefix language modeling, on windows over the documents, new ones in every epoch."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxlm.data.batching.batches import RunningText, RunningTextBatches
from jaxlm.data.batching.collate import collate
from jaxlm.data.batching.lm_windows import WindowBatches, Windows
from jaxlm.data.batching.shuffle import uniform_draws
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.types import Batch

DENOISING_RNG_LANE = 2


@dataclass(frozen=True)
class _WindowPairs(RunningText):
    """Base of the batchings that make a source and a target of each window of `window_length` tokens."""

    append_eos: ClassVar[bool]

    @property
    def window_length(self) -> int:
        """Tokens of a row before it becomes a source and a target."""
        return self.length

    def batches(self, columns: Columns, seed: int = 0, *, special: SpecialIds = OWN_SPECIAL_IDS) -> "DenoisingBatches":
        """Of the column "target". Raises UserError if there is too little text."""
        windows = Windows(self.window_length, self.rows, carry_state=False, append_eos=self.append_eos)
        return DenoisingBatches(columns, self, windows.batches(columns, seed, special=special))

    def make_batch(
        self, rows: list[np.ndarray], columns: Columns, draws_BL: np.ndarray, special: SpecialIds = OWN_SPECIAL_IDS
    ) -> Batch:
        """The sources and targets of the windows `rows`; `draws_BL` are random numbers in [0, 1), one a token."""
        raise NotImplementedError


@dataclass(frozen=True)
class SpanCorruption(_WindowPairs):
    """Span corruption, Raffel et al. 2020, section 3.1.4; `length` bounds the source.

    `noise_density` of the tokens are removed, in spans of `mean_noise_span_length` on average. A sentinel replaces
    each span, another one each time; the target is every sentinel and its span. Nothing separates documents.
    """

    length: int = 128
    rows: int = 32
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0

    append_eos: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 < self.noise_density < 1.0 or self.mean_noise_span_length < 1.0 or self.length < 8:
            raise UserError(
                f"noise_density = {self.noise_density}, mean_noise_span_length = {self.mean_noise_span_length}, length "
                f"= {self.length}: expected a share between 0 and 1, spans of 1 token or more, and rows of 8 or more"
            )

    @property
    def window_length(self) -> int:
        """Tokens of a row before corruption: as many as give a source of `length` with the sentinels and EOS."""
        longest = int(self.length / (1.0 - self.noise_density)) + 1
        return next(n for n in range(longest, 1, -1) if self._source_length(n) <= self.length)

    def _source_length(self, size: int) -> int:
        noise, spans = self.noise_counts(size)
        return size - noise + spans + 1

    def noise_counts(self, size: int) -> tuple[int, int]:
        """(tokens to remove from a window of `size` tokens, number of their spans)."""
        noise = min(max(round(size * self.noise_density), 1), size - 1)
        return noise, min(max(round(noise / self.mean_noise_span_length), 1), size - noise)

    def batches(self, columns: Columns, seed: int = 0, *, special: SpecialIds = OWN_SPECIAL_IDS) -> "DenoisingBatches":
        """Of the columns "target" and "symbol", the sentinels. Raises UserError if either has too few ids."""
        spans, num_sentinels = self.noise_counts(self.window_length)[1], len(columns["symbol"].flat)
        if spans > num_sentinels:
            raise UserError(
                f"rows of {self.length} have {spans} spans, and there are {num_sentinels} sentinels: name more "
                "(--task.sentinels, symbols of the tokenizer), or take shorter rows"
            )
        return super().batches(columns, seed, special=special)

    def make_batch(
        self, rows: list[np.ndarray], columns: Columns, draws_BL: np.ndarray, special: SpecialIds = OWN_SPECIAL_IDS
    ) -> Batch:
        sentinels = columns["symbol"].flat
        pairs = [self.corrupt(ids, sentinels, draws) for ids, draws in zip(rows, draws_BL, strict=True)]
        sources, targets = (Ragged.from_rows(side) for side in zip(*pairs, strict=True))
        row_index = np.arange(len(rows))
        shape = len(rows), self.length, sum(self.noise_counts(self.window_length)) + 1
        sides = {"source": sources, "target": targets}
        return collate(sides, row_index, row_index, shape, packed=False, special=special)

    def corrupt(self, ids: np.ndarray, sentinels: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, target) of one window, which begins with text and ends with a span; of one token it stays whole."""
        if len(ids) < 2:
            return ids, ids[:0]
        noise, spans = self.noise_counts(len(ids))
        text_sizes = _random_segmentation(len(ids) - noise, spans, draws[noise:])
        noise_sizes = _random_segmentation(noise, spans, draws[:noise])
        # The window alternates: text, span, text, span. run[i] is the number of token i's segment; odd ones are spans.
        run = np.repeat(np.arange(2 * spans), np.stack([text_sizes, noise_sizes], 1).reshape(-1))
        first = np.diff(run, prepend=-1) > 0
        is_noise = run % 2 == 1
        marked = np.where(first, sentinels[run // 2], ids)  # each segment with a sentinel for its first token
        source = np.where(is_noise, marked, ids)[~is_noise | first]
        return source, np.where(is_noise, ids, marked)[is_noise | first]


@dataclass(frozen=True)
class PrefixLMWindows(_WindowPairs):
    """Prefix language modeling, Raffel et al. 2020, section 3.2.1: a prefix is the source, the rest the target.

    All windows of a batch are cut at the same one of `prefix_steps` - 1 places, drawn at random, so that no row has
    padding. Each document ends with EOS.
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

    def make_batch(
        self, rows: list[np.ndarray], columns: Columns, draws_BL: np.ndarray, special: SpecialIds = OWN_SPECIAL_IDS
    ) -> Batch:
        """The source ends with EOS; the target begins with BOS and ends with EOS only if its document does."""
        cut = self.length * (1 + int(draws_BL[0, 0] * (self.prefix_steps - 1))) // self.prefix_steps
        size_B1 = np.array([[len(ids)] for ids in rows])
        ids_BL = np.stack([np.pad(ids, (0, self.length - len(ids))) for ids in rows])
        source_BS = np.pad(ids_BL[:, :cut], ((0, 0), (0, 1)))  # room for EOS
        prefix_B1 = np.minimum(size_B1, cut)
        np.put_along_axis(source_BS, prefix_B1, special.eos, axis=1)
        label_BT = ids_BL[:, cut:]
        valid_BT = np.arange(cut, self.length) < size_B1
        target_BT = np.where(valid_BT, np.pad(label_BT[:, :-1], ((0, 0), (1, 0)), constant_values=special.start), 0)
        return Batch(
            source_BS=source_BS,
            source_valid_BS=np.arange(cut + 1) <= prefix_B1,
            target_BT=target_BT,
            target_valid_BT=valid_BT,
            label_BT=label_BT,
        )


@dataclass(frozen=True, eq=False)
class DenoisingBatches(RunningTextBatches):
    """Batches of sources and targets."""

    columns: Columns
    config: _WindowPairs
    windows: WindowBatches

    @property
    def batches_per_epoch(self) -> int:  # type: ignore[override]
        return self.windows.batches_per_epoch

    def statistics(self) -> dict[str, float]:
        """Those of the windows that the rows are made of."""
        return self.windows.statistics()

    def __getitem__(self, k: int) -> Batch:
        spans = zip(*self.windows.window_spans(k), strict=True)
        rows = [self.windows.stream[first + np.arange(size)] for first, size in spans]
        draws = uniform_draws(len(rows) * self.config.window_length, self.windows.seed, k, DENOISING_RNG_LANE)
        draws_BL = draws.reshape(len(rows), -1)
        return self.config.make_batch(rows, self.columns, draws_BL, self.windows.special)


def _random_segmentation(size: int, count: int, draws: np.ndarray) -> np.ndarray:
    """`count` numbers of at least 1 whose sum is `size`, uniform over all such sums."""
    cuts = np.sort(np.argsort(draws[: size - 1], kind="stable")[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [size]]))

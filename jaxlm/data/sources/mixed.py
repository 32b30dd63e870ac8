"""Mixtures of texts: the source of every row of a run, in closed form.

Sources are the leaves of a Huffman tree of their weights. Of the first g rows of a node floor(r g + 1/2) go to its
heavier child, of the share r; so row g finds its leaf, and its number there, without the rows before it. A path from a
leaf to the root meets shares that shrink fast, so the count of a source stays within 1.3 rows of g w, where one
rounding for all sources (Sainte-Lague) is 2.8 rows away for weights from 1e-4 to 1. No small weight becomes nothing.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.text import TextSource
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError

WEIGHT_BITS = 2.0**36
"""Weights are rounded to multiples of 2^-36, so that a common factor changes no bit of them."""


@dataclass(frozen=True)
class Temperature:
    """Weights in proportion to tokens^(1 / temperature): 1 is proportional, mT5 has 3.3 (Xue et al. 2021)."""

    temperature: float = 1.0

    def weights(self, tokens: np.ndarray) -> np.ndarray:
        """Of sources with these numbers of tokens."""
        return (tokens / tokens.max()) ** (1 / self.temperature)


@dataclass(frozen=True)
class UniMax:
    """Equal shares of `budget` tokens, but no source more than `epochs` times (Chung et al. 2023)."""

    epochs: float
    budget: int

    def weights(self, tokens: np.ndarray) -> np.ndarray:
        """Of sources with these numbers of tokens."""
        shares, rest = np.zeros(len(tokens)), float(self.budget)
        for done, source in enumerate(np.argsort(tokens, kind="stable").tolist()):
            shares[source] = min(rest / (len(tokens) - done), self.epochs * tokens[source])
            rest -= shares[source]
        return shares


Weights = tuple[float, ...] | Temperature | UniMax


@dataclass(frozen=True)
class Mixed(TextSource):
    """Several sources of texts; each row of a batch has the text of one of them.

    Attributes:
      weights: shares of the rows, in any unit.
      stages: (step, weights), ...: the weights from that step on.
    """

    sources: tuple[TextSource, ...]
    weights: Weights
    stages: tuple[tuple[int, Weights], ...] = ()

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.stages]
        if not self.sources or sorted({0, *steps}) != [0, *steps]:
            raise UserError(f"{len(self.sources)} mixed sources, stages at {steps}: expected rising steps from 1")
        for weights in (self.weights, *(weights for _, weights in self.stages)):
            if isinstance(weights, tuple):
                array = np.asarray(weights, float)
                good = array.shape == (len(self.sources),) and np.isfinite(array).all() and (array >= 0).all()
                if not good or not array.any():
                    count = f"{len(self.sources)} sources"
                    raise UserError(f"weights {weights} of {count}: expected a number for each, 0 or more, not all 0")

    def describe(self) -> str:
        return "a mixture of " + " and ".join(source.describe() for source in self.sources)

    def read(self, stats: ReadStats) -> Iterator[str]:
        for source in self.sources:
            yield from source.read(stats)

    def encode(self, tokenizer: Tokenizer, stats: ReadStats | None = None, folder: Path | None = None) -> "MixedColumn":
        """The ids of all sources one after the other; each has a subfolder of `folder`."""
        folders = [folder / f"source{index}" if folder else None for index in range(len(self.sources))]
        parts = []
        for source, part in zip(self.sources, folders, strict=True):
            counts = ReadStats()
            parts.append(source.encode(tokenizer, counts, part))
            if stats is not None:
                stats.kept, stats.skipped = stats.kept + counts.kept, stats.skipped + counts.skipped
                stats.replaced, stats.blank = stats.replaced + counts.replaced, stats.blank + counts.blank
        whole = Ragged.concat(parts)
        return MixedColumn(whole.flat, whole.offsets, self, tuple(parts))


@dataclass(frozen=True, eq=False)
class MixedColumn(Ragged):
    """The rows of all sources of a mixture, and those of each."""

    mixture: Mixed
    parts: tuple[Ragged, ...]

    def __reduce__(self) -> tuple:
        return MixedColumn, (self.flat, self.offsets, self.mixture, self.parts)

    def order(self, rows: int) -> "MixedOrder":
        """The order of the rows of batches of `rows` rows."""
        tokens = np.array([len(part.flat) for part in self.parts], float)
        stages = [(0, self.mixture.weights), *self.mixture.stages]
        shares = [of if isinstance(of, tuple) else of.weights(tokens) for _, of in stages]
        return MixedOrder([step * rows for step, _ in stages], np.array(shares, float))


class MixedOrder:
    """The source of each row: `starts[k]` is the first row of stage k, `weights[k]` the weights of the sources."""

    def __init__(self, starts: Sequence[int], weights: np.ndarray):
        self.weight_KS = np.round(weights / weights.sum(1, keepdims=True) * WEIGHT_BITS) / WEIGHT_BITS
        self._start_K = np.array(starts, float)
        heap: list[tuple] = [
            (weight, source, (source,)) for source, weight in enumerate(self.weight_KS.sum(0).tolist())
        ]
        self._tree: dict[tuple, tuple] = {}  # sources below a node -> those below its two children
        while len(heap) > 1:
            heapq.heapify(heap)
            (small, first, light), (large, second, heavy) = heapq.heappop(heap), heapq.heappop(heap)
            self._tree[heavy + light] = heavy, light
            heap.append((small + large, min(first, second), heavy + light))
        self._root: tuple[int, ...] = heap[0][2]

    def rows(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, number of the row among those of its source) of the rows from `first` on."""
        source_N, index_N = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._split(
            self._root, self._start_K, first + np.arange(count, dtype=float), np.arange(count), (source_N, index_N)
        )
        return source_N, index_N

    def _split(
        self, node: tuple, start_K: np.ndarray, row_N: np.ndarray, place_N: np.ndarray, result: tuple[np.ndarray, ...]
    ) -> None:
        """Write (source, row) of rows of a node, whose stages begin with its rows `start_K`, to their places."""
        if not len(row_N):
            return
        if len(node) == 1:
            result[0][place_N], result[1][place_N] = node[0], row_N
            return
        heavy, light = self._tree[node]
        weight_K, both_K = self.weight_KS[:, list(heavy)].sum(1), self.weight_KS[:, list(node)].sum(1)
        ratio_K = weight_K / np.where(both_K > 0, both_K, 1)
        turns_K = np.append(0, np.cumsum(np.floor(ratio_K[:-1] * np.diff(start_K) + 0.5)))

        def turns(row_N: np.ndarray) -> np.ndarray:
            stage_N = np.searchsorted(start_K, row_N, "right") - 1
            return turns_K[stage_N] + np.floor(ratio_K[stage_N] * (row_N - start_K[stage_N]) + 0.5)

        before_N = turns(row_N)
        is_heavy_N = turns(row_N + 1) > before_N
        self._split(heavy, turns_K, before_N[is_heavy_N], place_N[is_heavy_N], result)
        self._split(light, start_K - turns_K, (row_N - before_N)[~is_heavy_N], place_N[~is_heavy_N], result)

"""The interface of data sources: frozen dataclasses that stream texts, or pairs of texts, the same at each reading.

Of a pair, the first text is what the model reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from jaxlm.data.files import ReadStats
from jaxlm.errors import UserError

Row = TypeVar("Row")

Pair = tuple[str, str]


class Pairs(Protocol):
    """The interface of any source of pairs, also of one that is not a `PairSource`."""

    def __iter__(self) -> Iterator[Pair]:
        """The pairs, from the first one on at every call."""
        ...

    def describe(self) -> str:
        """One line that names the data and the direction."""
        ...


class Source(Generic[Row]):
    """Base of the sources: a subclass defines `read` and `describe`; iteration and `check` follow from them."""

    def read(self, stats: ReadStats) -> Iterator[Row]:
        """The rows; `stats` counts those that were kept, repaired and left out. Raises UserError for a bad file."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line that names the data; of pairs, also their direction."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Row]:
        return self.read(ReadStats())

    def check(self) -> ReadStats:
        """Read everything once, so that every fault shows before training starts; the counts."""
        stats = ReadStats()
        for _ in self.read(stats):
            pass
        return stats


class PairSource(Source[Pair]):
    """Base of the sources of pairs."""


class FilteredPairs(PairSource):
    """Base of the readers of pairs: unreadable pairs and, unless `keep_blank`, blank ones are dropped and counted."""

    keep_blank: bool = False

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        """The pairs; None for a text that cannot be read."""
        raise NotImplementedError

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        before = stats.kept
        for source, target in self._read_rows(stats):
            if source is None or target is None:
                stats.skipped += 1
            elif self._is_kept(source, target):
                stats.kept += 1
                yield source, target
            else:
                stats.blank += 1
        if stats.kept == before:
            raise UserError(f"{self.describe()}: no pair is left ({stats}). Look into the files.")

    def _is_kept(self, source: str | None, target: str | None) -> bool:
        readable = source is not None and target is not None
        return readable and (self.keep_blank or bool(source and source.strip() and target and target.strip()))

    def locate(self, index: int) -> str:
        """The place of a pair for a message; it is counted from 0 among the pairs that are kept."""
        rows = enumerate(self._read_rows(ReadStats()))
        kept = (number for number, row in rows if self._is_kept(*row))
        return self._place(next(islice(kept, index, None)))

    def _place(self, number: int) -> str:
        """The place of row `number`, from 0, of those of the file."""
        return f"{self.describe()}, pair {number + 1}"


def iter_pairs(pairs: Any, stats: ReadStats) -> Iterator[Any]:
    """The rows of any source; rows of one that does not count bad lines count as kept."""
    if isinstance(pairs, Source):
        yield from pairs.read(stats)
    else:
        for pair in pairs:
            stats.kept += 1
            yield pair


@dataclass(frozen=True)
class WithStats:
    """A source whose counts are in `stats` after a reading: those of one reading, however often it is read."""

    source: Any
    stats: ReadStats

    def __iter__(self) -> Iterator[Any]:
        counts = ReadStats()
        yield from iter_pairs(self.source, counts)
        vars(self.stats).update(vars(counts))

    def describe(self) -> str:
        """The line of the source."""
        return self.source.describe()

"""What a source of sentence pairs is.

A source is a frozen dataclass. Iterating over it streams (source text, target text); it can be iterated any number of
times and gives the same pairs each time. The direction is always spelt out: the first text is what the model reads.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from jaxlm.data.files import ReadStats
from jaxlm.errors import UserError

Pair = tuple[str, str]


class Pairs(Protocol):
    """What the data pipeline asks of a source of pairs."""

    def __iter__(self) -> Iterator[Pair]:
        """The pairs from the first, each time it is called."""
        ...

    def describe(self) -> str:
        """One line that says what is read and in which direction."""
        ...


class PairSource:
    """Base of the sources here: `read` is theirs, iteration and `check` follow from it."""

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        """The pairs; `bad` counts what was kept, mended and left out."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line that says what is read and in which direction."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Pair]:
        return self.read(ReadStats())

    def check(self) -> ReadStats:
        """Reads everything once, so that every fault shows before training starts; the counts."""
        bad = ReadStats()
        for _ in self.read(bad):
            pass
        return bad


def iter_pairs(pairs: Pairs, stats: ReadStats) -> Iterator[Pair]:
    """The pairs of any source; those that know nothing of bad lines count as kept."""
    if isinstance(pairs, PairSource):
        yield from pairs.read(stats)
    else:
        for pair in pairs:
            stats.kept += 1
            yield pair


@dataclass(frozen=True)
class WithStats:
    """A source of which `bad` has the counts of one reading, however often it is read."""

    pairs: Pairs
    stats: ReadStats

    def __iter__(self) -> Iterator[Pair]:
        counts = ReadStats()
        yield from iter_pairs(self.pairs, counts)
        vars(self.stats).update(vars(counts))

    def describe(self) -> str:
        """As the source."""
        return self.pairs.describe()


def filter_pairs(
    pairs: Iterable[tuple[str | None, str | None]], stats: ReadStats, keep_blank: bool, source_name: str
) -> Iterator[Pair]:
    """Drops and counts pairs that could not be read (None) or have a blank side. Raises UserError if none is left."""
    before = stats.kept
    for source, target in pairs:
        if source is None or target is None:
            stats.skipped += 1
        elif keep_blank or not (_is_blank(source) or _is_blank(target)):
            stats.kept += 1
            yield source, target
        else:
            stats.blank += 1
    if stats.kept == before:
        raise UserError(f"{source_name}: no pair is left ({stats}). Look into the files.")


def _is_blank(text: str) -> bool:
    return not text or text.isspace()

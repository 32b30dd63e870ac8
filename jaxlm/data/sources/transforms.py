"""Sources that select, reorder, join or relabel the pairs of other sources."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import Pair, Pairs, PairSource, iter_pairs
from jaxlm.errors import UserError

SplitName = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class HashSplit(PairSource):
    """One split of a corpus that comes without splits; they are disjoint and together the whole corpus.

    A hash of the text on `hash_side` decides, so that all translations of a sentence are in one split, independent of
    the order of the corpus. `valid` and `test` are the expected fractions; another `seed` gives other splits.
    """

    pairs: Pairs
    split: SplitName
    valid: float = 0.01
    test: float = 0.01
    seed: int = 0
    hash_side: Literal["source", "target"] = "source"

    def __post_init__(self) -> None:
        if not (self.valid >= 0 and self.test >= 0 and self.valid + self.test < 1):
            raise UserError(f"valid={self.valid} and test={self.test}: expected shares from 0 that sum to less than 1")
        if self.split not in get_args(SplitName) or self.hash_side not in ("source", "target"):
            raise UserError(
                f"part {self.split!r} by {self.hash_side!r}: expected 'train', 'valid' or 'test', by 'source' or "
                "'target'"
            )

    def describe(self) -> str:
        part = f"{self.split} part by {self.hash_side} ({self.valid}, {self.test}, seed {self.seed})"
        return f"{self.pairs.describe()}; {part}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        side, empty = 0 if self.hash_side == "source" else 1, True
        for pair in iter_pairs(self.pairs, stats):
            if self._split_of_text(pair[side]) == self.split:
                empty = False
                yield pair
        if empty:
            raise UserError(f"{self.describe()}: no pair falls into this part. Give it a larger share, or more data.")

    def _split_of_text(self, text: str) -> SplitName:
        words = " ".join(text.split())
        digest = hashlib.blake2b(f"{self.seed}\t{words}".encode(errors="replace"), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        if place < self.test:
            return "test"
        return "valid" if place < self.test + self.valid else "train"


@dataclass(frozen=True)
class Shuffle(PairSource):
    """The pairs in an order that depends only on `seed` and their number. Reading holds all pairs in memory."""

    pairs: Pairs
    seed: int = 0

    def describe(self) -> str:
        return f"{self.pairs.describe()}; shuffled by seed {self.seed}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        rows = list(iter_pairs(self.pairs, stats))
        draw = random.Random(self.seed).random
        keys = [draw() for _ in rows]
        yield from (rows[index] for index in sorted(range(len(rows)), key=keys.__getitem__))


@dataclass(frozen=True)
class Take(PairSource):
    """The first `count` pairs; `check` reads all of them, so that later faults show too."""

    pairs: Pairs
    count: int

    def describe(self) -> str:
        return f"{self.pairs.describe()}; first {self.count:,}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return islice(iter_pairs(self.pairs, stats), self.count)

    def check(self) -> ReadStats:
        stats = ReadStats()
        for _ in iter_pairs(self.pairs, stats):
            pass
        return stats


@dataclass(frozen=True)
class Concat(PairSource):
    """The pairs of several sources, one source after the other; a source that is given twice is read twice."""

    sources: tuple[Pairs, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("Concat without a source: expected one at least")

    def describe(self) -> str:
        return " and ".join(part.describe() for part in self.sources)

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for part in self.sources:
            yield from iter_pairs(part, stats)


@dataclass(frozen=True)
class RelabelTags(PairSource):
    """The pairs with some words of the targets renamed, such as the tags of one data set into those of another."""

    pairs: Pairs
    mapping: dict[str, str]

    def describe(self) -> str:
        return f"{self.pairs.describe()}, with {', '.join(f'{old} as {new}' for old, new in self.mapping.items())}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for source, target in iter_pairs(self.pairs, stats):
            yield source, " ".join(self.mapping.get(word, word) for word in target.split())

"""The tiny texts of the course that MiniLang does not have."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from jaxlm import PairSource, ReadStats

SEEDS = {"train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class Recall(PairSource):
    """Lines such as "C . . . . ?" and the letter that they begin with, after 1 to `longest` dots."""

    split: str
    count: int
    longest: int = 40

    LETTERS: ClassVar[tuple[str, ...]] = ("A", "B", "C", "D")

    def describe(self) -> str:
        return f"{self.count:,} lines to recall a letter after up to {self.longest} dots, {self.split}"

    def read(self, stats: ReadStats) -> Iterator[tuple[str, str]]:
        draw = Random(SEEDS[self.split])
        for _ in range(self.count):
            stats.kept += 1
            letter = draw.choice(self.LETTERS)
            yield " ".join([letter, *["."] * draw.randint(1, self.longest), "?"]), letter

"""Sources that select, reorder, join, relabel or tokenize the pairs of other sources.

Moses text is made in the order of the `lc.norm.tok` files of Multi30k, which many published scores use: lower case,
normalized punctuation, then tokens with the Moses escapes (`&quot;`, `&apos;`). Runs of spaces collapse.
"""

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import Pair, Pairs, PairSource, iter_pairs
from jaxlm.errors import UserError

SplitName = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class HashSplit(PairSource):
    """One split of a corpus that comes without splits; they are disjoint and together the whole corpus.

    A hash of the text on `hash_side` (of a dialogue: of all before the first answer) decides, so that all translations
    of a sentence are in one split, independent of the order of the corpus. `valid` and `test` are the expected
    fractions; another `seed` gives other splits.
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
            words = " ".join((pair[side] if isinstance(pair, tuple) else pair.text).split())
            digest = hashlib.blake2b(f"{self.seed}\t{words}".encode(errors="replace"), digest_size=8).digest()
            place = int.from_bytes(digest, "big") / 2**64
            split = "test" if place < self.test else "valid" if place < self.test + self.valid else "train"
            if split == self.split:
                empty = False
                yield pair
        if empty:
            raise UserError(f"{self.describe()}: no pair falls into this part. Give it a larger share, or more data.")


@dataclass(frozen=True)
class Shuffle(PairSource):
    """The pairs in an order that depends only on `seed` and their number. Reading holds all pairs in memory."""

    pairs: Pairs
    seed: int = 0

    def describe(self) -> str:
        return f"{self.pairs.describe()}; shuffled by seed {self.seed}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        rows, draw = list(iter_pairs(self.pairs, stats)), random.Random(self.seed).random
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
        return Concat((self.pairs,)).check()


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


PREPROCESS_CACHE_SIZE = 1 << 17
"""Lines; the 58,000 of Multi30k take 5 s, and the tokenizer's training and the encoding both read them."""


def moses_preprocess(lines: Sequence[str], lang: str, lowercase: bool = True) -> list[str]:
    """The lines of one side in lower case, normalized and tokenized."""
    return [_preprocess_line(line, lang, lowercase) for line in lines]


@functools.lru_cache(maxsize=PREPROCESS_CACHE_SIZE)
def _preprocess_line(line: str, lang: str, lowercase: bool) -> str:
    normalized = _sacremoses_tool("MosesPunctNormalizer", lang).normalize(line.lower() if lowercase else line)
    return _sacremoses_tool("MosesTokenizer", lang).tokenize(normalized, return_str=True)


@functools.cache
def _sacremoses_tool(name: str, lang: str) -> Any:
    try:
        import sacremoses
    except ImportError as error:
        raise UserError("Moses tokenization needs sacremoses: pip install 'jaxlm[moses]'") from error
    return getattr(sacremoses, name)(lang=lang)


@dataclass(frozen=True)
class Lowercase(PairSource):
    """Both sides in lower case."""

    pairs: Pairs

    def describe(self) -> str:
        return f"{self.pairs.describe()}; lower case"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return ((source.lower(), target.lower()) for source, target in iter_pairs(self.pairs, stats))


@dataclass(frozen=True)
class MosesPreprocess(PairSource):
    """Both sides in lower case (if `lowercase`), normalized and tokenized, by the codes of their languages."""

    pairs: Pairs
    source_lang: str
    target_lang: str
    lowercase: bool = True

    def describe(self) -> str:
        case = "lower-cased " if self.lowercase else ""
        return f"{self.pairs.describe()}; {case}Moses tokens ({self.source_lang} -> {self.target_lang})"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for source, target in iter_pairs(self.pairs, stats):
            source = _preprocess_line(source, self.source_lang, self.lowercase)
            yield source, _preprocess_line(target, self.target_lang, self.lowercase)

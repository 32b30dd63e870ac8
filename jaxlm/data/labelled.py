"""Texts with a class each, as pairs (text, class); parallel files and tab-separated columns are read as such already.

Also the tags and opinions of the built-in corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxlm.data.minilang import MiniLang, Sentence, minimal_pairs
from jaxlm.data.pairs import Pair, Pairs, PairSource, kept_pairs, read
from jaxlm.data.text import BadLines, OnBadLine, find, lines_or_none
from jaxlm.errors import UserError

OPINIONS = ("N", "NEU", "P")
"""Blame, neither, praise."""

Language = Literal["en", "es"]


@dataclass(frozen=True)
class LabelFirst(PairSource):
    """A text a line after its class and a space: `1 a stirring , funny film`. Raises UserError for a line without."""

    path: str
    separator: str = " "
    on_bad_line: OnBadLine = "error"

    def describe(self) -> str:
        return f"{self.path}, text -> class"

    def read(self, bad: BadLines) -> Iterator[Pair]:
        return kept_pairs(self._lines(bad), bad, False, self.describe())

    def _lines(self, bad: BadLines) -> Iterator[tuple[str | None, str | None]]:
        file = find(self.path)
        for number, line in enumerate(lines_or_none(file, self.on_bad_line, bad), start=1):
            name, found, text = (line or "").partition(self.separator)
            if found or not line:
                yield (None, None) if line is None else (text, name)
                continue
            if self.on_bad_line == "error":
                raise UserError(
                    f"{file}, line {number}: {line[:80]!r} is a class without a text, expected {self.separator!r} "
                    "between them. Mend the line, or set on_bad_line='skip'."
                )
            yield None, None


@dataclass(frozen=True)
class ClassNames(PairSource):
    """Another source's classes under other names: `codes[i]` becomes `names[i]`. Raises UserError for an unknown code.

    Two codes may have the same name, which joins the classes.
    """

    pairs: Pairs
    codes: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.codes) != len(self.names) or len(set(self.codes)) != len(self.codes):
            raise UserError(f"{len(self.codes)} codes {self.codes} and {len(self.names)} names {self.names}: expected "
                            "different codes and a name for each")  # fmt: skip

    def describe(self) -> str:
        return f"{self.pairs.describe()} ({', '.join(self.names)})"

    def read(self, bad: BadLines) -> Iterator[Pair]:
        names = dict(zip(self.codes, self.names, strict=True))
        for number, (text, code) in enumerate(read(self.pairs, bad), start=1):
            if code not in names:
                raise UserError(
                    f"{self.pairs.describe()}: text {number} has the class {code!r}, expected one of "
                    f"{', '.join(self.codes)}. Add it to `codes`, or mend the file."
                )
            yield text, names[code]


@dataclass(frozen=True)
class MiniLangOpinions(PairSource):
    """Sentences of the built-in corpus with the speaker's opinion: OPINIONS."""

    split: Literal["train", "valid", "test"] = "train"
    count: int = 20_000
    seed: int = 0
    language: Language = "es"

    def describe(self) -> str:
        return f"opinions of {MiniLang(self.split, self.count, self.seed).describe()}, of the {_name(self.language)}"

    def read(self, bad: BadLines) -> Iterator[Pair]:
        for sentence in MiniLang(self.split, self.count, self.seed).sentences():
            bad.kept += 1
            yield _text(sentence, self.language), sentence.opinion


@dataclass(frozen=True)
class MiniLangMinimalPairs(PairSource):
    """Twin sentences of the same words, first the praise and then the blame: no bag of words can tell them apart.

    `count` is that of the sentences, two a twin pair. The bag of words decides the split (see `minilang.split_of`), so
    that twins are never divided between two, and no twins of one are in another.
    """

    split: Literal["train", "valid", "test"] = "train"
    count: int = 2000
    seed: int = 0
    language: Language = "es"

    def describe(self) -> str:
        return f"minilang, {self.split}: {self.count:,} sentences in minimal pairs, {_name(self.language)}"

    def read(self, bad: BadLines) -> Iterator[Pair]:
        for twins in minimal_pairs(self.split, self.count // 2, self.seed, self.language):
            for sentence in twins:
                bad.kept += 1
                yield _text(sentence, self.language), sentence.opinion


@dataclass(frozen=True)
class MiniLangTags(PairSource):
    """Sentences of the built-in corpus with the universal part of speech of each word."""

    split: Literal["train", "valid", "test"] = "train"
    count: int = 20_000
    seed: int = 0
    language: Language = "es"

    def describe(self) -> str:
        return f"tags of {MiniLang(self.split, self.count, self.seed).describe()}, of the {_name(self.language)}"

    def read(self, bad: BadLines) -> Iterator[Pair]:
        for sentence in MiniLang(self.split, self.count, self.seed).sentences():
            tags = sentence.tags_english if self.language == "en" else sentence.tags_spanish
            bad.kept += 1
            yield _text(sentence, self.language), " ".join(tags)


def _text(sentence: Sentence, language: Language) -> str:
    return sentence.english if language == "en" else sentence.spanish


def _name(language: Language) -> str:
    if language not in ("en", "es"):
        raise UserError(f"language {language!r}: minilang has 'en' and 'es', choose one of them")
    return {"en": "English", "es": "Spanish"}[language]

"""Labelled sources from the built-in corpus: sentiment, minimal pairs and part-of-speech tags."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxlm.data.files import ReadStats
from jaxlm.data.minilang.corpus import MiniLang, Sentence, minimal_pairs
from jaxlm.data.sources.base import Pair, PairSource
from jaxlm.errors import UserError

MiniLangLanguage = Literal["en", "es"]


@dataclass(frozen=True)
class MiniLangSentiment(PairSource):
    """Sentences of the built-in corpus with the speaker's opinion: OPINIONS."""

    split: Literal["train", "valid", "test"] = "train"
    count: int = 20_000
    seed: int = 0
    language: MiniLangLanguage = "es"

    def describe(self) -> str:
        corpus = MiniLang(self.split, self.count, self.seed)
        return f"opinions of {corpus.describe()}, of the {_language_name(self.language)}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for sentence in MiniLang(self.split, self.count, self.seed).sentences():
            stats.kept += 1
            yield _sentence_text(sentence, self.language), sentence.sentiment


@dataclass(frozen=True)
class MiniLangMinimalPairs(PairSource):
    """Twin sentences of the same words, first the praise and then the blame: no bag of words can tell them apart.

    `count` is that of the sentences, two a twin pair. The bag of words decides the split (see
    `minilang.assign_split`), so that twins are never divided between two, and no twins of one are in another.
    """

    split: Literal["train", "valid", "test"] = "train"
    count: int = 2000
    seed: int = 0
    language: MiniLangLanguage = "es"

    def describe(self) -> str:
        return f"minilang, {self.split}: {self.count:,} sentences in minimal pairs, {_language_name(self.language)}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for twins in minimal_pairs(self.split, self.count // 2, self.seed, self.language):
            for sentence in twins:
                stats.kept += 1
                yield _sentence_text(sentence, self.language), sentence.sentiment


@dataclass(frozen=True)
class MiniLangTags(PairSource):
    """Sentences of the built-in corpus with the universal part of speech of each word."""

    split: Literal["train", "valid", "test"] = "train"
    count: int = 20_000
    seed: int = 0
    language: MiniLangLanguage = "es"

    def describe(self) -> str:
        return (
            f"tags of {MiniLang(self.split, self.count, self.seed).describe()}, of the {_language_name(self.language)}"
        )

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for sentence in MiniLang(self.split, self.count, self.seed).sentences():
            tags = sentence.tags_english if self.language == "en" else sentence.tags_spanish
            stats.kept += 1
            yield _sentence_text(sentence, self.language), " ".join(tags)


def _sentence_text(sentence: Sentence, language: MiniLangLanguage) -> str:
    return sentence.english if language == "en" else sentence.spanish


def _language_name(language: MiniLangLanguage) -> str:
    if language not in ("en", "es"):
        raise UserError(f"language {language!r}: minilang has 'en' and 'es', choose one of them")
    return {"en": "English", "es": "Spanish"}[language]

"""Labeled sources from the built-in corpus: sentiment, minimal pairs, part-of-speech tags and trees."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxlm.data.files import ReadStats
from jaxlm.data.minilang.corpus import MiniLang, Sentence, minimal_pairs
from jaxlm.data.sources.base import Pair, PairSource
from jaxlm.errors import UserError


@dataclass(frozen=True)
class _LabeledSentences(PairSource):
    """Base: `count` sentences of a split in one language, with a label that a subclass defines."""

    split: Literal["train", "valid", "test"] = "train"
    count: int = 20_000
    seed: int = 0
    language: Literal["en", "es"] = "es"

    KIND: ClassVar[str] = "opinions"

    def _sentences(self) -> Iterator[Sentence]:
        return MiniLang(self.split, self.count, self.seed).sentences()

    def _label(self, sentence: Sentence) -> str:
        return sentence.sentiment

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for sentence in self._sentences():
            stats.kept += 1
            yield sentence.english if self.language == "en" else sentence.spanish, self._label(sentence)

    def describe(self) -> str:
        corpus = MiniLang(self.split, self.count, self.seed)
        return f"{self.KIND} of {corpus.describe()}, of the {self._language_name}"

    @property
    def _language_name(self) -> str:
        if self.language not in ("en", "es"):
            raise UserError(f"language {self.language!r}: minilang has 'en' and 'es', choose one of them")
        return {"en": "English", "es": "Spanish"}[self.language]


@dataclass(frozen=True)
class MiniLangSentiment(_LabeledSentences):
    """Sentences with the speaker's sentiment, one of `SENTIMENT_LABELS`."""


@dataclass(frozen=True)
class MiniLangMinimalPairs(_LabeledSentences):
    """Pairs of sentences with the same words, the positive one first: a bag of words cannot distinguish them.

    `count` is the number of sentences, two a pair. Both of a pair are in one split (see `assign_split`).
    """

    count: int = 2000

    def describe(self) -> str:
        return f"minilang, {self.split}: {self.count:,} sentences in minimal pairs, {self._language_name}"

    def _sentences(self) -> Iterator[Sentence]:
        for pair in minimal_pairs(self.split, self.count // 2, self.seed, self.language):
            yield from pair


@dataclass(frozen=True)
class MiniLangTags(_LabeledSentences):
    """Sentences with the universal part of speech of each word."""

    KIND = "tags"

    def _label(self, sentence: Sentence) -> str:
        return " ".join(sentence.tags_english if self.language == "en" else sentence.tags_spanish)


@dataclass(frozen=True)
class MiniLangTrees(_LabeledSentences):
    """Sentences with their constituency trees in Penn brackets."""

    KIND = "trees"

    def _label(self, sentence: Sentence) -> str:
        return sentence.tree_english if self.language == "en" else sentence.tree_spanish

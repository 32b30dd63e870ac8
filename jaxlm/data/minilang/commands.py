"""Texts and commands of the built-in corpus, for pre-training and instruction tuning whose answers can be checked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxlm.data.chat.dialogue import Dialogue, Turn
from jaxlm.data.files import ReadStats
from jaxlm.data.minilang.corpus import MiniLang
from jaxlm.data.sources.base import Source
from jaxlm.data.sources.text import TextSource

SENTIMENTS = {"P": "positive", "N": "negative", "NEU": "neutral"}


@dataclass(frozen=True)
class MiniLangTexts(TextSource):
    """Sentences of minilang in both languages, one after the other, or in English alone."""

    split: Literal["train", "valid", "test"]
    count: int
    english_only: bool = False

    def describe(self) -> str:
        return MiniLang(self.split, self.count).describe()

    def read(self, stats: ReadStats) -> Iterator[str]:
        for english, spanish in MiniLang(self.split, self.count).read(stats):
            yield english if self.english_only else f"{english}\n{spanish}"


@dataclass(frozen=True)
class MiniLangCommands(Source[Dialogue]):
    """A command about each sentence, in turn: its sentiment, its number of words, its tags, or a JSON record."""

    split: Literal["train", "valid", "test"]
    count: int

    def describe(self) -> str:
        return f"commands about {MiniLang(self.split, self.count).describe()}"

    def read(self, stats: ReadStats) -> Iterator[Dialogue]:
        for number, sentence in enumerate(MiniLang(self.split, self.count).sentences()):
            words, sentiment = sentence.english.split(), SENTIMENTS[sentence.sentiment]
            tagged = " ".join(f"{word}/{tag}" for word, tag in zip(words, sentence.tags_english, strict=True))
            command, answer = (
                ("Say its sentiment", sentiment),
                ("Count its words", str(len(words))),
                ("Tag its words", tagged),
                ("Describe it as JSON", json.dumps({"words": len(words), "sentiment": sentiment})),
            )[number % 4]
            stats.kept += 1
            yield Dialogue((Turn("user", f"{command}: {sentence.english}"), Turn("assistant", answer)))

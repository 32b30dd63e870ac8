"""A tokenizer of words that also spells them: unknown words still have characters (Ling et al. 2015, Ma and Hovy 2016).

A word has one id, and besides a row of ids of characters. Characters have ids of their own, from SPECIALS on.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from jaxlm.data.symbols import UNKNOWN_WORD, most_frequent
from jaxlm.data.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, StoredTokenizer, require_list

LONGEST = 16
"""Characters of a word: of a longer one its first and last LONGEST / 2, since endings tell most."""


@dataclass(frozen=True)
class SpelledWords:
    """The most frequent words between white space, and the characters of them all.

    Attributes:
      size: ids of words, the special ones included; a small corpus gives fewer.
      characters: ids of characters, the special ones included; likewise.
      lowercase: fold the words, not their characters: "The" and "the" are one word, spelt in two ways.
      least: how often a word must occur to get an id.
    """

    size: int = 30_000
    characters: int = 200
    lowercase: bool = False
    least: int = 1

    def fit(self, texts: Iterable[str]) -> "SpelledWordTokenizer":
        """Words, or characters, of equal frequency are taken in code point order. Raises UserError without a text."""
        words: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        for text in texts:
            found = text.split()
            words.update(word.lower() if self.lowercase else word for word in found)
            characters.update("".join(found))
        words.pop(UNKNOWN_WORD, None)
        words = Counter({word: count for word, count in words.items() if count >= self.least})
        symbols = most_frequent(words, self.size)
        return SpelledWordTokenizer(symbols, "".join(most_frequent(characters, self.characters)), self.lowercase)


@dataclass(frozen=True)
class SpelledWordTokenizer(StoredTokenizer):
    """`encode` gives an id a word and `spell` the characters of each. Other words are UNK, which decodes to `<unk>`."""

    symbols: tuple[str, ...]
    alphabet: str
    lowercase: bool
    kind: ClassVar[str] = "spelled words"
    file: ClassVar[str] = "spelled_words.json"

    @property
    def size(self) -> int:
        return SPECIALS + len(self.symbols)

    @property
    def characters(self) -> int:
        """The number of ids of characters, the special ones included."""
        return SPECIALS + len(self.alphabet)

    @functools.cached_property
    def _id_of_word(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.symbols, start=SPECIALS)}

    @functools.cached_property
    def _id_of_character(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.alphabet, start=SPECIALS)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        lookup = self._id_of_word.get
        fold = str.lower if self.lowercase else str
        return [np.array([lookup(fold(word), UNK) for word in text.split()], np.int32) for text in require_list(texts)]

    def spell(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The int32 ids of the characters of each word of all texts, one after the other: in step with `encode`."""
        spelled: dict[str, np.ndarray] = {}
        words = [word for text in require_list(texts) for word in text.split()]
        for word in words:
            if word not in spelled:
                spelled[word] = np.array([self._id_of_character.get(c, UNK) for c in elide(word)], np.int32)
        return [spelled[word] for word in words]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        words = ("", UNKNOWN_WORD, "", "", *self.symbols)
        return [
            " ".join(words[i] if 0 <= i < self.size else UNKNOWN_WORD for i in row if i not in (PAD, BOS, EOS))
            for row in rows
        ]

    def content(self) -> bytes:
        return json.dumps({"words": self.symbols, "characters": self.alphabet, "lowercase": self.lowercase}).encode()

    @classmethod
    def from_content(cls, content: bytes) -> Self:
        stored = json.loads(content)
        return cls(tuple(stored["words"]), stored["characters"], stored["lowercase"])


def elide(word: str) -> str:
    """The word, or the beginning and the end of one longer than LONGEST."""
    return word if len(word) <= LONGEST else word[: LONGEST // 2] + word[-LONGEST // 2 :]

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

from jaxlm.data.tokenizers.base import BOS, EOS, NUM_SPECIALS, PAD, UNK, TrainedTokenizer, require_list
from jaxlm.data.tokenizers.simple import UNKNOWN_WORD, most_frequent_symbols

MAX_WORD_CHARS = 16
"""Characters of a word: of a longer one its first and last LONGEST / 2, since endings tell most."""


@dataclass(frozen=True)
class WordsWithChars:
    """The most frequent words between white space, and the characters of them all.

    Attributes:
      size: ids of words, the special ones included; a small corpus gives fewer.
      characters: ids of characters, the special ones included; likewise.
      lowercase: fold the words, not their characters: "The" and "the" are one word, spelt in two ways.
      least: how often a word must occur to get an id.
    """

    vocab_size: int = 30_000
    char_vocab_size: int = 200
    lowercase: bool = False
    min_count: int = 1

    def fit(self, texts: Iterable[str]) -> "WordCharTokenizer":
        """Words, or characters, of equal frequency are taken in code point order. Raises UserError without a text."""
        words: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        for text in texts:
            found = text.split()
            words.update(word.lower() if self.lowercase else word for word in found)
            characters.update("".join(found))
        words.pop(UNKNOWN_WORD, None)
        words = Counter({word: count for word, count in words.items() if count >= self.min_count})
        symbols = most_frequent_symbols(words, self.vocab_size)
        return WordCharTokenizer(
            symbols, "".join(most_frequent_symbols(characters, self.char_vocab_size)), self.lowercase
        )


@dataclass(frozen=True)
class WordCharTokenizer(TrainedTokenizer):
    """`encode` gives an id a word and `spell` the characters of each. Other words are UNK, which decodes to `<unk>`."""

    symbols: tuple[str, ...]
    alphabet: str
    lowercase: bool
    kind: ClassVar[str] = "spelled words"
    filename: ClassVar[str] = "spelled_words.json"

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIALS + len(self.symbols)

    @property
    def char_vocab_size(self) -> int:
        """The number of ids of characters, the special ones included."""
        return NUM_SPECIALS + len(self.alphabet)

    @functools.cached_property
    def _word_to_id(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.symbols, start=NUM_SPECIALS)}

    @functools.cached_property
    def _char_to_id(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.alphabet, start=NUM_SPECIALS)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        lookup = self._word_to_id.get
        fold = str.lower if self.lowercase else str
        return [np.array([lookup(fold(word), UNK) for word in text.split()], np.int32) for text in require_list(texts)]

    def encode_chars(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The int32 ids of the characters of each word of all texts, one after the other: in step with `encode`."""
        spelled: dict[str, np.ndarray] = {}
        words = [word for text in require_list(texts) for word in text.split()]
        for word in words:
            if word not in spelled:
                spelled[word] = np.array([self._char_to_id.get(c, UNK) for c in truncate_word(word)], np.int32)
        return [spelled[word] for word in words]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        words = ("", UNKNOWN_WORD, "", "", *self.symbols)
        return [
            " ".join(words[i] if 0 <= i < self.vocab_size else UNKNOWN_WORD for i in row if i not in (PAD, BOS, EOS))
            for row in rows
        ]

    def to_bytes(self) -> bytes:
        return json.dumps({"words": self.symbols, "characters": self.alphabet, "lowercase": self.lowercase}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = json.loads(content)
        return cls(tuple(stored["words"]), stored["characters"], stored["lowercase"])


def truncate_word(word: str) -> str:
    """The word, or the beginning and the end of one longer than LONGEST."""
    return word if len(word) <= MAX_WORD_CHARS else word[: MAX_WORD_CHARS // 2] + word[-MAX_WORD_CHARS // 2 :]

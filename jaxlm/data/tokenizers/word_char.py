"""A tokenizer of words that also spells them: unknown words still have characters (Ling et al. 2015, Ma and Hovy 2016).

A word has one id and a row of character ids, which are numbered apart, from 4 on.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from jaxlm.data.tokenizers.base import NUM_SPECIALS, UNK, require_list
from jaxlm.data.tokenizers.simple import UNKNOWN_WORD, WordTokenizer, most_frequent_symbols

MAX_WORD_CHARS = 16
"""Characters of a word; of a longer one the first and the last half as many, since endings carry most information."""


@dataclass(frozen=True)
class WordsWithChars:
    """The configuration of the most frequent words between white space and of the characters of all words.

    Attributes:
      vocab_size: ids of words, special ids included; a small corpus gives fewer.
      char_vocab_size: ids of characters, special ids included; likewise.
      lowercase: fold the words, not their characters: "The" and "the" are one word with two spellings.
      min_count: the occurrences that a word needs to get an id.
    """

    vocab_size: int = 30_000
    char_vocab_size: int = 200
    lowercase: bool = False
    min_count: int = 1

    def fit(self, texts: Iterable[str]) -> "WordCharTokenizer":
        """Count words and characters; code points break ties. Raises UserError if there is no text."""
        words: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        for text in texts:
            words.update((text.lower() if self.lowercase else text).split())
            characters.update("".join(text.split()))
        words.pop(UNKNOWN_WORD, None)
        words = Counter({word: count for word, count in words.items() if count >= self.min_count})
        symbols = most_frequent_symbols(words, self.vocab_size)
        alphabet = "".join(most_frequent_symbols(characters, self.char_vocab_size))
        return WordCharTokenizer(symbols, alphabet, self.lowercase)


@dataclass(frozen=True)
class WordCharTokenizer(WordTokenizer):
    """`encode` gives one id per word, `encode_chars` the ids of its characters."""

    alphabet: str
    lowercase: bool
    kind: ClassVar[str] = "spelled words"
    filename: ClassVar[str] = "spelled_words.json"

    @property
    def char_vocab_size(self) -> int:
        """The number of character ids, special ids included."""
        return NUM_SPECIALS + len(self.alphabet)

    @functools.cached_property
    def _char_to_id(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.alphabet, start=NUM_SPECIALS)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = require_list(texts)
        return super().encode([text.lower() for text in texts] if self.lowercase else texts)

    def encode_chars(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The int32 character ids of each word of all texts in a row: as many arrays as `encode` gives ids."""
        spelled: dict[str, np.ndarray] = {}
        words = [word for text in require_list(texts) for word in text.split()]
        for word in words:
            if word not in spelled:
                spelled[word] = np.array([self._char_to_id.get(c, UNK) for c in truncate_word(word)], np.int32)
        return [spelled[word] for word in words]

    def to_bytes(self) -> bytes:
        return json.dumps({"words": self.symbols, "characters": self.alphabet, "lowercase": self.lowercase}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = json.loads(content)
        return cls(tuple(stored["words"]), stored["characters"], stored["lowercase"])


def truncate_word(word: str) -> str:
    """The word, or the beginning and the end of one that is longer than MAX_WORD_CHARS."""
    return word if len(word) <= MAX_WORD_CHARS else word[: MAX_WORD_CHARS // 2] + word[-MAX_WORD_CHARS // 2 :]

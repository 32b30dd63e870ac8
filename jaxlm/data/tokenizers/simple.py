"""Tokenizers without subwords: UTF-8 bytes, characters, words between white space, and words that are also spelled.

Unknown words still have characters (Ling et al. 2015, Ma and Hovy 2016).
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypedDict

import numpy as np

from jaxlm.data.tokenizers.base import (
    NUM_SPECIALS,
    REPLACEMENT_CHAR,
    UNK,
    TrainedTokenizer,
    parse_content,
    require_list,
)
from jaxlm.errors import UserError

UNKNOWN_WORD = "<unk>"

NUM_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Bytes:
    """The configuration of UTF-8 bytes: id = byte + 4. There is nothing to train and no unknown text."""

    def fit(self, texts: Iterable[str] = ()) -> "ByteTokenizer":
        """Return the tokenizer; `texts` are not read."""
        return ByteTokenizer()


@dataclass(frozen=True)
class ByteTokenizer(TrainedTokenizer):
    """260 ids. Invalid UTF-8 decodes to U+FFFD; lone surrogates, which UTF-8 cannot encode, become '?'."""

    kind: ClassVar[str] = "bytes"
    filename: ClassVar[str] = "bytes.txt"

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIALS + 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = (text.encode(errors="replace") for text in require_list(texts))
        return [np.frombuffer(utf8, np.uint8).astype(np.int32) + NUM_SPECIALS for utf8 in encoded]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        byte_rows = (np.asarray(row, np.int64) - NUM_SPECIALS for row in rows)
        kept = (values[(values >= 0) & (values < 256)].astype(np.uint8) for values in byte_rows)
        return [values.tobytes().decode(errors="replace") for values in kept]

    def to_bytes(self) -> bytes:
        return b"UTF-8 bytes, id = byte + 4\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        return cls()


@dataclass(frozen=True)
class SymbolTokenizer(TrainedTokenizer):
    """Base of the tokenizers with one id for each of `symbols`, from 4 on, and UNK for all others."""

    symbols: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIALS + len(self.symbols)

    def to_bytes(self) -> bytes:
        return json.dumps(self.symbols).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        return cls(tuple(parse_content(content, cls.filename, list[str])))


@dataclass(frozen=True)
class Characters:
    """The configuration of characters: those of the training texts, or the most frequent `vocab_size` - 4 of them."""

    vocab_size: int | None = None

    def fit(self, texts: Iterable[str]) -> "CharacterTokenizer":
        """Count the characters. Raises UserError if there is no text."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        return CharacterTokenizer(most_frequent_symbols(counts, self.vocab_size))


@dataclass(frozen=True)
class CharacterTokenizer(SymbolTokenizer):
    """One id per code point, ordered by frequency. UNK decodes to U+FFFD."""

    kind: ClassVar[str] = "characters"
    filename: ClassVar[str] = "characters.json"

    def __post_init__(self) -> None:
        if any(len(symbol) != 1 for symbol in self.symbols):
            raise UserError("a vocabulary of characters holds a symbol that is not one character")

    @functools.cached_property
    def _id_to_code_point(self) -> np.ndarray:
        return np.array([ord(REPLACEMENT_CHAR)] * NUM_SPECIALS + [ord(symbol) for symbol in self.symbols], np.uint32)

    @functools.cached_property
    def _code_point_to_id(self) -> np.ndarray:
        table = np.full(NUM_CODE_POINTS, UNK, np.int32)
        table[self._id_to_code_point[NUM_SPECIALS:]] = np.arange(NUM_SPECIALS, self.vocab_size)
        return table

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        utf32 = (text.encode("utf-32-le", "surrogatepass") for text in require_list(texts))
        return [self._code_point_to_id[np.frombuffer(code_points, np.uint32)] for code_points in utf32]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        texts = []
        for row in rows:
            ids = np.asarray(row, np.int64)
            ids = ids[~np.isin(ids, list(self.special.hidden))]
            ids = np.where((ids >= 0) & (ids < self.vocab_size), ids, UNK)
            texts.append(self._id_to_code_point[ids].tobytes().decode("utf-32-le", "surrogatepass"))
        return texts


@dataclass(frozen=True)
class Words:
    """The configuration of words between white space: ids for the most frequent `vocab_size` - 4 words at most."""

    vocab_size: int = 30000

    def fit(self, texts: Iterable[str]) -> "WordTokenizer":
        """Count the words; code points break ties. Raises UserError if there is no text."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text.split())
        counts.pop(UNKNOWN_WORD, None)
        return WordTokenizer(most_frequent_symbols(counts, self.vocab_size))


@dataclass(frozen=True)
class WordTokenizer(SymbolTokenizer):
    """One id per word. UNK, also the id of the word `<unk>` itself, decodes to `<unk>`.

    Decoding joins words by single spaces: other white space is lost. White space inside a word of the vocabulary (a
    no-break space in a word of an ARPA file) separates no words.
    """

    kind: ClassVar[str] = "words"
    filename: ClassVar[str] = "words.json"

    @functools.cached_property
    def _word_to_id(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.symbols, start=NUM_SPECIALS)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        lookup = self._word_to_id.get
        split: Callable[[str], list[str]] = str.split
        if inner := "".join({character for character in "".join(self.symbols) if character.isspace()}):
            split = re.compile(rf"[\S{inner}]+").findall
        return [np.array([lookup(word, UNK) for word in split(text)], np.int32) for text in require_list(texts)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        words = ("", UNKNOWN_WORD, "", "", *self.symbols)
        size, hidden = self.vocab_size, self.special.hidden
        return [
            " ".join(words[index] if 0 <= index < size else UNKNOWN_WORD for index in row if index not in hidden)
            for row in rows
        ]


def most_frequent_symbols(counts: Counter[str], vocab_size: int | None) -> tuple[str, ...]:
    """The `vocab_size` - 4 most frequent symbols (None: all), by falling frequency and then by code points."""
    if not counts:
        raise UserError("there is no text to learn a vocabulary from: the corpus is empty or blank")
    if vocab_size is not None and vocab_size <= NUM_SPECIALS:
        raise UserError(f"a vocabulary of {vocab_size} ids: expected more than the {NUM_SPECIALS} special ones")
    ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    return tuple(ranked if vocab_size is None else ranked[: vocab_size - NUM_SPECIALS])


MAX_WORD_CHARS = 16
"""Characters of a word; of a longer one the first and the last half as many, since endings carry most information."""


@dataclass(frozen=True)
class WordsWithChars:
    """The configuration of the most frequent words and of the characters of all words (Ling et al. 2015).

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


class _StoredWords(TypedDict):
    words: list[str]
    characters: str
    lowercase: bool


@dataclass(frozen=True)
class WordCharTokenizer(WordTokenizer):
    """One id per word by `encode`, and a row of character ids, numbered apart from 4 on, by `encode_chars`."""

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
        stored = parse_content(content, cls.filename, _StoredWords)
        return cls(tuple(stored["words"]), stored["characters"], stored["lowercase"])


def truncate_word(word: str) -> str:
    """The word, or the beginning and the end of one that is longer than MAX_WORD_CHARS."""
    return word if len(word) <= MAX_WORD_CHARS else word[: MAX_WORD_CHARS // 2] + word[-MAX_WORD_CHARS // 2 :]

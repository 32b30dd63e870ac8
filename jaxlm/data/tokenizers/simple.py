"""Tokenizers without subwords: UTF-8 bytes, characters, and words between white space."""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from jaxlm.data.tokenizers.base import (
    BOS,
    EOS,
    NUM_SPECIALS,
    PAD,
    REPLACEMENT_CHAR,
    UNK,
    TrainedTokenizer,
    require_list,
)  # fmt: skip
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
        return [_ids_to_bytes(np.asarray(row, np.int64)).decode(errors="replace") for row in rows]

    def to_bytes(self) -> bytes:
        return b"UTF-8 bytes, id = byte + 4\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        return cls()


def _ids_to_bytes(ids: np.ndarray) -> bytes:
    return (ids[(ids >= NUM_SPECIALS) & (ids < NUM_SPECIALS + 256)] - NUM_SPECIALS).astype(np.uint8).tobytes()


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
        return cls(tuple(json.loads(content)))


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
            ids = ids[(ids != PAD) & (ids != BOS) & (ids != EOS)]
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
        size, hidden = self.vocab_size, (PAD, BOS, EOS)
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

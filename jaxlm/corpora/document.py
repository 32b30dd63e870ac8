"""A document on its way through the steps of a corpus: its text, and what several rules need of it, computed once."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

WORD = re.compile(r"\w+")
DIGITS = re.compile(r"\d+")
MAX_CACHED_WORDS = 1 << 20
NGRAM_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that the product modulo 2^64 loses no bit."""


class Drop(NamedTuple):
    """The decision against a document: the rule that failed, and the figure that decided."""

    reason: str
    figure: float | str


@dataclass(frozen=True, eq=False)
class Document:
    """A text with its origin.

    Attributes:
      id: BLAKE2b-128, in hexadecimal, of the source's name and the record's own key (or its file and ordinal), never
        of the text, which the steps change.
      source: the name of its source.
      meta: what the record tells about itself (place, url, license, date), and what the steps found out (language,
        masked: the number of masks of each kind).
    """

    id: str
    text: str
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def words(self) -> list[str]:
        """The words between white space, which the rules of Gopher count."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, stripped."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def tokens(self) -> list[str]:
        r"""The words `\w+` in lower case, for repetitions."""
        return WORD.findall(self.text.lower())

    @cached_property
    def normal_words(self) -> list[str]:
        """The words of the normal form: lower case, no marks (NFD), a run of digits as 0, no punctuation."""
        text = self.text.lower()
        if not text.isascii():
            text = unicodedata.normalize("NFD", text)
        return DIGITS.sub("0", text.translate(_NORMAL)).split()

    @cached_property
    def digest(self) -> bytes:
        """BLAKE2b-128 of the normal form."""
        return hashlib.blake2b(" ".join(self.normal_words).encode(), digest_size=16).digest()


class _NormalForm(dict):
    """Code point -> its place in the normal form: itself, a space, or nothing."""

    def __missing__(self, code: int) -> str | None:
        is_mark = unicodedata.category(chr(code)).startswith("M")
        self[code] = value = None if is_mark else chr(code) if chr(code).isalnum() else " "
        return value


class _WordHashes(dict):
    """Word -> 64 bits, the same in every process, with every seed of Python's own hashes."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_CACHED_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_NORMAL, _HASHES = _NormalForm(), _WordHashes()


def hash_words(words: list[str]) -> np.ndarray:
    """uint64[words]: a hash of each word."""
    return np.fromiter(map(_HASHES.__getitem__, words), np.uint64, len(words))


def extend_ngrams(ngram_N: np.ndarray, hash_W: np.ndarray) -> np.ndarray:
    """The hashes of the (n + 1)-grams at each place, from those of the n-grams and of the words."""
    length = len(hash_W) - len(ngram_N) + 1
    return ngram_N[:-1] * NGRAM_FACTOR + hash_W[length:]


def hash_ngrams(words: list[str], n: int) -> np.ndarray:
    """uint64[words - n + 1]: a hash of the n-gram at each place; of shorter texts, of the whole text."""
    hash_W = hash_words(words)
    ngram_N = hash_W
    for _ in range(min(n, len(words)) - 1):
        ngram_N = extend_ngrams(ngram_N, hash_W)
    return mix(ngram_N)


def mix(hash_N: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits that spreads every bit over all others (the finalizer of SplitMix64)."""
    hash_N = (hash_N ^ (hash_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hash_N = (hash_N ^ (hash_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hash_N ^ (hash_N >> np.uint64(31))

"""A small built-in English-Spanish corpus from a synchronous grammar: nothing to download.

`MiniLang` is a source of pairs; `MiniLang().sentences()`, `minimal_pairs` and `analyze` also give trees, tags and
sentiment. Sentences are sampled with `random.Random(seed).random`, whose numbers Python keeps stable, so they are the
same on every machine. Sentences with the same English are the same. A hash of the sentence decides its split.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from jaxlm import runtime
from jaxlm.data.files import ReadStats
from jaxlm.data.minilang.grammar import ENGLISH, SPANISH, Derivation
from jaxlm.data.minilang.lexicon import LEMMAS
from jaxlm.data.minilang.rules import UPOS_ENGLISH, UPOS_SPANISH, minilang_grammar
from jaxlm.data.sources.base import Pair, PairSource
from jaxlm.errors import UserError

SPLIT_PERCENT = {"train": 80, "valid": 10, "test": 10}

SPLIT_SALT = 108
"""The smallest number that puts EXAMPLE_SENTENCES into the test split."""

# The sentences of a course on sequence models, the first ones of the test split.
EXAMPLE_SENTENCES = (
    "the green witch arrived",
    "John did not see the film that I liked",
    "John saw the film that I did not like",
)


@dataclass(frozen=True)
class Sentence:
    """A sentence pair with its annotation. The leaves of a tree are the words of the sentence, in order.

    The tags are universal parts of speech, one a word. `sentiment` is the speaker's: "P" positive, "N" negative, "NEU"
    neutral or balanced.
    """

    english: str
    spanish: str
    tree_english: str
    tree_spanish: str
    tags_english: tuple[str, ...]
    tags_spanish: tuple[str, ...]
    sentiment: str


@dataclass(frozen=True)
class MiniLang(PairSource):
    """Distinct pairs of one split, as (source, target) tuples; `sentences()` gives them as `Sentence`s.

    The first `k` pairs are the same for every `count >= k`. Each sentence has one translation, in both directions.
    Raises UserError for an unknown split or source, and for a count that the split does not hold.
    """

    split: Literal["train", "valid", "test"] = "train"
    count: int = 20_000
    seed: int = 0
    source: Literal["en", "es"] = "en"

    def __post_init__(self) -> None:
        if self.source not in ("en", "es"):
            raise UserError(f"MiniLang(source={self.source!r}): the language has 'en' and 'es', choose one of them")
        if self.count < 0 or self.count > split_size(self.split):
            raise UserError(f"MiniLang(split={self.split!r}, count={self.count}): the split holds "
                            f"{split_size(self.split)} pairs, set a count from 0 to this number")  # fmt: skip

    def __len__(self) -> int:
        return self.count

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for pair in self._pairs():
            stats.kept += 1
            yield pair if self.source == "en" else pair[::-1]

    def _pairs(self) -> Iterator[Pair]:
        """The pairs (English, Spanish): they are sampled once, and kept with the compiled programs."""
        folder = runtime.cache_folder()
        path = folder and folder / f"minilang-{self.split}-{self.count}-{self.seed}-{_source_digest()}"
        if path and (kept := runtime.read_checked(path)) is not None:
            for line in kept.decode().splitlines():
                english, spanish = line.split("\t")
                yield english, spanish
            return
        pairs = []
        for derivation, english in self._sample_distinct():
            words = f" {' '.join(derivation.words[SPANISH].split())} "
            spanish = words.replace(" a el ", " al ").replace(" de el ", " del ")[1:-1]  # contractions
            pairs.append((english, spanish))
            yield pairs[-1]
        if path:
            runtime.write_checked(path, "\n".join(map("\t".join, pairs)).encode())

    def sentences(self) -> Iterator[Sentence]:
        for derivation, _ in self._sample_distinct():
            yield _to_sentence(derivation)

    def describe(self) -> str:
        direction = "English to Spanish" if self.source == "en" else "Spanish to English"
        total = minilang_grammar().count_derivations()
        return f"minilang, {self.split}: {self.count:,} of {total:,} sentences, {direction}, seed {self.seed}"

    def _sample_distinct(self) -> Iterator[tuple[Derivation, str]]:
        seen: set[str] = set()
        for derivation, english in _sample_derivations(self.split, self.seed):
            if len(seen) == self.count:
                return
            if english not in seen:
                seen.add(english)
                yield derivation, english


def split_size(split: str) -> int:
    """The pairs of a split: its share of the exact number of sentences, as the hash distributes them."""
    if split not in SPLIT_PERCENT:
        raise UserError(f"minilang has no split {split!r}, choose one of {', '.join(SPLIT_PERCENT)}")
    return minilang_grammar().count_derivations() * SPLIT_PERCENT[split] // 100


@functools.cache
def _source_digest() -> str:
    """A digest of the code that samples: other code may give other pairs."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def assign_split(english: str, salt: int = SPLIT_SALT) -> str:
    """The split of a sentence: "train", "valid" or "test".

    Sentences that differ only in tense, word order or the place of "not" are in the same split: the hash is of the bag
    of words, with verbs reduced to their base form and without "do".
    """
    bag = sorted(LEMMAS.get(word, word) for word in english.split())
    digest = hashlib.sha256(f"minilang {salt} {' '.join(filter(None, bag))}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    if place < SPLIT_PERCENT["test"]:
        return "test"
    return "valid" if place < SPLIT_PERCENT["test"] + SPLIT_PERCENT["valid"] else "train"


def analyze(english: str) -> Sentence:
    """The annotation of an English sentence. Raises UserError if the sentence is not in the language."""
    derivations = minilang_grammar().parse(["a" if word == "an" else word for word in english.split()])
    if not derivations or _format_english(derivations[0].words[ENGLISH]) != " ".join(english.split()):
        raise UserError(f"{english!r} is not a sentence of minilang; one that is: {EXAMPLE_SENTENCES[0]!r}")
    return _to_sentence(derivations[0])


def minimal_pairs(
    split: str = "test", count: int = 1000, seed: int = 0, language: Literal["en", "es", "both"] = "es"
) -> Iterator[tuple[Sentence, Sentence]]:
    """Pairs of sentences with the same words and opposite sentiment, (positive, negative), no sentence twice.

    They differ only in the place of the negation, so that a bag of words cannot distinguish them. `language` is that
    in which the words must be the same: in English a negation mostly moves together with "do" and changes the form of
    the verb ("saw", "did not see"), so that fewer pairs qualify.
    """
    sides = {"en": (ENGLISH,), "es": (SPANISH,), "both": (ENGLISH, SPANISH)}
    if language not in sides:
        raise UserError(f"minimal_pairs(language={language!r}): choose one of {', '.join(sides)}")
    split_size(split)  # raises for an unknown split
    seen: set[str] = set()
    for derivation, english in _sample_derivations(split, seed):
        if len(seen) == 2 * count:
            return
        for other in minilang_grammar().move_negation(derivation):
            pair = (derivation, other) if derivation.sentiment() > 0 else (other, derivation)
            other_english = _format_english(other.words[ENGLISH])
            if pair[0].sentiment() <= 0 or pair[1].sentiment() >= 0 or {english, other_english} & seen:
                continue
            if all(sorted(derivation.words[s].split()) == sorted(other.words[s].split()) for s in sides[language]):
                seen |= {english, other_english}
                yield _to_sentence(pair[0]), _to_sentence(pair[1])
                break


def _sample_derivations(split: str, seed: int) -> Iterator[tuple[Derivation, str]]:
    """Endless random derivations of a split, with repetitions."""
    grammar = minilang_grammar()
    for english in EXAMPLE_SENTENCES:
        if assign_split(english) == split:
            yield grammar.parse(english.split())[0], english
    draw = Random(seed).random
    while True:
        derivation = grammar.sample(grammar.start, draw)
        english = _format_english(derivation.words[ENGLISH])
        if assign_split(english) == split:
            yield derivation, english


def _format_english(text: str) -> str:
    """Single spaces, and "an" before a vowel."""
    text = " ".join(text.split())
    return re.sub(r"\ba (?=[aeiou])", "an ", text) if "a " in text else text


def _to_sentence(derivation: Derivation) -> Sentence:
    # without the spaces of dropped words
    tree_english, tree_spanish = (re.sub(r" +(?=[ )])", "", derivation.tree(side)).strip() for side in (0, 1))
    tree_english = re.sub(r"\(D a\)(?= \([A-Z]+ [aeiou])", "(D an)", tree_english)
    tree_spanish = re.sub(r"\(P (a|de)\) ((?:\(NP )+)\(D el\) ", r"(P \1l) \2", tree_spanish)
    english, spanish = (re.findall(r"\(([A-Z]+) ([^()]+)\)", tree) for tree in (tree_english, tree_spanish))
    value = derivation.sentiment()
    return Sentence(
        english=" ".join(word for _, word in english),
        spanish=" ".join(word for _, word in spanish),
        tree_english=tree_english,
        tree_spanish=tree_spanish,
        tags_english=tuple(UPOS_ENGLISH[label] for label, _ in english),
        tags_spanish=tuple(UPOS_SPANISH[label] for label, _ in spanish),
        sentiment="P" if value > 0 else "N" if value < 0 else "NEU",
    )

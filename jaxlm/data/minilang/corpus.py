"""The built-in parallel corpus: pairs without end, the same on every machine, with trees, tags and opinions.

Sentences are drawn from the grammar with `random.Random(seed).random`, whose numbers Python promises to keep, and
are told apart by their English. Which split a sentence belongs to is a hash of the sentence, not a matter of the draw.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from jaxlm.data.files import ReadStats
from jaxlm.data.minilang.derivation import ENGLISH, SPANISH, Derivation
from jaxlm.data.minilang.lexicon import LEMMAS
from jaxlm.data.minilang.rules import UPOS_ENGLISH, UPOS_SPANISH, minilang_grammar
from jaxlm.data.sources.base import Pair, PairSource
from jaxlm.errors import UserError

SPLIT_PERCENT = {"train": 80, "valid": 10, "test": 10}  # of a hundred

# The smallest number that puts FAMOUS in the test split.
SPLIT_SALT = 108

# The sentences of a course on sequence models: they open the test split.
EXAMPLE_SENTENCES = (
    "the green witch arrived",
    "John did not see the film that I liked",
    "John saw the film that I did not like",
)

_TREE_LEAF = re.compile(r"\(([A-Z]+) ([^()]+)\)")


@dataclass(frozen=True)
class Sentence:
    """A sentence pair and all that its derivation knows. The words of a tree are those of the sentence, in order.

    `tags` are universal parts of speech, one a word. `opinion` is the speaker's: "P" praise, "N" blame, "NEU" neither,
    or as much of the one as of the other.
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
    """Distinct pairs of one split, as (source, target) tuples; `sentences()` gives the same as `Sentence`s.

    The first `k` pairs are the same for every `count >= k`. Each sentence has one translation, in both directions.

    Args:
        split: "train", "valid" or "test".
        count: how many pairs.
        seed: which draw.
        source: the language to translate from, "en" or "es".

    Raises:
        UserError: an unknown split or source, or a count that is negative or more than the split holds.
    """

    split: Literal["train", "valid", "test"] = "train"
    count: int = 20_000
    seed: int = 0
    source: Literal["en", "es"] = "en"

    def __post_init__(self) -> None:
        if self.source not in ("en", "es"):
            raise UserError(f"MiniLang(source={self.source!r}): the language has 'en' and 'es', choose one of them")
        if self.count < 0 or self.count > split_size(self.split):
            found, held = f"MiniLang(split={self.split!r}, count={self.count})", split_size(self.split)
            raise UserError(f"{found}: the split holds {held} pairs, set count between 0 and {held}")

    def __len__(self) -> int:
        return self.count

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for derivation, english in self._sample_distinct():
            stats.kept += 1
            spanish = _format_spanish(derivation.words[SPANISH])
            yield (english, spanish) if self.source == "en" else (spanish, english)

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
    """How many pairs a split holds: its share of the exact number of sentences, as the hash deals them out."""
    if split not in SPLIT_PERCENT:
        raise UserError(f"minilang has no split {split!r}, choose one of {', '.join(SPLIT_PERCENT)}")
    return minilang_grammar().count_derivations() * SPLIT_PERCENT[split] // 100


def assign_split(english: str, salt: int = SPLIT_SALT) -> str:
    """The split of a sentence: "train", "valid" or "test".

    The hash is of the bag of words, with verbs reduced to their base and without "do": sentences which differ only in
    tense, in the order of words or in the place of "not" are never divided between two splits.
    """
    bag = sorted(LEMMAS.get(word, word) for word in english.split())
    digest = hashlib.sha256(f"minilang {salt} {' '.join(filter(None, bag))}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    if place < SPLIT_PERCENT["test"]:
        return "test"
    return "valid" if place < SPLIT_PERCENT["test"] + SPLIT_PERCENT["valid"] else "train"


def analyze(english: str) -> Sentence:
    """The sentence with this English: its translation, trees, tags and opinion.

    Raises:
        UserError: the sentence is not in the language.
    """
    found = minilang_grammar().parse(["a" if word == "an" else word for word in english.split()])
    if not found or _format_english(found[0].words[ENGLISH]) != " ".join(english.split()):
        raise UserError(f"{english!r} is not a sentence of minilang; one that is: {EXAMPLE_SENTENCES[0]!r}")
    return _to_sentence(found[0])


def minimal_pairs(
    split: str = "test", count: int = 1000, seed: int = 0, language: Literal["en", "es", "both"] = "es"
) -> Iterator[tuple[Sentence, Sentence]]:
    """Pairs of sentences with the same words and opposite opinions: (praise, blame), no sentence twice.

    Only the negation has moved from one to the other, so that no bag of words can tell them apart and a chance
    guess is right half the time.

    Args:
        split: that of both sentences.
        count: how many pairs.
        seed: which draw.
        language: where the words must be the same. In English a negation that moves mostly brings its "do" along and
            uncovers another form of the verb ("saw", "did not see"), so that fewer pairs qualify.
    """
    sides = {"en": (ENGLISH,), "es": (SPANISH,), "both": (ENGLISH, SPANISH)}
    if language not in sides:
        raise UserError(f"minimal_pairs(language={language!r}): choose one of {', '.join(sides)}")
    split_size(split)  # an unknown split is refused
    seen: set[str] = set()
    for derivation, english in _sample_derivations(split, seed):
        if len(seen) == 2 * count:
            return
        for other in minilang_grammar().move_negation(derivation):
            pair = (derivation, other) if derivation.sentiment() > 0 else (other, derivation)
            rest = _format_english(other.words[ENGLISH])
            if pair[0].sentiment() <= 0 or pair[1].sentiment() >= 0 or english in seen or rest in seen:
                continue
            if all(_bag_of_words(derivation, side) == _bag_of_words(other, side) for side in sides[language]):
                seen |= {english, rest}
                yield _to_sentence(pair[0]), _to_sentence(pair[1])
                break


def _sample_derivations(split: str, seed: int) -> Iterator[tuple[Derivation, str]]:
    """Derivations of a split without end, some of them more than once."""
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


def _bag_of_words(derivation: Derivation, side: int) -> list[str]:
    return sorted(derivation.words[side].split())


def _format_english(text: str) -> str:
    """Contraction, and the spaces of what was left out: "a old hat" is written "an old hat"."""
    text = " ".join(text.split())
    return re.sub(r"\ba (?=[aeiou])", "an ", text) if "a " in text else text


def _format_spanish(text: str) -> str:
    """The same for Spanish, where `a el` is written `al`, and `de el` is written `del`."""
    text = f" {' '.join(text.split())} "
    return text.replace(" a el ", " al ").replace(" de el ", " del ")[1:-1]


def _to_sentence(derivation: Derivation) -> Sentence:
    tree_english = re.sub(r"\(D a\)(?= \([A-Z]+ [aeiou])", "(D an)", _clean_tree(derivation.tree(ENGLISH)))
    tree_spanish = re.sub(r"\(P (a|de)\) ((?:\(NP )+)\(D el\) ", r"(P \1l) \2", _clean_tree(derivation.tree(SPANISH)))
    english, spanish = _TREE_LEAF.findall(tree_english), _TREE_LEAF.findall(tree_spanish)
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


def _clean_tree(tree: str) -> str:
    """A tree without the spaces that dropped words leave behind."""
    return re.sub(r" +(?=[ )])", "", tree).strip()

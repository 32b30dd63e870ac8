"""Rules that drop documents, each with its published thresholds as fields; those of C4 cut lines too.

A filter lists every rule that a document fails, cheap ones first; the first one is the reason of the decision. A
figure equal to a threshold passes.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxlm.corpora.document import Document, Drop, extend_ngrams, hash_words
from jaxlm.errors import UserError

STOP_WORDS = {
    "en": frozenset("the be to of and that have with".split()),
    "es": frozenset("de la que el en y a los se del".split()),
}
"""Language -> words of which every text has two."""

BULLETS = ("•", "-", "*", "‣", "◦", "●", "▪", "·", "–")
ELLIPSES = ("...", "…")
TERMINAL_PUNCTUATION = tuple(".?!…\"'”’»。！？؟۔।")
SENTENCE_END = re.compile(r"[.!?…。！？](?=[\"'”’»)\]]*(?:\s|$))")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")


class Filter:
    """Base of the steps that drop documents."""

    def failures(self, document: Document) -> Iterator[Drop]:
        """Every rule that the document fails."""
        raise NotImplementedError

    def apply(self, document: Document) -> Document | Drop:
        """The document, or the first rule that it fails."""
        return next(self.failures(document), document)


@dataclass(frozen=True)
class GopherQuality(Filter):
    """The quality rules of Gopher (Rae et al. 2021, A.1.1). Words are those between white space.

    Attributes:
      max_symbols: of `#`, and of ellipses, for each word.
      max_bullets, max_ellipses: shares of the lines that begin with a bullet or end with an ellipsis.
      min_alphabetic: share of the words with a letter.
      min_stop_words: different ones, of the list of the document's language; a language without a list has no such
        rule, which the report shows.
      language: of documents whose language is not known.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    max_symbols: float = 0.1
    max_bullets: float = 0.9
    max_ellipses: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    language: str = "en"

    def failures(self, document: Document) -> Iterator[Drop]:
        words, lines, text = document.words, document.lines, document.text
        if not self.min_words <= len(words) <= self.max_words:
            yield Drop("words", len(words))
        if not words:
            return
        mean_length = sum(map(len, words)) / len(words)
        if not self.min_word_length <= mean_length <= self.max_word_length:
            yield Drop("word length", mean_length)
        if (symbols := text.count("#") / len(words)) > self.max_symbols:
            yield Drop("hash signs", symbols)
        if (ellipses := sum(map(text.count, ELLIPSES)) / len(words)) > self.max_symbols:
            yield Drop("ellipses", ellipses)
        if (bullets := sum(line.startswith(BULLETS) for line in lines) / len(lines)) > self.max_bullets:
            yield Drop("bullets", bullets)
        if (cut := sum(line.endswith(ELLIPSES) for line in lines) / len(lines)) > self.max_ellipses:
            yield Drop("cut lines", cut)
        without = sum(not any(map(str.isalpha, word)) for word in words if not word.isalpha())
        if (letters := (len(words) - without) / len(words)) < self.min_alphabetic:
            yield Drop("words with letters", letters)
        stop_words = STOP_WORDS.get(document.meta.get("language") or self.language)
        if stop_words and (count := len(stop_words.intersection(text.lower().split()))) < self.min_stop_words:
            yield Drop("stop words", count)


@dataclass(frozen=True)
class GopherRepetition(Filter):
    """The repetition rules of Gopher (Rae et al. 2021, table A1).

    Lines and paragraphs (split at blank lines) that repeat an earlier one, as a share of their number and of their
    characters; of the characters of all words, those of the most frequent n-gram (if it occurs twice; the longest, of
    equally frequent ones) and those covered by n-grams seen before, each counted once.

    Attributes:
      top_ngrams, repeated_ngrams: the largest share for n = 2, 3, 4 and for n = 5, ..., 10.
    """

    max_lines: float = 0.3
    max_line_characters: float = 0.2
    max_paragraphs: float = 0.3
    max_paragraph_characters: float = 0.2
    top_ngrams: tuple[float, ...] = (0.2, 0.18, 0.16)
    repeated_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)

    def failures(self, document: Document) -> Iterator[Drop]:
        limits = (self.max_lines, self.max_line_characters), (self.max_paragraphs, self.max_paragraph_characters)
        paragraphs = [part.strip() for part in re.split(r"\n\s*\n", document.text) if part.strip()]
        units = ("lines", document.lines), ("paragraphs", paragraphs)
        for (name, parts), (of_parts, of_characters) in zip(units, limits, strict=True):
            repeated, characters = repeated_shares(parts)
            if repeated > of_parts:
                yield Drop(f"repeated {name}", repeated)
            if characters > of_characters:
                yield Drop(f"characters of repeated {name}", characters)
        hash_W = hash_words(document.tokens)
        length_W = np.fromiter(map(len, document.tokens), np.int64, len(document.tokens))
        end_W, ngram_N = np.append(0, np.cumsum(length_W)), hash_W
        maxima = dict(enumerate((*self.top_ngrams, *self.repeated_ngrams), 2))
        for n, maximum in maxima.items():
            if len(ngram_N) < 2:
                return
            ngram_N = extend_ngrams(ngram_N, hash_W)
            order_N = np.argsort(ngram_N, kind="stable")
            is_first_N = np.append(True, np.diff(ngram_N[order_N]) != 0)
            if is_first_N.all():
                return  # no longer n-gram occurs twice either
            if n < 2 + len(self.top_ngrams):
                first_G = np.flatnonzero(is_first_N)
                count_G, place_G = np.diff(np.append(first_G, len(ngram_N))), order_N[first_G]
                length_G = np.where(count_G == count_G.max(), end_W[place_G + n] - end_W[place_G], 0)
                characters = count_G.max() * length_G.max()
            else:
                edge_W = np.zeros(len(hash_W) + 1, np.int64)
                edge_W[order_N[~is_first_N]] += 1  # the places of one order differ
                edge_W[order_N[~is_first_N] + n] -= 1
                characters = length_W[np.cumsum(edge_W[:-1]) > 0].sum()
            if (share := float(characters / end_W[-1])) > maximum:
                yield Drop(f"{'top' if n < 2 + len(self.top_ngrams) else 'repeated'} {n}-grams", share)


def repeated_shares(parts: Sequence[str]) -> tuple[float, float]:
    """The share of the parts that equal an earlier one, and that of their characters."""
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0.0, 0.0
    total = sum(map(len, parts))
    return (len(parts) - len(distinct)) / len(parts), (total - sum(map(len, distinct))) / total


@dataclass(frozen=True)
class C4(Filter):
    """The rules of C4 (Raffel et al. 2020, 2.2, and their published code).

    Lines stay if they end in `. ! ? "` but not in `...`, and have at least `words` words, none of more than 1,000
    characters, no "javascript" and no phrase of a policy; marks such as [12] and [edit] are cut out. A document stays
    if it has no "lorem ipsum", no `{`, and `sentences` sentences in the lines that are left.

    Attributes:
      line_ends: whether the end of a line counts; FineWeb replaces that rule.
      bad_words: a document with one of them is dropped. Such lists drop the texts of minorities far more often than
        others (Dodge et al. 2021): the report shows the rates.
    """

    words: int = 5
    sentences: int = 3
    line_ends: bool = True
    max_word_length: int = 1000
    bad_words: tuple[str, ...] = ()

    def failures(self, document: Document) -> Iterator[Drop]:
        yield from self._failures(document, list(self._lines(document)))

    def apply(self, document: Document) -> Document | Drop:
        """The document without the lines that do not stay, or the first rule that it fails."""
        lines = list(self._lines(document))
        return next(self._failures(document, lines), None) or replace(document, text="\n".join(lines))

    def _failures(self, document: Document, lines: list[str]) -> Iterator[Drop]:
        text = document.text.lower()
        if "lorem ipsum" in text:
            yield Drop("lorem ipsum", text.count("lorem ipsum"))
        if "{" in text:
            yield Drop("curly brackets", text.count("{"))
        if self.bad_words and (bad := set(self.bad_words).intersection(document.tokens)):
            yield Drop("bad words", len(bad))
        if (sentences := sum(max(len(SENTENCE_END.findall(line)), 1) for line in lines)) < self.sentences:
            yield Drop("sentences", sentences)

    def _lines(self, document: Document) -> Iterator[str]:
        for line in document.lines:
            line = CITATION.sub("", line) if "[" in line else line
            if self.line_ends and (not line.endswith((".", "!", "?", '"')) or line.endswith("...")):
                continue
            words, lower = line.split(), line.lower()
            if len(words) < self.words or (len(line) > self.max_word_length < max(map(len, words))):
                continue
            if "javascript" not in lower and not POLICY.search(lower):
                yield line


@dataclass(frozen=True)
class FineWeb(Filter):
    """The rules that FineWeb adds (Penedo et al. 2024, 3.6); C4's rule of line ends is then off.

    Attributes:
      min_punctuation: share of the lines that end in punctuation.
      max_repeated: share of the characters in lines that repeat an earlier one.
      max_short_lines: share of the lines of at most `short_line` characters.
      max_newlines: newlines for each word.
    """

    min_punctuation: float = 0.12
    max_repeated: float = 0.01
    short_line: int = 30
    max_short_lines: float = 0.67
    max_newlines: float = 0.3

    def failures(self, document: Document) -> Iterator[Drop]:
        lines = document.lines
        if not lines:
            yield Drop("empty", 0)
            return
        punctuation = sum(line.endswith(TERMINAL_PUNCTUATION) for line in lines) / len(lines)
        if punctuation < self.min_punctuation:
            yield Drop("line ends", punctuation)
        if (short := sum(len(line) <= self.short_line for line in lines) / len(lines)) > self.max_short_lines:
            yield Drop("short lines", short)
        if (characters := repeated_shares(lines)[1]) > self.max_repeated:
            yield Drop("characters of repeated lines", characters)
        if (newlines := document.text.count("\n") / len(document.words)) > self.max_newlines:
            yield Drop("newlines", newlines)


MIN_LETTERS, LANGUAGE_CHARACTERS = 20, 2000


@dataclass(frozen=True)
class Language(Filter):
    """Keeps the documents in one of `languages` (ISO 639-1), as py3langid finds it in 2,000 characters.

    A text of less than 20 letters is "und", undetermined. FineWeb's threshold is 0.65.
    """

    languages: tuple[str, ...] = ("en",)
    min_probability: float = 0.65

    def failures(self, document: Document) -> Iterator[Drop]:
        if isinstance(drop := self.apply(document), Drop):
            yield drop

    def apply(self, document: Document) -> Document | Drop:
        """The document with its language, or the reason to drop it."""
        language, probability = self.identify(document.text)
        if language not in self.languages:
            return Drop("language", language)
        if probability < self.min_probability:
            return Drop("language probability", probability)
        return replace(document, meta=document.meta | {"language": language})

    def identify(self, text: str) -> tuple[str, float]:
        """The language of a text and its probability. Raises UserError without py3langid."""
        if sum(map(str.isalpha, text[:LANGUAGE_CHARACTERS])) < MIN_LETTERS:
            return "und", 0.0
        language, probability = _identifier().classify(text[:LANGUAGE_CHARACTERS])
        return language, float(probability)


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("the step Language needs py3langid: pip install 'jaxlm[corpora]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

"""Evaluation sets out of a corpus: passages that share an n-gram of words with one of their items are cut out.

GPT-3 (Brown et al. 2020, appendix C) has 13-grams, 200 characters on each side, and drops documents of more than ten
pieces. An item of 8 to 12 words is looked for as a whole; shorter ones cannot be, and are counted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxlm.corpora.document import Document, Drop, hash_ngrams

MIN_WORDS = 8


@dataclass(frozen=True)
class Decontaminate:
    """Cuts the items of evaluation sets out of the documents.

    Attributes:
      sets: name -> source of texts, or of pairs, whose sides are items.
      common: n-grams in more documents than this are not evidence.
      margin: characters that are cut on each side.
      max_pieces, min_words: a document that falls into more pieces, or keeps fewer words, is dropped.
    """

    sets: dict[str, Any]
    ngram: int = 13
    common: int = 10
    margin: int = 200
    max_pieces: int = 10
    min_words: int = 50

    def items(self, steps: Iterable[Any] = ()) -> Iterator[tuple[str, np.ndarray, int]]:
        """(set, n-gram hashes, n) of each item, masked by `steps` as the corpus is; no hash: it is too short."""
        for name, source in self.sets.items():
            for row in source:
                for text in row if isinstance(row, tuple) else (row,):
                    document = Document("", text)
                    for step in steps:
                        document = step.apply(document)
                    words, n = document.normal_words, min(len(document.normal_words), self.ngram)
                    yield name, hash_ngrams(words, n) if n >= MIN_WORDS else np.zeros(0, np.uint64), n

    def hits(self, document: Document, evidence: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """n -> the hashes of the document's n-grams that are in `evidence[n]`, at their places; 0 elsewhere."""
        grams = {n: hash_ngrams(document.normal_words, n) for n in evidence if len(document.normal_words) >= n}
        return {n: np.where(np.isin(hash_N, evidence[n]), hash_N, 0) for n, hash_N in grams.items()}

    def cut(self, document: Document, evidence: dict[int, np.ndarray]) -> Document | Drop:
        """The document without the passages that have evidence."""
        chunks = [(m.span(), len(Document("", m[0]).normal_words)) for m in re.finditer(r"\S+", document.text)]
        spans = [span for span, count in chunks for _ in range(count)]  # of each word of the normal form
        edges = []
        for n, hash_N in self.hits(document, evidence).items():
            edges += [(spans[i][0] - self.margin, spans[i + n - 1][1] + self.margin) for i in np.flatnonzero(hash_N)]
        pieces, place = [], 0
        for start, end in [*sorted(edges), (len(document.text), 0)] if edges else []:
            pieces += [document.text[place:start].strip()] if start > place else []
            place = max(place, end)
        pieces = [piece for piece in pieces if piece] if edges else [document.text]
        rest = replace(document, text="\n".join(pieces))
        if len(pieces) > self.max_pieces:
            return Drop("pieces", len(pieces))
        return rest if not edges or len(rest.words) >= self.min_words else Drop("words left", len(rest.words))


def evidence_of(step: Decontaminate, steps: Iterable[Any], counts: Counter | None = None) -> dict[int, np.ndarray]:
    """n -> sorted hashes of the n-grams of all items; with the numbers of documents of each, without common ones."""
    hashes: dict[int, set[int]] = {}
    for _, hash_N, n in step.items(steps):
        hashes.setdefault(n, set()).update(hash_N.tolist())
    return {
        n: np.array(sorted(h for h in hashes[n] if counts is None or 0 < counts[h] <= step.common), np.uint64)
        for n in hashes
        if n >= MIN_WORDS
    }

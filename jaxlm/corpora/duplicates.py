"""Exact and near duplicates: digests of the normal form, MinHash signatures, bands, and groups of documents.

A signature holds the minima of `bands * rows` functions a h + b mod 2^64 (a odd) over the hashes h of the shingles,
which are n-grams of words of the normal form (a shorter text is one shingle). Two documents of Jaccard similarity J
agree in a band of r rows with probability J^r, and so in one of b bands with 1 - (1 - J^r)^b (Broder 1997; Leskovec et
al., Mining of Massive Datasets, 3.4). Groups are the connected components of the pairs that are found.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.corpora.document import Document, hash_ngrams, mix

KEY_RANGES = 256
"""Bands are paired by ranges of their keys: memory holds one range."""

MAX_NEIGHBORS = 64
"""Documents in one band are compared with this many of those that follow them there."""

SHINGLE_BLOCK = 4096


@dataclass(frozen=True)
class Duplicates:
    """One document of each group of duplicates is kept: by the source's priority, then the longer, then by id.

    FineWeb has 14 bands of 8 rows (threshold 0.72), RedPajama-V2 9 of 13 (0.84).

    Attributes:
      near: also near duplicates; otherwise exact ones, whose normal forms are equal.
      shingle: words of a shingle.
      verify: a pair that shares a band counts only if its signatures agree in a share of the threshold
        (1/bands)^(1/rows) less 0.05; otherwise chains of pairs join what is not similar.
    """

    near: bool = True
    bands: int = 14
    rows: int = 8
    shingle: int = 5
    verify: bool = True

    @property
    def threshold(self) -> float:
        """The similarity at which a pair is found with probability 1 - (1 - 1/bands)^bands, about 0.64."""
        return (1 / self.bands) ** (1 / self.rows)

    @property
    def signature_length(self) -> int:
        """Functions of a signature."""
        return self.bands * self.rows if self.near else 0

    def signature(self, document: Document, seed: int = 0) -> np.ndarray:
        """uint32[bands * rows]: the upper halves of the minima."""
        if not self.near or not document.normal_words:
            return np.zeros(self.signature_length, np.uint32)
        shingle_N = np.unique(hash_ngrams(document.normal_words, self.shingle))
        factor_F1, shift_F1 = _functions(self.signature_length, seed)
        minimum_F = np.full(self.signature_length, np.iinfo(np.uint64).max)
        for first in range(0, len(shingle_N), SHINGLE_BLOCK):
            value_FN = factor_F1 * shingle_N[first : first + SHINGLE_BLOCK] + shift_F1
            minimum_F = np.minimum(minimum_F, value_FN.min(1))
        return (minimum_F >> np.uint64(32)).astype(np.uint32)

    def band_keys(self, signature_DF: np.ndarray) -> np.ndarray:
        """uint64[documents, bands]: a hash of the rows of each band and of its number."""
        rows_DBR = signature_DF.reshape(len(signature_DF), self.bands, self.rows).astype(np.uint64)
        key_DB = np.broadcast_to(np.arange(1, self.bands + 1, dtype=np.uint64), rows_DBR.shape[:2])
        for row in range(self.rows):
            key_DB = mix(key_DB + rows_DBR[:, :, row])
        return key_DB

    def near_pairs(
        self, bands: Sequence[np.ndarray], starts: Sequence[int], signatures: Callable[[np.ndarray], np.ndarray],
        keep_D: np.ndarray,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """int64[pairs, 2] of documents that share a band and pass `verify`.

        Args:
          bands: of each part, the table `BAND` sorted by key; document d of part p is `starts[p] + d` of all.
          signatures: documents -> uint32[documents, bands * rows].
          keep_D: the documents to be paired.
        """
        edges = np.array([i << 56 for i in range(KEY_RANGES)], np.uint64)
        limits = [np.append(np.searchsorted(part["key"], edges), len(part)) for part in bands]
        for index in range(KEY_RANGES):
            ranges = [part[limit[index] : limit[index + 1]] for part, limit in zip(bands, limits, strict=True)]
            key_N = np.concatenate([part["key"] for part in ranges])
            parts = zip(ranges, starts, strict=False)
            document_N = np.concatenate([part["document"].astype(np.int64) + start for part, start in parts])
            order_N = np.lexsort((document_N, key_N))
            order_N = order_N[keep_D[document_N[order_N]]]
            key_N, document_N = key_N[order_N], document_N[order_N]
            for gap in range(1, MAX_NEIGHBORS):
                same = np.flatnonzero(key_N[gap:] == key_N[:-gap])
                if not len(same):
                    break
                pair_P2 = np.unique(np.stack([document_N[same], document_N[same + gap]], 1), axis=0)
                if self.verify:
                    agree_P = (signatures(pair_P2[:, 0]) == signatures(pair_P2[:, 1])).mean(1)
                    pair_P2 = pair_P2[agree_P >= self.threshold - 0.05]
                yield pair_P2


BAND = np.dtype([("key", "<u8"), ("document", "<u4")])
"""An entry of a table of bands: 12 bytes."""


def _functions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64[count, 1]: the odd factors and the shifts, from bits that NumPy keeps stable."""
    bits = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(2 * count).reshape(2, count, 1)
    return bits[0] | np.uint64(1), bits[1]


def first_of_equal(digest_D: np.ndarray) -> np.ndarray:
    """int64[documents]: the first document with the same digest (any fixed-size values), itself if there is none."""
    _, first_U, inverse_D = np.unique(digest_D, return_index=True, return_inverse=True)
    return first_U[inverse_D]


def choose_kept(num_documents: int, pair_P2: np.ndarray, ranks: Sequence[np.ndarray]) -> np.ndarray:
    """int64[documents]: the document that is kept of the group of each: the first by the `ranks`, in their order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shape = num_documents, num_documents
    graph = coo_array((np.ones(len(pair_P2), bool), (pair_P2[:, 0], pair_P2[:, 1])), shape)
    count, group_D = connected_components(graph, directed=False)
    order_D = np.lexsort((*reversed(ranks), group_D))
    is_first_D = np.append(True, np.diff(group_D[order_D]) != 0)
    kept_G = np.empty(count, np.int64)
    kept_G[group_D[order_D[is_first_D]]] = order_D[is_first_D]
    return kept_G[group_D]

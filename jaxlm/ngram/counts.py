"""Counting n-grams: all of them, of every order, as a trie in sorted arrays.

Rows of order n are sorted by (row of the first n - 1 words in order n - 1, last word). Order 1 has a row for every id,
seen or not; the empty n-gram is row 0 of order 0.
"""

from dataclasses import dataclass

import numpy as np

from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError


@dataclass(frozen=True, eq=False)
class NGrams:
    """The distinct n-grams of one order.

    parent: row of the first n - 1 words in the order below. word: the last word's id.
    suffix: row of the last n - 1 words in the order below.
    count: the number of occurrences; 0 for the unigram `<s>`, which is given and never predicted.
    starts_with_bos: whether the first word is `<s>`. special: the ids that are not words.
    """

    parent: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    count: np.ndarray
    starts_with_bos: np.ndarray
    special: SpecialIds = OWN_SPECIAL_IDS

    def __len__(self) -> int:
        return len(self.word)


def count_ngrams(
    text: Ragged,
    vocab: int,
    order: int,
    stream: bool = False,
    append_eos: bool = True,
    special: SpecialIds = OWN_SPECIAL_IDS,
) -> list[NGrams]:
    """Count the n-grams of orders 1 to `order` in rows of ids below `vocab`.

    Each row is a sentence `<s> w1 ... wk </s>`, and no n-gram crosses its ends (as in KenLM). With `stream`, the rows
    are one text after one `<s>`, with `</s>` after each row if `append_eos` (as in `jaxlm.data.batching.lm_windows`).
    Raises UserError if the text is empty or contains an id that is not a word.
    """
    if order < 1:
        raise UserError(f"an n-gram model of order {order}: expected 1 or more (model.order)")
    if special.start == special.eos:
        raise UserError(
            f"texts of this tokenizer begin and end with one id ({special.eos}), and n-grams are counted from another "
            "one than they end with: use a tokenizer of your own, as of Words()"
        )
    flat, bounds = text.flat[text.offsets[0] : text.offsets[-1]], text.offsets - text.offsets[0]
    ids, left = _join_rows(flat.astype(np.int64), bounds, stream, append_eos, special)
    if not len(flat):
        raise UserError("no text to count n-grams in: every row is empty")
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= vocab:
        raise UserError(f"the text holds id {high if high >= vocab else low}, but the model has ids 0 to {vocab - 1}: "
                        "set model.vocab to the size of the tokenizer")  # fmt: skip
    if np.isin(flat, special.never_predicted).any():
        raise UserError(f"the text holds the ids of padding ({special.pad}) or <s> ({special.start}): remove these ids")
    count = np.bincount(ids, minlength=vocab)
    count[special.start] = 0
    zero = np.zeros(vocab, np.int32)
    word = np.arange(vocab, dtype=np.int32)
    orders = [NGrams(zero, word, zero, count, word == special.start, special)]
    row = ids
    for n in range(2, order + 1):
        ngrams, row = _next_order(ids, left, row, n, vocab, orders[-1].starts_with_bos)
        orders.append(ngrams)
    return orders


def _next_order(
    ids: np.ndarray, remaining: np.ndarray, row: np.ndarray, n: int, vocab: int, starts_with_bos: np.ndarray
) -> tuple[NGrams, np.ndarray]:
    """Return order n and, for each position of the text, the row of its n-gram; `row`: the rows of order n - 1."""
    position = np.flatnonzero(remaining >= n)
    key = row[position] * vocab + ids[position + n - 1]
    order = np.argsort(key)
    key = key[order]
    new = np.ones(len(key), bool)
    new[1:] = key[1:] != key[:-1]
    start = np.flatnonzero(new)
    count = np.diff(start, append=len(key))
    if len(start) >= np.iinfo(np.int32).max:
        raise UserError(f"{len(start):,} {n}-grams: rows are counted in 32 bits. Lower model.order.")
    parent, word = (key[start] // vocab).astype(np.int32), (key[start] % vocab).astype(np.int32)
    suffix = row[position[order[start]] + 1].astype(np.int32)
    new_row = np.empty(len(ids), np.int64)
    new_row[position[order]] = np.cumsum(new) - 1
    return NGrams(parent, word, suffix, count, starts_with_bos[parent]), new_row


def _join_rows(
    flat: np.ndarray, bounds: np.ndarray, stream: bool, append_eos: bool, special: SpecialIds
) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows in one array, with `<s>` and `</s>`; and at each id, how many remain in its sentence."""
    if stream:
        ends = bounds[1:] if append_eos else bounds[:0]
        ids = np.insert(flat, np.append(0, ends), [special.start, *[special.eos] * len(ends)])
        return ids, np.arange(len(ids), 0, -1)
    marks = np.repeat(bounds, 2)[1:-1]  # the beginning and the end of each row
    ids = np.insert(flat, marks, np.tile([special.start, special.eos], len(marks) // 2))
    lengths = np.diff(bounds) + 2
    return ids, np.repeat(np.cumsum(lengths), lengths) - np.arange(len(ids))

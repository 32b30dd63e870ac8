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
    count: how often it occurs; 0 for `<s>` alone, which is given and never predicted.
    starts_with_bos: True where the first word is `<s>`.
    special: the ids that are not words.
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
    """The n-grams of orders 1 to `order` in rows of ids below `vocab`.

    Sentences: a row is `<s> w1 ... wk </s>` and no n-gram crosses its ends (as KenLM counts). With `stream`, the rows
    are one text with one `<s>` before it, each row followed by `</s>` if `end` (as
    `jaxlm.data.batching.lm_windows` cuts it). Raises UserError if there is no text, or an id that is none of
    a word.
    """
    if order < 1:
        raise UserError(f"an n-gram model of order {order}: expected 1 or more (model.order)")
    _check_ids(text, vocab, special)
    ids, left = _join_stream(text, append_eos, special) if stream else _join_sentences(text, special)
    count = np.bincount(ids, minlength=vocab)
    count[special.start] = 0
    zero = np.zeros(vocab, np.int32)
    word = np.arange(vocab, dtype=np.int32)
    found = [NGrams(zero, word, zero, count, word == special.start, special)]
    row = ids
    for n in range(2, order + 1):
        ngrams, row = _next_order(ids, left, row, n, vocab, found[-1].starts_with_bos)
        found.append(ngrams)
    return found


def _next_order(
    ids: np.ndarray, remaining: np.ndarray, row: np.ndarray, n: int, vocab: int, starts_with_bos: np.ndarray
) -> tuple[NGrams, np.ndarray]:
    """Order n, and the row of the n-gram that starts at each place of the text, from the rows of order n - 1."""
    at = np.flatnonzero(remaining >= n)
    key = row[at] * vocab + ids[at + n - 1]
    order = np.argsort(key)
    key = key[order]
    new = np.ones(len(key), bool)
    new[1:] = key[1:] != key[:-1]
    start = np.flatnonzero(new)
    count = np.diff(start, append=len(key))
    if len(start) >= np.iinfo(np.int32).max:
        raise UserError(f"{len(start):,} {n}-grams: rows are counted in 32 bits. Lower model.order.")
    parent, suffix = key[start] // vocab, row[at[order[start]] + 1]
    word = key[start] % vocab
    here = np.empty(len(ids), np.int64)
    here[at[order]] = np.cumsum(new) - 1
    return NGrams(
        parent.astype(np.int32), word.astype(np.int32), suffix.astype(np.int32), count, starts_with_bos[parent]
    ), here


def _join_sentences(text: Ragged, special: SpecialIds) -> tuple[np.ndarray, np.ndarray]:
    """Every row between `<s>` and `</s>`, and how many ids each place has up to the end of its row, itself included."""
    lengths = text.lengths + 2
    last = np.cumsum(lengths) - 1
    ids = np.empty(int(lengths.sum()), np.int64)
    inner = np.ones(len(ids), bool)
    inner[last] = inner[last - lengths + 1] = False
    ids[inner] = text.flat[text.offsets[0] : text.offsets[-1]]
    ids[last], ids[last - lengths + 1] = special.eos, special.start
    return ids, np.repeat(last + 1, lengths) - np.arange(len(ids))


def _join_stream(text: Ragged, append_eos: bool, special: SpecialIds) -> tuple[np.ndarray, np.ndarray]:
    """The rows one after the other behind one `<s>`."""
    flat, lengths = text.flat[text.offsets[0] : text.offsets[-1]], text.lengths
    ids = np.full(1 + len(flat) + append_eos * len(lengths), special.eos, np.int64)
    ids[0] = special.start
    row = np.repeat(np.arange(len(lengths)), lengths) if append_eos else 0
    ids[1 + np.arange(len(flat)) + row] = flat
    return ids, np.arange(len(ids), 0, -1)


def _check_ids(text: Ragged, vocab: int, special: SpecialIds) -> None:
    if special.start == special.eos:
        raise UserError(
            f"texts of this tokenizer begin and end with one id ({special.eos}), and n-grams are counted from another "
            "one than they end with: use a tokenizer of your own, as of Words()"
        )
    flat = text.flat[text.offsets[0] : text.offsets[-1]]
    if not len(flat):
        raise UserError("there is no text to count n-grams in: every row is empty")
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= vocab:
        raise UserError(f"the text holds id {high if high >= vocab else low}, but the model has ids 0 to {vocab - 1}: "
                        "set model.vocab to the size of the tokenizer")  # fmt: skip
    if np.isin(flat, special.never_predicted).any():
        raise UserError(
            f"the text holds the ids of padding ({special.pad}) or <s> ({special.start}): give it without marks"
        )

"""Counting n-grams: all of them, of every order, as a trie in sorted arrays; and the back-off tables made of them.

Rows of order n are sorted by (row of the first n - 1 words in order n - 1, last word). Order 1 has a row for every id,
seen or not; the empty n-gram is row 0 of order 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


LOG_ZERO = -99.0 * math.log(10.0)
"""The natural log that represents a probability of 0: -99 as a log10, as in an ARPA file."""

BackoffTables = dict[str, dict[str, np.ndarray]]
"""The parameters of an n-gram model, as in an ARPA file (Katz 1987; Doug Paul's file format).

    log p(w | h) = logprob(h w)                      if the n-gram h w is in the table,
                   backoff(h) + log p(w | h')        else, with h' = h less its first word and backoff(h) = 0 if h is
                                                     not in the table

A trie of arrays, natural logs in float32 and rows in int32:

    {"order1": {"logprob": (V,), "backoff": (V,), "first": (V + 1,)},              row = id
     "order2": {"word": (n2,), "logprob": (n2,), "backoff": (n2,), "first": (n2 + 1,)},
     ...
     "orderN": {"word": (nN,), "logprob": (nN,)}}

The n-grams that extend row r are rows first[r] to first[r + 1] - 1 of the next order, their last words ascending. An
order without n-grams has one row that no index leads to, so that no array is empty.
"""


@dataclass(frozen=True, eq=False)
class BackoffLevel:
    """The n-grams of one order, sorted by (parent, word); parent is a row of the order below. Natural logs."""

    parent: np.ndarray
    word: np.ndarray
    logprob: np.ndarray
    backoff: np.ndarray


def to_tables(levels: Sequence[BackoffLevel]) -> BackoffTables:
    """Convert sorted n-grams to a trie. Order 1 must have a row for every id, in order."""
    tables: BackoffTables = {}
    for n, level in enumerate(levels, start=1):
        arrays = {"logprob": np.asarray(level.logprob, np.float32)}
        if n > 1:
            arrays["word"] = np.asarray(level.word, np.int32)
        if n < len(levels):
            arrays["backoff"] = np.asarray(level.backoff, np.float32)
        table = {name: array if len(array) else np.zeros(1, array.dtype) for name, array in arrays.items()}
        if n < len(levels):
            children = np.bincount(levels[n].parent, minlength=len(table["logprob"]))
            table["first"] = np.concatenate([[0], np.cumsum(children)]).astype(np.int32)
        tables[f"order{n}"] = table
    return tables


def to_levels(tables: Any) -> list[BackoffLevel]:
    """The inverse of `to_tables`, for any mapping of arrays."""
    levels: list[BackoffLevel] = []
    for n in range(1, len(tables) + 1):
        table = {name: np.asarray(array) for name, array in tables[f"order{n}"].items()}
        if n == 1:
            size = len(table["logprob"])
            parent, word = np.zeros(size, np.int32), np.arange(size, dtype=np.int32)
        else:
            first = np.asarray(tables[f"order{n - 1}"]["first"])
            size, word = int(first[-1]), table["word"]
            parent = np.repeat(np.arange(len(first) - 1), np.diff(first)).astype(np.int32)
        backoff = table.get("backoff", np.zeros(size, np.float32))
        levels.append(BackoffLevel(parent, word[:size], table["logprob"][:size], backoff[:size]))
    return levels

"""Back-off tables: the parameters of an n-gram model, as in an ARPA file (Katz 1987; Doug Paul's file format).

    log p(w | h) = logprob(h w)                      if the n-gram h w is in the table,
                   backoff(h) + log p(w | h')        else, with h' = h less its first word and backoff(h) = 0 if h is
                                                     not in the table

In memory this is a trie of arrays, natural logs in float32 and rows in int32, as a dict of dicts:

    {"order1": {"logprob": (V,), "backoff": (V,), "first": (V + 1,)},              row = id
     "order2": {"word": (n2,), "logprob": (n2,), "backoff": (n2,), "first": (n2 + 1,)},
     ...
     "orderN": {"word": (nN,), "logprob": (nN,)}}

The n-grams that extend row r are rows first[r] to first[r + 1] - 1 of the next order, their last words ascending. An
order without n-grams has one row that no index leads to, so that no array is empty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LOG_ZERO = -99.0 * math.log(10.0)
"""The natural log that represents a probability of 0: -99 as a log10, as in an ARPA file."""

BackoffTables = dict[str, dict[str, np.ndarray]]


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

"""n-gram language models by counting (Chen and Goodman 1998), looked up inside jit.

The tables are tries of sorted arrays (`jaxlm.ngram.counts`). After a history of n - 1 words, with h_j its
last j words:

    log p(w) = logprob(w);   for j = 1 ... n - 1:   log p(w) <- logprob(h_j w) if h_j w is in the table,
                                                               backoff(h_j) + log p(w) if only h_j is
"""

import math
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.losses import NEVER_LOGIT
from jaxlm.ngram.counts import BackoffLevel, BackoffTables, count_ngrams, to_tables
from jaxlm.ngram.smoothing import KneserNey, Smoothing
from jaxlm.nn.layers.context_window import NO_TOKEN, Window, initial_window, slide_window
from jaxlm.types import Array, Batch, SequenceModel

WORDS_PER_BLOCK = 512
"""Next words of a history that are written to its logits at once; a common history has thousands."""


class NGram(SequenceModel):
    """p(next word | the last order - 1 words). It is not trained by gradients: `fit` counts.

    Features are the histories themselves, int32 (B, T, order - 1). With Kneser-Ney and Witten-Bell smoothing the
    logits are log-probabilities.

    Attributes:
      vocab: size of the vocabulary, V.
      order: n, the longest n-gram.
      smoothing: `KneserNey`, `WittenBell` or `StupidBackoff` of `jaxlm.ngram.smoothing`.
      continuous_text: the texts are one stream without sentences, and the history of the first token is empty.
      append_eos: with `continuous_text`, every text ends with `</s>` (sentences always do), as
        `jaxlm.data.batching.lm_windows.Windows.append_eos`.
      special: the special ids of the tokenizer.
    """

    vocab: int
    order: int = 5
    smoothing: Smoothing = KneserNey()
    continuous_text: bool = False
    append_eos: bool = True
    special: SpecialIds = OWN_SPECIAL_IDS

    def setup(self) -> None:
        # Not `self.param`, which requires the shapes that `init` created: those of the tables depend on the text.
        names = [f"order{n}" for n in range(1, self.order + 1)]
        stored = [self.variable("params", name, lambda name=name: self.uniform_tables()[name]).value for name in names]
        self.tables = jax.tree.map(jnp.asarray, stored)

    def start(self, batch: Batch, capacity: int) -> Window:
        """Return the history before the first token: `<s>`, or nothing with `continuous_text`."""
        return initial_window(batch.num_rows, self.order - 1, self._start_id, batch.target_segment_BT)

    def extend(self, tokens_BT: Array, state: Window, valid_BT: Array) -> tuple[Array, Window]:
        """Return the history after each token, context_BTK with K = order - 1, and the last one."""
        return slide_window(state, tokens_BT, valid_BT, self._start_id)

    def readout(self, features: Array) -> Array:
        """Map histories (..., K) int32 to float32 log-probabilities (..., V), NEVER_LOGIT at padding and `<s>`."""
        rows = math.prod(features.shape[:-1])
        logprob_RV = jnp.broadcast_to(self.tables[0]["logprob"][None], (rows, self.vocab))
        for backoff_R, table, children in self._backoff_steps(features.reshape(rows, self.order - 1)):
            logprob_RV = _write_children(logprob_RV + backoff_R[:, None], table, *children)
        possible_V = self._is_predictable(jnp.arange(self.vocab))
        return jnp.where(possible_V[None], logprob_RV, NEVER_LOGIT).reshape(*features.shape[:-1], self.vocab)

    def logprob(self, features: Array, label: Array) -> Array:
        """Return `readout(features)` at the labels, without rows of V numbers: (..., K), (...) -> (...)."""
        label_R = label.reshape(-1)
        logprob_R = self.tables[0]["logprob"][label_R]
        for backoff_R, table, children in self._backoff_steps(features.reshape(label_R.shape[0], self.order - 1)):
            row_R, exists_R = _binary_search(table["word"], *children, label_R)
            logprob_R = jnp.where(exists_R, table["logprob"][row_R], logprob_R + backoff_R)
        return jnp.where(self._is_predictable(label_R), logprob_R, NEVER_LOGIT).reshape(label.shape)

    def _backoff_steps(self, context_RK: Array) -> Iterator[tuple[Array, dict[str, Array], tuple[Array, Array]]]:
        """For j = 1 ... n - 1: log backoff weight of the last j words, table of order j + 1, their rows in it."""
        for j in range(1, self.order):
            history_R, exists_R = self._find_history(context_RK[:, self.order - 1 - j :])
            table = self.tables[j - 1]
            backoff_R = jnp.where(exists_R, table["backoff"][history_R], 0.0)
            yield backoff_R, self.tables[j], _children(table, history_R, exists_R)

    @nn.nowrap
    def fit(self, columns: Mapping[str, Ragged]) -> BackoffTables:
        """Return the parameters: smoothed counts of the column "target", computed with NumPy on the host."""
        text = self.continuous_text, self.append_eos, self.special
        return self.smoothing.estimate(count_ngrams(columns["target"], self.vocab, self.order, *text))

    @nn.nowrap
    def uniform_tables(self) -> BackoffTables:
        """Return tables without n-grams: the uniform distribution."""
        if self.order < 1:
            raise UserError(f"an n-gram model of order {self.order}: expected 1 or more (model.order)")
        none = np.zeros(0, np.int32)
        word = np.arange(self.vocab, dtype=np.int32)
        logprob = np.full(self.vocab, -np.log(max(1, self.vocab - len(self.special.never_predicted))))
        first = BackoffLevel(np.zeros_like(word), word, logprob, np.zeros(self.vocab))
        return to_tables([first] + [BackoffLevel(none, none, none, none)] * (self.order - 1))

    @property
    def _start_id(self) -> int:
        return NO_TOKEN if self.continuous_text else self.special.start

    def _is_predictable(self, ids: Array) -> Array:
        return ~jnp.isin(ids, jnp.array(self.special.never_predicted))

    def _find_history(self, context_Rj: Array) -> tuple[Array, Array]:
        """The rows of histories of j words in the table of order j, and whether they exist."""
        row_R = context_Rj[:, 0]
        exists_R = (row_R >= 0) & (row_R < self.vocab)
        for n in range(1, context_Rj.shape[1]):
            children = _children(self.tables[n - 1], row_R, exists_R)
            row_R, exists_R = _binary_search(self.tables[n]["word"], *children, context_Rj[:, n])
        return row_R, exists_R


def _children(table: dict[str, Array], row_R: Array, exists_R: Array) -> tuple[Array, Array]:
    """First and last + 1 row of the n-grams that extend `row_R` by a word; an empty range if that does not exist."""
    row_R = jnp.where(exists_R, row_R, 0)
    first_R = table["first"][row_R]
    return first_R, jnp.where(exists_R, table["first"][row_R + 1], first_R)


def _binary_search(word: Array, first_R: Array, end_R: Array, target_R: Array) -> tuple[Array, Array]:
    """The row of `target` in word[first:end], which is sorted, and whether it exists; row 0 otherwise."""

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_R, high_R = bounds
        middle_R = low_R + (high_R - low_R) // 2
        right_R = (low_R < high_R) & (word[middle_R] < target_R)
        return jnp.where(right_R, middle_R + 1, low_R), jnp.where(right_R, high_R, middle_R)

    row_R, _ = jax.lax.fori_loop(0, word.shape[0].bit_length(), halve, (first_R, end_R))
    exists_R = (row_R < end_R) & (word[row_R] == target_R)
    return jnp.where(exists_R, row_R, 0), exists_R


def _write_children(logprob_RV: Array, table: dict[str, Array], first_R: Array, end_R: Array) -> Array:
    """Write the log-probabilities of rows first:end of `table` to the logits of their words, a block at a time."""
    row_R1 = jnp.arange(logprob_RV.shape[0])[:, None]

    def write_block(step: Array, logprob_RV: Array) -> Array:
        entry_RE = first_R[:, None] + step * WORDS_PER_BLOCK + jnp.arange(WORDS_PER_BLOCK)[None]
        # Entries after the last one are written to word V, which does not exist.
        word_RE = jnp.where(entry_RE < end_R[:, None], table["word"][entry_RE], logprob_RV.shape[1])
        return logprob_RV.at[row_R1, word_RE].set(table["logprob"][entry_RE], mode="drop")

    longest = jnp.max(end_R - first_R, initial=0)
    return jax.lax.fori_loop(0, (longest + WORDS_PER_BLOCK - 1) // WORDS_PER_BLOCK, write_block, logprob_RV)

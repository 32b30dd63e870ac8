"""Models of frames: a lexicon, and two taggers that name a frame where their frames together are likelier than none."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import RecurrentTagger, TokenClassifier
from jaxlm.data.ragged import Ragged
from jaxlm.types import Array, Batch


class FrameLexicon(nn.Module):
    """The commonest label of each word that has one other than 0 in at least half of its occurrences, else 0.

    It is not trained by gradients: `fit` counts. The words are those of the tokenizer, whose special ids have label 0.
    """

    num_labels: int

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        """Return 1 for the label of each word and 0 for the others, (B, S, C) float32."""
        # Not `self.param`, which requires the shape that `init` created: that of the table depends on the text.
        label_V = self.variable("params", "label", lambda: jnp.zeros(1, jnp.int32)).value
        return jax.nn.one_hot(jnp.asarray(label_V)[batch.source_BS], self.num_labels)

    @nn.nowrap
    def fit(self, columns: Mapping[str, Ragged]) -> dict[str, Any]:
        """Return the label of each id, from the columns "source" and "label"."""
        ids_N, label_N = columns["source"].flat, columns["label"].flat
        count_VC = np.zeros((int(ids_N.max()) + 1, self.num_labels), np.int32)
        np.add.at(count_VC, (ids_N, label_N), 1)
        is_trigger_V = 2 * count_VC[:, 1:].sum(1) >= np.maximum(count_VC.sum(1), 1)
        label_V = np.where(is_trigger_V, count_VC[:, 1:].argmax(1) + 1, 0).astype(np.int32)
        label_V[:4] = 0  # a word that the tokenizer does not know
        return {"label": label_V}


class FrameTagger(TokenClassifier):
    """A pre-trained encoder with a label for each word."""

    def predict_labels(self, batch: Batch) -> Array:
        """Return the label of each position, (B, S) int32."""
        return likeliest_frame(self(batch))


class RecurrentFrameTagger(RecurrentTagger):
    """A bidirectional LSTM over words and their characters."""

    def predict_labels(self, batch: Batch) -> Array:
        """Return the label of each word, (B, S) int32."""
        return likeliest_frame(self(batch))


def likeliest_frame(logits_BSC: Array) -> Array:
    """Return the best label of 1, ..., C - 1 where these together have half of the probability or more, else 0."""
    is_frame_BS = jax.nn.softmax(logits_BSC)[..., 0] <= 0.5
    return jnp.where(is_frame_BS, logits_BSC[..., 1:].argmax(-1) + 1, 0).astype(jnp.int32)

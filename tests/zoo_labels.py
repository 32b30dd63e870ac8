"""A tiny instance of every model that says labels, and batches of sources for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxlm.data.vocabulary import EOS
from jaxlm.models.bag_of_words import BagOfWords
from jaxlm.models.classifier import Classifier
from jaxlm.models.tagger import Tagger
from jaxlm.nn.cell import GRU, LSTM
from jaxlm.nn.recurrent import Recurrent
from jaxlm.nn.words import CharacterCNN
from jaxlm.types import Batch, Params

VOCAB, LETTERS, LABELS, LENGTH, WORD = 19, 11, 3, 8, 5

BOTH_WAYS = Recurrent(GRU(4), layers=2, bidirectional=True)
FORWARDS = Recurrent(LSTM(4))
SPELLED = CharacterCNN(LETTERS, width=3, filters=4)

ZOO = {
    "tagger": Tagger(VOCAB, LABELS, BOTH_WAYS, 6, SPELLED),
    "tagger_crf": Tagger(VOCAB, LABELS, FORWARDS, 6, SPELLED, crf=True, tags=("O", "B-x", "I-x")),
    "tagger_plain": Tagger(VOCAB, LABELS, FORWARDS, 6),
    "last": Classifier(VOCAB, LABELS, BOTH_WAYS, 6, SPELLED),
    "last_forwards": Classifier(VOCAB, LABELS, FORWARDS, 6),
    "mean": Classifier(VOCAB, LABELS, FORWARDS, 6, pooling="mean"),
    "max": Classifier(VOCAB, LABELS, FORWARDS, 6, pooling="max"),
    "attention": Classifier(VOCAB, LABELS, FORWARDS, 6, pooling="attention"),
    "bag": BagOfWords(VOCAB, LABELS, 6, (5, 4), SPELLED),
    "bag_of_pairs": BagOfWords(VOCAB, LABELS, 6, (), SPELLED, pairs=31),
}
TAGGERS = [name for name, model in ZOO.items() if isinstance(model, Tagger)]
CLASSIFIERS = [name for name in ZOO if name not in TAGGERS]


@dataclass(frozen=True)
class Text:
    """Ids of words, ids of the characters of each (0 after the last), a label for each, a class."""

    words: np.ndarray
    letters: np.ndarray
    tags: np.ndarray
    kind: int


def texts(count: int, low: int = 1, high: int = 5, seed: int = 0) -> list[Text]:
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        size = high if index == 0 else int(rng.integers(low, high + 1))
        letters = rng.integers(1, LETTERS, (size, WORD)) * (np.arange(WORD) < rng.integers(1, WORD + 1, (size, 1)))
        tags = rng.integers(0, 2, size)  # the label 2 may not follow 0 or nothing
        found.append(Text(rng.integers(4, VOCAB, size), letters, tags, int(rng.integers(LABELS))))
    return found


def batch_of(rows: Sequence[Text], length: int = LENGTH, layout: str = "right") -> Batch:
    """A text and EOS in each row, with junk in the padding: on the right, on the left, or in "holes"."""
    rng = np.random.default_rng(3)
    shape = len(rows), length
    ids, valid = rng.integers(4, VOCAB, shape), np.zeros(shape, bool)
    letters, tags = rng.integers(0, LETTERS, (*shape, WORD)), np.full(shape, -1)
    for row, text in enumerate(rows):
        size = len(text.words) + 1
        at = np.arange(size) + (length - size if layout == "left" else 0)
        if layout == "holes":
            at = np.sort(rng.choice(length, size, replace=False))
        ids[row, at], valid[row, at] = np.append(text.words, EOS), True
        letters[row, at] = np.concatenate([text.letters, np.zeros((1, WORD))])
        tags[row, at[:-1]] = text.tags
    return Batch(
        source_BS=ids.astype(np.int32),
        source_valid_BS=valid,
        character_BSW=letters.astype(np.int32),
        label_BS=tags.astype(np.int32),
        label_B=np.array([text.kind for text in rows], np.int32),
    )


@lru_cache
def params_of(model: Any) -> Params:
    """Random parameters from NumPy, none of them 0 or 1."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of(texts(2)))["params"]
    return jax.tree.map(lambda leaf: np.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)

"""Every task's training corpus is encoded once: the columns in the workdir are used again, if they are undamaged."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from fixtures.rows import Rows

from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.span_corruption import PrefixLMWindows
from jaxlm.data.sources.text import TextSource
from jaxlm.data.tokenizers.simple import WordsWithChars
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.masked_lm import MaskedLanguageModeling
from jaxlm.tasks.regression import TextRegression
from jaxlm.tasks.span_corruption import Denoising
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.translation import Translation


@dataclass(frozen=True)
class Texts(TextSource):
    """Texts that are given."""

    rows: tuple[str, ...]

    def describe(self):
        return "given texts"

    def read(self, stats):
        for text in self.rows:
            stats.kept += 1
            yield text


TEXTS = ("the cat sat", "a mat", "the mat sat on a cat", "cat")
TAGS = tuple((text, " ".join("B-X" if word == "cat" else "O" for word in text.split())) for text in TEXTS)
LABELED = tuple((text, "yes" if "cat" in text else "no") for text in TEXTS)
NUMBERS = tuple((text, str(len(text) / 10)) for text in TEXTS)
TRANSLATED = tuple((text, text.upper()) for text in TEXTS)


def of(kind, rows, **fields):
    """A task of which all splits are the same rows."""
    return kind(rows, rows, rows, **fields)


TASKS = {
    "translation": (of(Translation, Rows(TRANSLATED)), {"source", "target"}),
    "language modeling": (of(LanguageModeling, Texts(TEXTS)), {"target"}),
    "masked": (of(MaskedLanguageModeling, Texts(TEXTS), mask_token=""), {"target", "piece", "symbol"}),
    "denoising": (of(Denoising, Texts(TEXTS), eval_batching=PrefixLMWindows()), {"target", "symbol"}),
    "tagging": (of(Tagging, Rows(TAGS), labels=("O", "B-X")), {"source", "label", "character"}),
    "classification": (of(Classification, Rows(LABELED), labels=("no", "yes")), {"source", "class", "character"}),
    "regression": (of(TextRegression, Rows(NUMBERS)), {"source", "class", "character"}),
}


def counting(monkeypatch, tokenizer) -> list[str]:
    """The texts that the tokenizer encodes from now on."""
    encode, texts = type(tokenizer).encode, []
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, rows: texts.extend(rows) or encode(self, rows))
    return texts


@pytest.mark.parametrize("name", TASKS)
def test_the_corpus_of_every_task_is_encoded_once(name, tmp_path, monkeypatch):
    (task, names), folder = TASKS[name], tmp_path / "data" / "train"
    tokenizer = WordsWithChars().fit(TEXTS)
    encoded = counting(monkeypatch, tokenizer)
    in_memory = task.encode_train(tokenizer, None, ReadStats())
    first = task.encode_train(tokenizer, folder, ReadStats())
    encoded.clear()
    again = task.encode_train(tokenizer, folder, stats := ReadStats())
    assert encoded == [] and stats.kept == len(TEXTS)
    assert set(in_memory) == set(first) == set(again) == names
    for column in names:
        for other in (first, again):
            np.testing.assert_array_equal(other[column].offsets, in_memory[column].offsets)
            np.testing.assert_array_equal(other[column].flat, in_memory[column].flat)
            assert other[column].flat.dtype == in_memory[column].flat.dtype

    fewer = replace(task, train=replace(task.train, rows=task.train.rows[1:]))
    assert len(next(iter(fewer.encode_train(tokenizer, folder, ReadStats()).values()))) and encoded
    task.encode_train(tokenizer, folder, ReadStats())
    encoded.clear()
    file = next(folder.glob("*.ids"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    repaired = task.encode_train(tokenizer, folder, ReadStats())
    assert encoded
    for column in names:
        np.testing.assert_array_equal(repaired[column].flat, in_memory[column].flat)


def test_labels_in_another_order_are_another_corpus(tmp_path):
    task, tokenizer = TASKS["classification"][0], WordsWithChars().fit(TEXTS)
    classes = [
        replace(task, labels=labels).encode_train(tokenizer, tmp_path / "train", ReadStats())["class"].flat.tolist()
        for labels in (("no", "yes"), ("yes", "no"))
    ]
    assert classes[0] == [1 - label for label in classes[1]]

"""The task of tagging: a label for each word; with `iob2_spans`, the labels are IOB2 tags and spans are judged."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.sources.base import Pair, Pairs
from jaxlm.data.sources.conll import find_invalid_iob2, locate_word
from jaxlm.data.tokenizers.base import Tokenizer, encode_words
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, Answer, ProgressCallback, TrainedModel, apply_to_rows
from jaxlm.metrics.classification import (
    accuracy,
    confusion_matrix,
    extract_spans,
    forbidden_transitions,
    macro_f1,
    per_class_counts,
    score_spans,
)
from jaxlm.models.properties import max_input_positions
from jaxlm.tasks.base import EVAL_SPLITS
from jaxlm.tasks.supervised import LabelTask, source_columns

NUM_SPECIAL_IDS = 2
"""Special ids of a row with a sequence format: one before the text, one after it."""


@dataclass(frozen=True)
class Tagging(LabelTask):
    """Words between white space to as many tags; the sources give pairs of both, each one line.

    With a `sequence_format` a word may be several pieces, and its tag is that of the first one.

    Attributes:
      split_words: lines to `predict` are raw text, whose words are those of `split_raw`.
      iob2_spans: the labels are IOB2 tags, and F1 is that of spans, as in seqeval's default mode. Otherwise F1 is the
        mean over all tags.
    """

    iob2_spans: bool = False
    split_words: bool = False

    eval_only_fields: ClassVar[tuple[str, ...]] = (*EVAL_SPLITS, "split_words")
    recipe: ClassVar[str] = "tag"
    batch_columns: ClassVar[tuple[str, ...]] = ("source", "label")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iob2_spans:
            forbidden_transitions(self.labels)  # refuses labels that are not IOB2

    def _test_metrics(self, tokenizer: Tokenizer, columns: Columns, gold: Ragged, predicted: Ragged) -> dict[str, Any]:
        """Accuracy, also of the words that the tokenizer does not know; the figures of each tag, and of the spans."""
        counts_CC = confusion_matrix(gold.flat, predicted.flat, len(self.labels))
        unknown = tokenizer.special.is_unknown(columns["source"].flat[columns["label"].flat >= 0])
        unknown_counts_CC = confusion_matrix(gold.flat[unknown], predicted.flat[unknown], len(self.labels))
        figures: dict[str, Any] = {"words": len(gold.flat)}
        figures |= {"accuracy": accuracy(counts_CC), "macro_f1": macro_f1(counts_CC)}
        figures["unknown"] = {"words": int(unknown.sum()), "accuracy": accuracy(unknown_counts_CC)}
        if self.iob2_spans:
            micro, by_class = self._span_scores(gold, predicted)
            figures |= {key: value for key, value in micro.to_json().items() if key != "support"}
            figures["spans"] = {name: counts.to_json() for name, counts in by_class.items()}
        tags = per_class_counts(counts_CC, self.labels)
        return figures | {"tags": {name: counts.to_json() for name, counts in tags.items()}}

    def check_model(self, model: Any, tokenizer: Tokenizer) -> None:
        super().check_model(model, tokenizer)
        if _crf_tags(model) and not self.iob2_spans:
            raise UserError(
                "the CRF of the model forbids tags that are not IOB2, and the task does not check its data for them: "
                "set the task's iob2_spans=True, or the model's tag_names=()"
            )

    def max_input_tokens(self, model: Any) -> int:
        return 0  # a longer text is read in several parts

    def _example(self, text: str, predicted: str, label: str) -> str:
        """Word/tag, and word/tag(true tag) if the predicted tag is wrong."""
        triples = zip(text.split(), predicted.split(), label.split(), strict=True)
        return " ".join(f"{word}/{tag}" + (f"({gold})" if tag != gold else "") for word, tag, gold in triples)

    def _valid_metrics(self, gold: Ragged, predicted: Ragged) -> dict[str, float]:
        counts_CC = confusion_matrix(gold.flat, predicted.flat, len(self.labels))
        f1 = self._span_scores(gold, predicted)[0].f1 if self.iob2_spans else macro_f1(counts_CC)
        return {"accuracy": accuracy(counts_CC), "f1": f1}

    def _predict_pairs(
        self, trained: TrainedModel, source: Pairs, batch_tokens: int, progress: ProgressCallback = None
    ) -> tuple[Columns, Ragged, Ragged]:
        columns, positions = self._encode_tagged(source, list(source), trained.tokenizer, trained.model)
        predicted = self._predict_labels(trained, columns, positions, batch_tokens, progress)
        return columns, _select(columns["label"].flat, positions), predicted

    def _predict_texts(self, trained: TrainedModel, texts: Sequence[str], progress: ProgressCallback) -> Iterator[Any]:
        if self.split_words:
            texts = [" ".join(word for word, _ in split_raw(text)) for text in texts]
        columns, positions = self._encode_words(trained.tokenizer, texts, trained.model)
        labels = self._predict_labels(trained, columns, positions, EVAL_BATCH_TOKENS, progress)
        return map(labels.__getitem__, range(len(labels)))

    def _answer(self, line: str, output: np.ndarray | None) -> Answer:
        """The tags of the words, between single spaces, with `split_words` each behind its word; the record has the
        offsets of the words, the first character and that after the last one."""
        tags = [] if output is None else [self.labels[label] for label in output]
        split = split_raw(line) if self.split_words else [(m.group(), m.span()) for m in re.finditer(r"\S+", line)]
        words, offsets = [word for word, _ in split], [place for _, place in split]
        text = " ".join(tags) if not self.split_words else " ".join(map("/".join, zip(words, tags, strict=False)))
        record: dict[str, Any] = {"source": line, "prediction": text, "words": words, "tags": tags, "offsets": offsets}
        if self.iob2_spans:
            record["spans"] = [
                {"class": name, "text": " ".join(words[begin:end]), "begin": begin, "end": end}
                for name, begin, end in extract_spans(tags)
            ]
        return Answer(text, record)

    def _encode_pairs(self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None) -> Columns:
        return self._encode_tagged(source, pairs, tokenizer, model)[0]

    def _encode_tagged(
        self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any
    ) -> tuple[dict[str, Ragged], Ragged]:
        """Columns "source" and "label" (-1 where no word begins), and the positions of the words."""
        columns, positions = self._encode_words(tokenizer, [words for words, _ in pairs], model)
        # Any model can be evaluated on tags that are not quite IOB2, except one that never predicts them.
        strict = model is None or bool(_crf_tags(model))
        labels = Ragged.from_rows([self._encode_label(source, k, *pair, strict) for k, pair in enumerate(pairs)])
        different = np.flatnonzero(labels.lengths != positions.lengths)
        if len(different):
            row = int(different[0])
            raise UserError(
                f"{locate_word(source, row, 0)}: {len(labels[row])} tags, and {type(tokenizer).__name__} makes "
                f"{len(positions[row])} ids of the words: tagging needs one id per word, as from WordsWithChars, or a "
                "sequence_format and a model that reads it"
            )
        flat = np.full(len(columns["source"].flat), -1, np.int32)
        flat[positions.flat] = labels.flat
        columns["label"] = Ragged(flat, columns["source"].offsets)
        return columns, positions

    def _encode_words(self, tokenizer: Tokenizer, texts: Sequence[str], model: Any) -> tuple[dict[str, Ragged], Ragged]:
        """Column "source", and the positions of each text's words in its `flat`; a long text becomes several rows."""
        if self.sequence_format is None:
            columns = source_columns(tokenizer, texts)
            return columns, Ragged(np.arange(len(columns["source"].flat)), columns["source"].offsets)
        max_length = None if model is None else max_input_positions(model)
        special = tokenizer.special
        no_piece = special.eos if special.unk is None else special.unk
        words_of_texts = [text.split() for text in texts]
        pieces_of_words = iter(encode_words(tokenizer, list(itertools.chain(*words_of_texts))))
        rows: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        begin = 0
        for words in words_of_texts:
            own_pieces = itertools.islice(pieces_of_words, len(words))
            pieces = [ids if len(ids) else np.array([no_piece]) for ids in own_pieces]
            first_pieces: list[np.ndarray] = [np.zeros(0, np.int64)]
            for part in _split_words(pieces, max_length and max_length - NUM_SPECIAL_IDS):
                sizes = np.array([len(ids) for ids in part], np.int64)
                rows.append(np.concatenate([[special.start], *part]))
                first_pieces.append(begin + 1 + np.cumsum(sizes) - sizes)
                begin += len(rows[-1])
            positions.append(np.concatenate(first_pieces))
        return {"source": Ragged.from_rows(rows)}, Ragged.from_rows(positions, np.int64)

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str, strict: bool = True) -> list[int]:
        words, tags = text.split(), label.split()
        if len(words) != len(tags):
            raise UserError(
                f"{locate_word(pairs, index, 0)}: {len(words)} words and {len(tags)} tags, expected one tag per word"
            )
        if strict and self.iob2_spans and (place := next(find_invalid_iob2(tags), None)) is not None:
            raise UserError(
                f"{locate_word(pairs, index, place)}: {words[place]!r} is {tags[place]} after "
                f"{tags[place - 1] if place else 'O'}: IOB2 begins a span with B{tags[place][1:]}. Fix the file, or "
                "read it through RepairTags(...)"
            )
        for place, tag in enumerate(tags):
            if tag not in self.labels:
                self._label_id(tag, "tag", f"{locate_word(pairs, index, place)}: {words[place]!r}")
        return [self.labels.index(tag) for tag in tags]

    def _predict_labels(
        self, trained: TrainedModel, columns: Columns, positions: Ragged, batch_tokens: int, progress: ProgressCallback
    ) -> Ragged:
        """The predicted labels: a row for each text, a label for each word."""
        source, max_length = columns["source"], max_input_positions(trained.model)
        if max_length is not None and (long := np.flatnonzero(source.lengths >= max_length)).size:
            raise UserError(
                f"text {long[0] + 1} has {source.lengths[long[0]] + 1} tokens with its special ids, but the model's "
                f"positions reach {max_length}, and every word needs a tag: cut the text in two"
            )
        predict_labels, params = _jitted_labels(trained.model), multihost.to_local(trained.params)
        inputs = {name: columns[name] for name in columns if name != "label"}
        rows = apply_to_rows(partial(predict_labels, params), trained, inputs, batch_tokens, progress)
        parts = [row[:length] for row, length in zip(rows, source.lengths.tolist(), strict=True)]
        return _select(np.concatenate([np.zeros(0, np.int32), *parts]), positions)

    def _span_scores(self, gold: Ragged, predicted: Ragged) -> Any:
        names = [[[self.labels[label] for label in row] for row in map(side.__getitem__, range(len(side)))]
                 for side in (gold, predicted)]  # fmt: skip
        return score_spans(*names)


def split_raw(text: str) -> list[tuple[str, tuple[int, int]]]:
    """The words of raw text with their offsets: between the word boundaries of Unicode (UAX #29), by the package regex.

    Punctuation marks and symbols are words; "isn't" and "3.50" are one each. Scripts without spaces between words get a
    word a character, but for runs of Katakana.
    """
    import regex

    return [(match.group(), match.span()) for match in regex.finditer(r"(?ws)\b\S.*?\b", text)]


def _crf_tags(model: Any) -> tuple[str, ...]:
    """The IOB2 tags between which the model forbids transitions."""
    return getattr(model, "tag_names", ()) if getattr(model, "crf", False) else ()


def _split_words(words: list[np.ndarray], max_ids: int | None) -> Iterator[list[np.ndarray]]:
    """Words in runs of at most `max_ids` ids; a word with more ids is cut."""
    part: list[np.ndarray] = []
    for word in words:
        if part and max_ids and sum(map(len, part)) + len(word) > max_ids:
            yield part
            part = []
        part.append(word[:max_ids])
    yield part


def _select(flat: np.ndarray, positions: Ragged) -> Ragged:
    return Ragged(flat[positions.flat], positions.offsets)


@lru_cache(maxsize=8)
def _jitted_labels(model: Any) -> Any:
    """The jitted labels of a model: its own `predict_labels` (a CRF's best path), or the argmax of its logits."""

    def predict_labels(params: Any, batch: Any) -> Any:
        if hasattr(type(model), "predict_labels"):
            return model.apply({"params": params}, batch, method="predict_labels")
        return model.apply({"params": params}, batch).argmax(-1)

    return jax.jit(predict_labels)

"""The task of tagging: a label for each word; with `spans`, the labels are IOB2 and whole spans are judged."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.sources.base import Pair, Pairs
from jaxlm.data.sources.conll import locate_word
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.inference.base import EVAL_BATCH_TOKENS, Answer, ProgressCallback, TrainedModel, eval_batches_with_progress
from jaxlm.metrics.classification import accuracy, confusion_matrix, macro_f1, per_class_counts
from jaxlm.metrics.spans import extract_spans, forbidden_transitions, score_spans
from jaxlm.models.properties import max_input_positions
from jaxlm.tasks.supervised import LabelTask, eval_loss, source_columns

NUM_SPECIAL_IDS = 2
"""Ids beside a text's own with a layout: one before it, one behind it."""


@dataclass(frozen=True)
class Tagging(LabelTask):
    """Words between white space to as many tags; the sources give pairs of both, each one line.

    With a `layout` a word may be several pieces, and its tag is that of the first one.

    spans: the labels are IOB2 tags, and F1 is of spans as seqeval counts them by default. Otherwise F1 is the mean of
    that of all tags.
    """

    iob2_spans: bool = False

    batch_columns: ClassVar[tuple[str, ...]] = ("source", "label")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iob2_spans:
            forbidden_transitions(self.labels)  # refuses what is not IOB2

    def _encode_columns(self, pairs: list[Pair], tokenizer: Tokenizer) -> Columns:
        return self._encode_pairs(self.train, pairs, tokenizer)[0]

    def validate(
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """Loss, accuracy of the tags, and F1 of the spans or the mean F1 of the tags."""
        self.check_model(trained.model, trained.tokenizer)
        columns, places = self._encode_pairs(self.valid, list(self.valid), trained.tokenizer, trained.model)
        figures = eval_loss(trained, objective, columns, batch_tokens)
        gold, said = (
            _select(columns["label"].flat, places),
            self._predict_labels(trained, columns, places, batch_tokens, progress),
        )
        counts_CC = confusion_matrix(gold.flat, said.flat, len(self.labels))
        f1 = self._span_scores(gold, said)[0].f1 if self.iob2_spans else macro_f1(counts_CC)
        return figures | {"valid/accuracy": accuracy(counts_CC), "valid/f1": f1}

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Accuracy, also of the words that the tokenizer does not know; each tag's figures; those of the spans."""
        self.check_model(trained.model, trained.tokenizer)
        pairs = self.pairs(split)
        columns, places = self._encode_pairs(pairs, list(pairs), trained.tokenizer, trained.model)
        gold, said = (
            _select(columns["label"].flat, places),
            self._predict_labels(trained, columns, places, EVAL_BATCH_TOKENS, progress),
        )
        counts_CC = confusion_matrix(gold.flat, said.flat, len(self.labels))
        unknown = trained.tokenizer.special.is_unknown(columns["source"].flat[places.flat])
        of_unknown_CC = confusion_matrix(gold.flat[unknown], said.flat[unknown], len(self.labels))
        figures: dict[str, Any] = {"split": split, "lines": len(gold), "words": len(gold.flat)}
        figures |= {"accuracy": accuracy(counts_CC), "macro_f1": macro_f1(counts_CC)}
        figures |= {"unknown": {"words": int(unknown.sum()), "accuracy": accuracy(of_unknown_CC)}}
        if self.iob2_spans:
            micro, by_kind = self._span_scores(gold, said)
            figures |= {key: value for key, value in micro.to_json().items() if key != "support"}
            figures["spans"] = {name: found.to_json() for name, found in by_kind.items()}
        figures["tags"] = {name: found.to_json() for name, found in per_class_counts(counts_CC, self.labels).items()}
        return figures

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The tags of each line's words, between single spaces; a word that was never seen gets one too.

        What is longer than the model's positions reach is read in parts, cut between words.
        """
        self.check_model(trained.model, trained.tokenizer)
        answers = [Answer("", self._json_record(line, [])) for line in lines]
        asked = [index for index, line in enumerate(lines) if line.strip()]
        if not asked:
            return answers
        columns, places = self._encode_words(trained.tokenizer, [lines[index] for index in asked], trained.model)
        said = self._predict_labels(trained, columns, places, EVAL_BATCH_TOKENS, progress)
        for row, index in enumerate(asked):
            tags = [self.labels[label] for label in said[row]]
            answers[index] = Answer(" ".join(tags), self._json_record(lines[index], tags))
        return answers

    def max_input_tokens(self, model: Any) -> int:
        """Nowhere."""
        return 0

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The first `count` test sentences: word/tag, and word/tag(right tag) where it is another."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self.predict(trained, [words for words, _ in pairs])
        for (words, tags), answer in zip(pairs, answers, strict=True):
            triples = zip(words.split(), answer.text.split(), tags.split(), strict=True)
            yield " ".join(f"{w}/{said}" + (f"({gold})" if said != gold else "") for w, said, gold in triples)

    def _json_record(self, line: str, tags: list[str]) -> dict[str, Any]:
        words = line.split()
        record: dict[str, Any] = {"source": line, "prediction": " ".join(tags), "words": words, "tags": tags}
        if self.iob2_spans:
            record["spans"] = [
                {"class": name, "text": " ".join(words[begin:end]), "begin": begin, "end": end}
                for name, begin, end in extract_spans(tags)
            ]
        return record

    def _encode_pairs(
        self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, model: Any = None
    ) -> tuple[dict[str, Ragged], Ragged]:
        """Columns with labels, and the places of the words."""
        columns, places = self._encode_words(tokenizer, [words for words, _ in pairs], model)
        labels = Ragged.from_rows([self._encode_label(source, index, *pair) for index, pair in enumerate(pairs)])
        differ = np.flatnonzero(labels.lengths != places.lengths)
        if len(differ):
            row = int(differ[0])
            raise UserError(
                f"{locate_word(source, row, 0)}: {len(labels[row])} tags, and {type(tokenizer).__name__} makes "
                f"{len(places[row])} ids of the words: tagging needs one id a word, as of WordsWithChars, or a layout "
                "and a model that reads it"
            )
        flat = np.full(len(columns["source"].flat), -1, np.int32)
        flat[places.flat] = labels.flat
        columns["label"] = Ragged(flat, columns["source"].offsets)
        return columns, places

    def _encode_words(self, tokenizer: Tokenizer, texts: Sequence[str], model: Any) -> tuple[dict[str, Ragged], Ragged]:
        """Column "source", and where in its `flat` the words of each text are: with a layout, their first pieces.

        A text of more than `most` ids with its marks is then several rows.
        """
        if self.sequence_format is None:
            columns = source_columns(tokenizer, texts)
            return columns, Ragged(np.arange(len(columns["source"].flat)), columns["source"].offsets)
        most = None if model is None else max_input_positions(model)
        special = tokenizer.special
        no_piece = special.eos if special.unk is None else special.unk
        words = [text.split() for text in texts]
        pieces = iter(tokenizer.encode([word for some in words for word in some]))
        rows: list[np.ndarray] = []
        places: list[np.ndarray] = []
        begin = 0
        for some in words:
            own = [piece if len(piece) else np.array([no_piece]) for piece in itertools.islice(pieces, len(some))]
            first: list[np.ndarray] = [np.zeros(0, np.int64)]
            for part in _split_words(own, most and most - NUM_SPECIAL_IDS):
                sizes = np.array([len(piece) for piece in part], np.int64)
                rows.append(np.concatenate([[special.start], *part]))
                first.append(begin + 1 + np.cumsum(sizes) - sizes)
                begin += len(rows[-1])
            places.append(np.concatenate(first))
        return {"source": Ragged.from_rows(rows)}, Ragged.from_rows(places, np.int64)

    def _encode_label(self, pairs: Pairs, index: int, text: str, label: str) -> list[int]:
        words, tags = text.split(), label.split()
        if len(words) != len(tags):
            raise UserError(
                f"{locate_word(pairs, index, 0)}: {len(words)} words and {len(tags)} tags, expected as many"
            )
        known = {name: number for number, name in enumerate(self.labels)}
        for place, tag in enumerate(tags):
            if tag not in known:
                raise UserError(
                    f"{locate_word(pairs, index, place)}: {words[place]!r} has the tag {tag!r}, which is none of "
                    "the task's "
                    f"labels {', '.join(self.labels)}. Mend the file, or add the tag to the labels and train anew."
                )
        return [known[tag] for tag in tags]

    def _predict_labels(
        self,
        trained: TrainedModel,
        columns: Columns,
        places: Ragged,
        batch_tokens: int,
        progress: ProgressCallback,
    ) -> Ragged:
        """The labels that the model says, a row a text, one a word."""
        best, source, params = _jitted_tags(trained.model), columns["source"], multihost.to_local(trained.params)
        most = max_input_positions(trained.model)
        if most is not None and (long := np.flatnonzero(source.lengths >= most)).size:
            raise UserError(
                f"text {long[0] + 1} has {source.lengths[long[0]] + 1} tokens with its marks, but the model's "
                f"positions reach {most}, and every word needs a tag: cut the text in two"
            )
        flat = np.zeros(len(source.flat), np.int32)
        for row_B, batch in eval_batches_with_progress(
            {name: columns[name] for name in columns if name != "label"},
            batch_tokens,
            progress,
            most,
            trained.tokenizer.special,
        ):
            label_BS = np.asarray(best(params, batch))
            for at in np.flatnonzero(row_B >= 0):
                begin, end = source.offsets[row_B[at]], source.offsets[row_B[at] + 1]
                flat[begin:end] = label_BS[at, : end - begin]
        return _select(flat, places)

    def _span_scores(self, gold: Ragged, predicted: Ragged) -> Any:
        return score_spans(self._label_names(gold), self._label_names(predicted))

    def _label_names(self, column: Ragged) -> list[list[str]]:
        return [[self.labels[label] for label in column[row]] for row in range(len(column))]


def _split_words(words: list[np.ndarray], room: int | None) -> Iterator[list[np.ndarray]]:
    """Words in runs of at most `room` ids; of a word that has more by itself, the first ones."""
    part: list[np.ndarray] = []
    for word in words:
        if part and room and sum(map(len, part)) + len(word) > room:
            yield part
            part = []
        part.append(word[:room])
    yield part


def _select(flat: np.ndarray, places: Ragged) -> Ragged:
    return Ragged(flat[places.flat], places.offsets)


@lru_cache(maxsize=8)
def _jitted_tags(model: Any) -> Any:
    """The jitted labels of a model: its own `best`, or the likeliest by its logits."""

    def best(params, batch):
        if hasattr(type(model), "predict_labels"):
            return model.apply({"params": params}, batch, method="predict_labels")
        return model.apply({"params": params}, batch).argmax(-1)

    return jax.jit(best)

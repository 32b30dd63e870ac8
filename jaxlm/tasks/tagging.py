"""The task of tagging: a label for each word; with `spans`, the labels are IOB2 and whole spans are judged."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm import hosts
from jaxlm.agreement import accuracy, by_class, confusion, macro_f1
from jaxlm.data.batching import Columns
from jaxlm.data.conll import where
from jaxlm.data.pairs import Pair, Pairs, read
from jaxlm.data.ragged import Ragged
from jaxlm.data.text import BadLines
from jaxlm.data.vocabulary import BOS, UNK, Tokenizer
from jaxlm.errors import UserError
from jaxlm.models.reach import reach
from jaxlm.spans import forbidden_transitions, score_spans, spans
from jaxlm.tasks.labelling import TOKENS, Labelled, batches, mean_loss, source_columns
from jaxlm.tasks.task import Answer, Progress
from jaxlm.types import Params

MARKS = 2
"""Ids beside a text's own with a layout: one before it, one behind it."""


@dataclass(frozen=True)
class Tagging(Labelled):
    """Words between white space to as many tags; the sources give pairs of both, each one line.

    With a `layout` a word may be several pieces, and its tag is that of the first one.

    spans: the labels are IOB2 tags, and F1 is of spans as seqeval counts them by default. Otherwise F1 is the mean of
    that of all tags.
    """

    spans: bool = False

    reads: ClassVar[tuple[str, ...]] = ("source", "label")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spans:
            forbidden_transitions(self.labels)  # refuses what is not IOB2

    def columns(self, tokenizer: Tokenizer, folder: Path | None, bad: BadLines) -> Columns:
        """Columns "source", "label" and, if the tokenizer spells, "character" of the training pairs, in memory."""
        return self._columns(self.train, list(read(self.train, bad)), tokenizer)[0]

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """Loss, accuracy of the tags, and F1 of the spans or the mean F1 of the tags."""
        self.check_model(model, tokenizer)
        columns, places = self._columns(self.valid, list(self.valid), tokenizer, reach(model))
        figures = mean_loss(model, objective, params, columns, tokens)
        gold, said = _at(columns["label"].flat, places), self._said(model, params, columns, places, tokens, progress)
        counts_CC = confusion(gold.flat, said.flat, len(self.labels))
        f1 = self._span_scores(gold, said)[0].f1 if self.spans else macro_f1(counts_CC)
        return figures | {"valid/accuracy": accuracy(counts_CC), "valid/f1": f1}

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """Accuracy, also of the words that the tokenizer does not know; each tag's figures; those of the spans."""
        self.check_model(model, tokenizer)
        pairs = self.pairs(split)
        columns, places = self._columns(pairs, list(pairs), tokenizer, reach(model))
        gold, said = _at(columns["label"].flat, places), self._said(model, params, columns, places, TOKENS, progress)
        counts_CC = confusion(gold.flat, said.flat, len(self.labels))
        unknown = columns["source"].flat[places.flat] == UNK
        of_unknown_CC = confusion(gold.flat[unknown], said.flat[unknown], len(self.labels))
        figures: dict[str, Any] = {"split": split, "lines": len(gold), "words": len(gold.flat)}
        figures |= {"accuracy": accuracy(counts_CC), "macro_f1": macro_f1(counts_CC)}
        figures |= {"unknown": {"words": int(unknown.sum()), "accuracy": accuracy(of_unknown_CC)}}
        if self.spans:
            micro, by_kind = self._span_scores(gold, said)
            figures |= {key: value for key, value in micro.to_json().items() if key != "support"}
            figures["spans"] = {name: found.to_json() for name, found in by_kind.items()}
        figures["tags"] = {name: found.to_json() for name, found in by_class(counts_CC, self.labels).items()}
        return figures

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[Answer]:
        """The tags of each line's words, between single spaces; a word that was never seen gets one too.

        What is longer than the model's positions reach is read in parts, cut between words.
        """
        self.check_model(model, tokenizer)
        answers = [Answer("", self._record(line, [])) for line in lines]
        asked = [index for index, line in enumerate(lines) if line.strip()]
        if not asked:
            return answers
        columns, places = self._source(tokenizer, [lines[index] for index in asked], reach(model))
        said = self._said(model, params, columns, places, TOKENS, progress)
        for row, index in enumerate(asked):
            tags = [self.labels[label] for label in said[row]]
            answers[index] = Answer(" ".join(tags), self._record(lines[index], tags))
        return answers

    def cut_at(self, model: Any) -> int:
        """Nowhere."""
        return 0

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> Iterator[str]:
        """The first `count` test sentences: word/tag, and word/tag(right tag) where it is another."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self.predict(model, params, tokenizer, [words for words, _ in pairs])
        for (words, tags), answer in zip(pairs, answers, strict=True):
            triples = zip(words.split(), answer.text.split(), tags.split(), strict=True)
            yield " ".join(f"{w}/{said}" + (f"({gold})" if said != gold else "") for w, said, gold in triples)

    def _record(self, line: str, tags: list[str]) -> dict[str, Any]:
        words = line.split()
        record: dict[str, Any] = {"source": line, "prediction": " ".join(tags), "words": words, "tags": tags}
        if self.spans:
            record["spans"] = [
                {"class": name, "text": " ".join(words[begin:end]), "begin": begin, "end": end}
                for name, begin, end in spans(tags)
            ]
        return record

    def _columns(
        self, source: Pairs, pairs: list[Pair], tokenizer: Tokenizer, most: int | None = None
    ) -> tuple[dict[str, Ragged], Ragged]:
        """Columns with labels, and the places of the words."""
        columns, places = self._source(tokenizer, [words for words, _ in pairs], most)
        labels = Ragged.of([self._ids(source, index, *pair) for index, pair in enumerate(pairs)])
        differ = np.flatnonzero(labels.lengths != places.lengths)
        if len(differ):
            row = int(differ[0])
            raise UserError(
                f"{where(source, row, 0)}: {len(labels[row])} tags, and {type(tokenizer).__name__} makes "
                f"{len(places[row])} ids of the words: tagging needs one id a word, as of SpelledWords, or a layout "
                "and a model that reads it"
            )
        flat = np.full(len(columns["source"].flat), -1, np.int32)
        flat[places.flat] = labels.flat
        columns["label"] = Ragged(flat, columns["source"].offsets)
        return columns, places

    def _source(self, tokenizer: Tokenizer, texts: Sequence[str], most: int | None) -> tuple[dict[str, Ragged], Ragged]:
        """Column "source", and where in its `flat` the words of each text are: with a layout, their first pieces.

        A text of more than `most` ids with its marks is then several rows.
        """
        if self.layout is None:
            columns = source_columns(tokenizer, texts)
            return columns, Ragged(np.arange(len(columns["source"].flat)), columns["source"].offsets)
        words = [text.split() for text in texts]
        pieces = iter(tokenizer.encode([word for some in words for word in some]))
        rows: list[np.ndarray] = []
        places: list[np.ndarray] = []
        begin = 0
        for some in words:
            own = [piece if len(piece) else np.array([UNK]) for piece in itertools.islice(pieces, len(some))]
            first: list[np.ndarray] = [np.zeros(0, np.int64)]
            for part in _parts(own, most and most - MARKS):
                sizes = np.array([len(piece) for piece in part], np.int64)
                rows.append(np.concatenate([[BOS], *part]))
                first.append(begin + 1 + np.cumsum(sizes) - sizes)
                begin += len(rows[-1])
            places.append(np.concatenate(first))
        return {"source": Ragged.of(rows)}, Ragged.of(places, np.int64)

    def _ids(self, pairs: Pairs, index: int, text: str, label: str) -> list[int]:
        words, tags = text.split(), label.split()
        if len(words) != len(tags):
            raise UserError(f"{where(pairs, index, 0)}: {len(words)} words and {len(tags)} tags, expected as many")
        known = {name: number for number, name in enumerate(self.labels)}
        for place, tag in enumerate(tags):
            if tag not in known:
                raise UserError(
                    f"{where(pairs, index, place)}: {words[place]!r} has the tag {tag!r}, which is none of the task's "
                    f"labels {', '.join(self.labels)}. Mend the file, or add the tag to the labels and train anew."
                )
        return [known[tag] for tag in tags]

    def _said(
        self, model: Any, params: Params, columns: Columns, places: Ragged, tokens: int, progress: Progress
    ) -> Ragged:
        """The labels that the model says, a row a text, one a word."""
        best, source, params = _best(model), columns["source"], hosts.own(params)
        most = reach(model)
        if most is not None and (long := np.flatnonzero(source.lengths >= most)).size:
            raise UserError(
                f"text {long[0] + 1} has {source.lengths[long[0]] + 1} tokens with its marks, but the model's "
                f"positions reach {most}, and every word needs a tag: cut the text in two"
            )
        flat = np.zeros(len(source.flat), np.int32)
        for row_B, batch in batches(
            {name: columns[name] for name in columns if name != "label"}, tokens, progress, most
        ):
            label_BS = np.asarray(best(params, batch))
            for at in np.flatnonzero(row_B >= 0):
                begin, end = source.offsets[row_B[at]], source.offsets[row_B[at] + 1]
                flat[begin:end] = label_BS[at, : end - begin]
        return _at(flat, places)

    def _span_scores(self, gold: Ragged, said: Ragged) -> Any:
        return score_spans(self._names(gold), self._names(said))

    def _names(self, column: Ragged) -> list[list[str]]:
        return [[self.labels[label] for label in column[row]] for row in range(len(column))]


def _parts(words: list[np.ndarray], room: int | None) -> Iterator[list[np.ndarray]]:
    """Words in runs of at most `room` ids; of a word that has more by itself, the first ones."""
    part: list[np.ndarray] = []
    for word in words:
        if part and room and sum(map(len, part)) + len(word) > room:
            yield part
            part = []
        part.append(word[:room])
    yield part


def _at(flat: np.ndarray, places: Ragged) -> Ragged:
    return Ragged(flat[places.flat], places.offsets)


@lru_cache(maxsize=8)
def _best(model: Any) -> Any:
    """The jitted labels of a model: its own `best`, or the likeliest by its logits."""

    def best(params, batch):
        if hasattr(type(model), "best"):
            return model.apply({"params": params}, batch, method="best")
        return model.apply({"params": params}, batch).argmax(-1)

    return jax.jit(best)

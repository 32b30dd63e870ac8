"""The tasks of frames: tags of words, and answers that are JSON lists; both are judged as multisets of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from experiments.frame_semantics.answers import answer_schema, read_answer
from experiments.frame_semantics.names import FRAMES
from experiments.frame_semantics.scores import frame_figures, score_second_annotator
from experiments.frame_semantics.sentences import NO_FRAME, FrameSentences, Pair
from jaxlm import InstructionTuning, Sampler, Tagging, UserError
from jaxlm.data.chat.encoding import ChatFormat
from jaxlm.data.chat.template import PLAIN
from jaxlm.data.ragged import Ragged
from jaxlm.grammar.constraint import schema_constraint
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel, non_blank
from jaxlm.inference.generate import GenerationRequest, draw_samples
from jaxlm.tasks.base import prefix_valid


def check_sentences(task: Any) -> None:
    """Raises UserError if the splits of a task are of several rotations or sets of frames: they would overlap."""
    splits = (task.train, task.valid, task.test, *task.extra_tests.values())
    kinds = {(source.rotation, source.frames) for source in splits if isinstance(source, FrameSentences)}
    if len(kinds) > 1:
        raise UserError(
            f"the splits have the rotations and frames {sorted(kinds)}: give all of them the same "
            "(--task.train.rotation, --task.valid.rotation, --task.test.rotation)"
        )


def _figures(predicted: Sequence[Sequence[Pair]], source: FrameSentences, train: FrameSentences) -> dict[str, Any]:
    """The scores on the sentences of a source, and those of the second annotator on the ones that both read."""
    sentences = source.sentences()
    learned = {frame for sentence in train.sentences() for _, frame in sentence.frames}
    figures = frame_figures(predicted, [sentence.pairs for sentence in sentences], learned)
    count, scores = score_second_annotator(sentences, FRAMES[source.frames])
    return figures | {"second_annotator": {"lines": count} | {name: f1 for name, (_, _, f1) in scores.items()}}


@dataclass(frozen=True)
class FrameTagging(Tagging):
    """A tag for each word, its frame or `NO_FRAME`. F1 of validation is that of the words with a frame."""

    def check(self) -> None:
        check_sentences(self)
        super().check()

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """The figures of `Tagging`; without the loss for a model that has none."""
        if not hasattr(trained.model, "fit"):
            return super().validate(trained, objective, batch_tokens)
        _, gold, predicted = self._predict_pairs(trained, self.valid, batch_tokens)
        return prefix_valid(self._valid_metrics(gold, predicted))

    def _valid_metrics(self, gold: Ragged, predicted: Ragged) -> dict[str, float]:
        right = gold.flat == predicted.flat
        has_frame, has_answer = gold.flat > 0, predicted.flat > 0
        f1 = 2 * (right & has_frame).sum() / max(has_frame.sum() + has_answer.sum(), 1)
        return {"accuracy": float(right.mean()), "f1": float(f1)}

    def _answer(self, line: str, output: np.ndarray | None) -> Answer:
        """The tags of the words; in JSON also the pairs [frame, word]."""
        answer = super()._answer(line, output)
        tagged = zip(answer.json["tags"], answer.json["words"], strict=False)
        return Answer(answer.text, answer.json | {"frames": [(tag, word) for tag, word in tagged if tag != NO_FRAME]})

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The scores of pairs, frames and triggers (`frame_figures`), and the agreement of two annotators."""
        self.check_model(trained.model, trained.tokenizer)
        source: Any = self.split(split)
        sentences = source.sentences()
        answers = self.predict(trained, [sentence.text for sentence in sentences], progress)
        predicted = [answer.json["frames"] for answer in answers]
        return {"split": split, "lines": len(sentences)} | _figures(predicted, source, self.train)


@dataclass(frozen=True)
class FrameWriting(InstructionTuning):
    """A JSON list of pairs [frame, word] for each sentence. `evaluate` and `predict` admit nothing else.

    Attributes:
      constrained: whether `predict` admits only pairs of a frame of the set and a word of the sentence.
    """

    constrained: bool = True

    eval_only_fields: ClassVar[tuple[str, ...]] = (*InstructionTuning.eval_only_fields, "constrained")

    def check(self) -> None:
        check_sentences(self)
        super().check()

    def write(self, trained: TrainedModel, lines: Sequence[str], constrained: bool) -> list[str]:
        """The answer to each sentence, by greedy search."""
        schema = schema_constraint(answer_schema(FRAMES[self.train.frames])) if constrained else None
        request = GenerationRequest(
            Sampler(temperature=0.0), constraint=schema, chat=ChatFormat(self.chat_template or PLAIN)
        )
        return [sample.text.strip() for sample in draw_samples(trained, lines, request, defaults=self.generation)]

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """The perplexity of the answers; with the constraint, and without it, the share of answers that are lists of
        pairs (percent), the triggers that do not occur in their sentence, and the scores of the pairs.
        """
        figures = InstructionTuning.evaluate(replace(self, answered=0), trained, split)
        source: Any = self.split(split)
        sentences = source.sentences()
        for name, constrained in (("constrained", True), ("unconstrained", False)):
            texts = self.write(trained, [sentence.text for sentence in sentences], constrained)
            answers = [read_answer(text) for text in texts]
            pairs = [answer or [] for answer in answers]
            invented = sum(
                word not in sentence.words
                for answer, sentence in zip(pairs, sentences, strict=True)
                for _, word in answer
            )
            made = {"format": 100.0 * float(np.mean([answer is not None for answer in answers]))}
            made |= {"hallucinated_triggers": invented, "triggers": sum(map(len, pairs))}
            figures[name] = made | _figures(pairs, source, self.train)
        if progress:
            progress(len(sentences))
        return figures

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The pairs of each line."""
        answers, indices = [Answer("", {"text": "", "frames": []}) for _ in lines], non_blank(lines)
        texts = self.write(trained, [lines[index] for index in indices], self.constrained)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = Answer(text.replace("\n", " "), {"text": text, "frames": read_answer(text)})
        if progress:
            progress(len(lines))
        return answers

"""A trained model with strings in and strings, scores or vectors out: the methods behind the commands."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.experiment import TrainedRun
from jaxlm.grammar.constraint import Constraint
from jaxlm.inference.base import Answer, ProgressCallback
from jaxlm.inference.constraints import constrain_search
from jaxlm.inference.embed import EVAL_BATCH_TOKENS, PoolingMode, TextEmbedder
from jaxlm.inference.generate import GenerationRequest, Sample, TextCallback, draw_samples
from jaxlm.inference.score import TextScore, score_pairs
from jaxlm.inference.translate import Search, translate

MAX_TEXT_TOKENS = 4096
"""Tokens of a text that a language model scores; the rest of a longer text is left out."""


ANCESTRAL_SAMPLING = Sampler()
"""Draws from the model's own distribution."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline(TrainedRun):
    """The trained model of a workdir, ready for lists of strings; `jaxlm.load` makes one.

    Each method is the command of the same name: the same answers, in the order of the input. What the model is asked
    (the search, the labels, the data) is the task's, `experiment.task`; a frozen copy with another task comes from
    `dataclasses.replace`.
    """

    def predict(self, lines: Sequence[str]) -> list[str]:
        """The task's answer to each line: its translation, class, tags, ...; "" to a blank line."""
        return [answer.text for answer in self.answers(lines)]

    def answers(self, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The same with their records (`predict --jsonl`): hypotheses and scores, probabilities, spans, ..."""
        return self.experiment.task.predict(self, lines, progress)

    def translate(
        self, lines: Sequence[str], search: Search | None = None, progress: ProgressCallback = None
    ) -> list[str]:
        """The best translation of each line, by the task's search or another one.

        Raises UserError if the task has no search.
        """
        hypotheses = translate(self, lines, search or self._search(), progress)
        return [best_first[0].text for best_first in hypotheses]

    def generate(
        self,
        prompts: Sequence[str],
        sampler: Sampler = ANCESTRAL_SAMPLING,
        *,
        num_samples: int = 1,
        max_tokens: int | None = None,
        seed: int = 0,
        stop_strings: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> list[Sample]:
        """Sampled texts, `num_samples` for each prompt. See `jaxlm.inference.generate.GenerationRequest`."""
        request = GenerationRequest(sampler, seed, num_samples, max_tokens, tuple(stop_strings), constraint)
        return list(self.generate_stream(prompts, request))

    def generate_stream(
        self, prompts: Sequence[str], request: GenerationRequest, on_text: TextCallback = None
    ) -> Iterator[Sample]:
        """The same, each sample as soon as it is complete; `on_text` gets the pieces of the first one of a prompt.

        Raises UserError if the model of the task writes no text.
        """
        task = self.experiment.task
        if not task.input_kind:
            raise UserError(f"the task {type(task).__name__} writes no text: `predict` answers lines")
        return draw_samples(self, prompts, request, task.search if task.input_kind == "source" else None, on_text)

    def score(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[TextScore]:
        """The log-probability of each text (a language model), or of each (source, target) pair's target.

        Raises UserError if the model of the task gives no text a probability.
        """
        task: Any = self.experiment.task
        if not task.input_kind:
            raise UserError(f"the task {type(task).__name__} gives no text a probability")
        pairs: Any = [(None, text) for text in texts] if task.input_kind == "text" else texts
        batch_tokens = task.batch_tokens if task.search is None else task.search.batch_tokens
        return score_pairs(self, pairs, batch_tokens, self.max_score_tokens, task.append_eos)

    @property
    def max_score_tokens(self) -> int:
        """Tokens of a side beyond which `score` leaves the rest out."""
        search = self.experiment.task.search
        return MAX_TEXT_TOKENS if search is None else search.max_source_len

    def embed(
        self,
        lines: Sequence[str],
        pooling: PoolingMode = "mean",
        layer: int | None = None,
        *,
        batch_tokens: int = EVAL_BATCH_TOKENS,
        progress: ProgressCallback = None,
    ) -> np.ndarray | list[np.ndarray]:
        """float32 (lines, width); with pooling="token" a list of (positions, width). See `TextEmbedder`."""
        vectors = TextEmbedder(pooling, layer, batch_tokens)(self, lines, progress)
        if pooling == "token":
            return vectors
        return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)

    def evaluate(self, split: str = "test", progress: ProgressCallback = None) -> dict[str, Any]:
        """The scores of a split ("train", "valid", "test" or one of the task's `extra_tests`)."""
        return self.experiment.task.evaluate(self, split, progress)

    def constrain(self, constraint: Constraint) -> "Pipeline":
        """A pipeline whose `predict`, `answers` and `translate` give only texts that keep to a constraint.

        Raises UserError if the task has no search, or if the tokenizer cannot write any such text.
        """
        search = constrain_search(self._search(), constraint, self.tokenizer)
        task: Any = dataclasses.replace(self.experiment.task, search=search)  # type: ignore[type-var]
        return dataclasses.replace(self, experiment=dataclasses.replace(self.experiment, task=task))

    def _search(self) -> Search:
        task = self.experiment.task
        if task.search is None:
            raise UserError(f"the task {type(task).__name__} does not search: `predict` answers lines")
        return task.search

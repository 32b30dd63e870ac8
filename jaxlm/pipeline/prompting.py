"""Prompts with shots, given to a trained model: the figures of a task for a number of shots and a seed."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxlm.config.checks import MAX_INT
from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.chat.dialogue import Dialogue, Turn
from jaxlm.data.chat.encoding import DialogueEncoder, dialogue_columns
from jaxlm.data.chat.template import ChatTemplate
from jaxlm.decode.sampling import Sampler
from jaxlm.decode.score import score_targets
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import Constraint
from jaxlm.inference.generate import GenerationDefaults
from jaxlm.metrics.calibration import by_batch, by_context, choice_figures, softmax
from jaxlm.metrics.text import last_number, token_f1
from jaxlm.models.properties import max_target_positions
from jaxlm.pipeline.pipeline import Pipeline
from jaxlm.tasks.instruction_tuning import InstructionTuning
from jaxlm.tasks.prompting import Fields, Prompted, ShotOrder

PLAIN_TEXT = ChatTemplate(roles=(("user", "", ""),))
"""A prompt and its answer are one text."""

EMPTY_INPUTS = ("", "N/A", "[MASK]")
"""The inputs without content of contextual calibration."""

Prompt = tuple[Dialogue, tuple[str, ...]]
"""A prompt and texts that may follow it."""


@dataclass(frozen=True, eq=False)
class PromptedModel:
    """A model that is asked by prompts: it continues them in a chat template, or reads the last turn as its source."""

    pipeline: Pipeline
    template: Any = PLAIN_TEXT

    @cached_property
    def encoder(self) -> DialogueEncoder | None:
        """The encoder of the prompts; None for a model with a source."""
        is_text = self.pipeline.experiment.task.input_kind == "text"
        return DialogueEncoder(self.pipeline.tokenizer, self.template) if is_text else None

    @cached_property
    def limit(self) -> int:
        """The most tokens of a prompt and its answer, or of a source, that are read."""
        own = max_target_positions(self.pipeline.model) if self.encoder else self.pipeline.max_score_tokens
        return min(filter(None, (self.pipeline.generation_defaults.max_length, own)), default=MAX_INT)

    def num_tokens(self, prompt: Prompt, answer_tokens: int = 0) -> int:
        """The tokens of a source, or of a prompt and the longest of its texts, or `answer_tokens` if they are more."""
        if self.encoder is None:
            return len(self.pipeline.tokenizer.encode([last_turn(prompt[0])])[0]) + 1
        rows = self.encoder.encode([prompt[0].with_answer(text) for text in prompt[1]])
        return max(max(len(row.loss_mask), int(np.argmax(row.loss_mask)) + answer_tokens) for row in rows)

    def score(self, prompts: Sequence[Prompt], with_end: bool = False) -> np.ndarray:
        """log p of the K texts after each prompt, in nats, (N, K); `with_end`: of their ends too, as after a source."""
        number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}  # equal ones are read once
        pairs, tokenizer = [(prompt, text) for prompt, texts in number for text in texts], self.pipeline.tokenizer
        scores = np.zeros(len(pairs))
        if self.encoder is None:
            scores[:] = [
                each.logprob for each in self.pipeline.score([(last_turn(p), text.strip()) for p, text in pairs])
            ]
        else:
            rows = self.encoder.encode([prompt.with_answer(text) for prompt, text in pairs])
            if not with_end:
                ends = (*self.encoder.stop_ids, tokenizer.special.eos)
                rows = [replace(row, loss_mask=row.loss_mask * ~np.isin([*row.ids, ends[-1]], ends)) for row in rows]
            for row_B, batch in eval_batches(dialogue_columns(rows, tokenizer), special=tokenizer.special):
                scored = score_targets(self.pipeline.model, self.pipeline.params, batch)
                scores[row_B[row_B >= 0]] = np.asarray(scored.logprob_B)[row_B >= 0]
        return scores.reshape(len(number), -1)[[number[prompt] for prompt in prompts]]

    def answer(
        self, prompts: Sequence[Dialogue], options: GenerationDefaults, seed: int = 0, allowed: Constraint | None = None
    ) -> list[tuple[str, str]]:
        """(text, reason of its end) of one answer to each prompt."""
        if self.encoder:
            none: Any = ()
            task = InstructionTuning(none, none, none, chat_template=self.template, generation=options)
            return task.answer(self.pipeline, prompts, seed, allowed)
        limits: Any = {"max_tokens": options.max_tokens, "seed": seed, "constraint": allowed}
        samples = self.pipeline.generate(list(map(last_turn, prompts)), options.sampler, **limits)
        return [(sample.text, sample.reason) for sample in samples]


def last_turn(prompt: Dialogue) -> str:
    """The text of the last turn of a prompt."""
    return prompt.turns[-1].content


@dataclass(frozen=True, eq=False)
class PromptEvaluation:
    """A task put to a model: call it with a number of shots and a seed.

    Attributes:
      kind: "choice": the choice with the highest log-probability; "generate": a text, by greedy search, if `allowed`.
      calibrate: the correction of the log-probabilities of choices: "none", "context" or "batch".
      limit: rows of the test part, those with the smallest hashes; None: all.
    """

    model: PromptedModel
    task: Prompted
    kind: str = "choice"
    calibrate: str = "none"
    allowed: Constraint | None = None
    limit: int | None = None

    @cached_property
    def data(self) -> tuple[list[Fields], ShotOrder]:
        """The rows of the test part in the order of their hashes, and those of the training part."""
        test, train = self.task.rows(self.task.test), self.task.rows(self.task.train)
        return sorted(test, key=self.task.digest)[: self.limit], ShotOrder(self.task, train)

    def __call__(self, shots: int, seed: int) -> dict[str, Any]:
        """The figures: shares from 0 to 1, with the standard error, sd (n - 1) / sqrt(n), of the first one.

        "dropped_shots" were too many for the model, over all rows. Raises UserError for a question without room.
        """
        rows, order = self.data
        pairs = [(row, self.fit(row, order.shots(row, shots, seed))) for row in rows]
        figures = self._choose(pairs) if self.kind == "choice" else self._generate(pairs)
        first = np.asarray(next(iter(figures.values())), float)
        error = first.std(ddof=len(first) > 1) / len(first) ** 0.5
        dropped = shots * len(rows) - sum(len(kept) for _, kept in pairs)
        means = {name: float(np.mean(value)) for name, value in figures.items()} | {"standard_error": float(error)}
        return {"shots": shots, "seed": seed, "lines": len(rows), "dropped_shots": dropped} | means

    def prompt(self, row: Fields, shots: Sequence[Fields], question: Fields | None = None) -> Prompt:
        """A prompt and its candidates, which begin with the space that the prompt ends with."""
        chat, (texts, _) = self.model.template is not PLAIN_TEXT, self.task.candidates(row)
        prompt, space = self.task.dialogue(question or row, shots, chat)
        return prompt, tuple(text.strip() if chat else space + text for text in texts)

    def fit(self, row: Fields, shots: list[Fields]) -> list[Fields]:
        """The last shots for which there is room."""
        room, limit = self.task.max_tokens if self.kind == "generate" else 0, self.model.limit

        def size(drop: int) -> int:
            return self.model.num_tokens(self.prompt(row, shots[drop:]), room)

        drop = 0 if size(0) <= limit else bisect_left(range(len(shots) + 1), -limit, key=lambda drop: -size(drop))
        if drop > len(shots):
            problem = f"has {size(len(shots))} tokens, more than {limit}: shorten it or the instruction"
            raise UserError(f"the question {self.task.fill(self.task.ask, row)!r:.60} with its answer {problem}")
        return shots[drop:]

    def _choose(self, pairs: Sequence[tuple[Fields, list[Fields]]]) -> dict[str, Any]:
        """Hits of the rows by four scores, and figures of the probabilities."""
        prompts = [self.prompt(*pair) for pair in pairs]
        gold_N = np.array([self.task.candidates(row)[1] for row, _ in pairs])
        empty = [dict.fromkeys(pairs[0][0], text) for text in EMPTY_INPUTS]
        premise = self.task.fill(self.task.ask, empty[0]).rstrip().rpartition("\n")[2]
        score_NC = logprob_NC = self.model.score(prompts)
        prior_NC = self.model.score([(Dialogue((Turn("user", premise),)), texts) for _, texts in prompts])
        if self.calibrate == "context":
            empties = [self.prompt(*pair, question) for pair in pairs for question in empty]
            logprob_NC = by_context(score_NC, self.model.score(empties).reshape(len(prompts), len(empty), -1))
        elif self.calibrate == "batch":
            logprob_NC = by_batch(score_NC)
        characters_NC, bytes_NC = (
            np.array([[len(text.strip().encode(code, "replace")) for text in texts] for _, texts in prompts])
            for code in ("utf-32-le", "utf-8")  # four bytes a character
        )
        scores = {"": logprob_NC, "_norm": score_NC / characters_NC, "_bytes": score_NC / bytes_NC}
        scores["_pmi"] = score_NC - prior_NC
        hits: dict[str, Any] = {f"accuracy{name}": x_NC.argmax(axis=1) == gold_N for name, x_NC in scores.items()}
        return hits | choice_figures(softmax(logprob_NC), gold_N)

    def _generate(self, pairs: Sequence[tuple[Fields, list[Fields]]]) -> dict[str, Any]:
        options = GenerationDefaults(Sampler(temperature=0.0), self.task.max_tokens)
        answers = self.model.answer([self.prompt(*pair)[0] for pair in pairs], options, allowed=self.allowed)
        figures: dict[str, list[float]] = {"exact_match": [], "last_number": [], "token_f1": []}
        for (row, _), (text, _) in zip(pairs, answers, strict=True):
            text, gold = text.lstrip(), row[self.task.target].strip()
            ends = [end for end in map(text.find, self.task.stop) if end >= 0]
            answer = text[: min(ends, default=None)].strip()
            figures["exact_match"].append(answer == gold)
            figures["last_number"].append(last_number(answer) == last_number(gold) != "")
            figures["token_f1"].append(token_f1(answer, gold))
        return figures

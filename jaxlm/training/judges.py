"""Judges of answers, called with (prompts, answers, rows): they return one number for each answer.

A judge of your own is a frozen dataclass with `__call__`, or with the method `reward` of `AnswerJudge`. It must be
pure: a resumed run judges the same answers again.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxlm.data.chat.dialogue import Dialogue
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import schema_constraint
from jaxlm.json_files import parse_json
from jaxlm.models.reward_model import RewardModel
from jaxlm.workdir import Workdir


class AnswerJudge:
    """Base of the judges that look at one answer at a time."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Dialogue]) -> list[float]:
        return [float(self.reward(*each)) for each in zip(prompts, answers, rows, strict=True)]

    def reward(self, prompt: str, answer: str, row: Dialogue) -> float:
        """The reward of one answer."""
        raise NotImplementedError


@dataclass(frozen=True)
class RegexMatch(AnswerJudge):
    """1 for an answer that matches `pattern` as a whole, else 0."""

    pattern: str

    def reward(self, prompt: str, answer: str, row: Dialogue) -> float:
        return re.fullmatch(self.pattern, answer, re.DOTALL) is not None


@dataclass(frozen=True)
class ExactMatch(AnswerJudge):
    """1 for the answer of the row, up to white space, else 0. Raises UserError for a row without an answer."""

    def reward(self, prompt: str, answer: str, row: Dialogue) -> float:
        if not (expected := row.answer.split()):
            raise UserError(f"ExactMatch: the row of the prompt {prompt!r:.200} has no answer to compare with: add it")
        return answer.split() == expected


@dataclass(frozen=True)
class Arithmetic(AnswerJudge):
    """1 if the last number of the answer is the value of the prompt's last expression, such as 12 + 3 * 4, else 0.

    Raises UserError for a prompt without one.
    """

    def reward(self, prompt: str, answer: str, row: Dialogue) -> float:
        if not (expressions := re.findall(r"\d{1,9}(?:\s*[-+*]\s*\d{1,9}){1,20}", prompt)):
            raise UserError(f"Arithmetic: the prompt {prompt!r:.200} has no sum, difference or product of numbers")
        terms = "".join(expressions[-1].split()).replace("-", "+-").split("+")
        numbers = re.findall(r"-?\d{1,100}", answer)
        return bool(numbers) and int(numbers[-1]) == sum(math.prod(map(int, term.split("*"))) for term in terms)


@lru_cache(maxsize=8)
def _schema_automaton(schema: str) -> Any:
    return schema_constraint(parse_json(schema, "the schema", Any, "write a JSON text")).automaton


@dataclass(frozen=True)
class JsonValid(AnswerJudge):
    """1 for JSON, with any white space, that `schema`, a JSON text, admits (`jaxlm.grammar.json_schema`), else 0."""

    schema: str

    def __post_init__(self) -> None:
        _schema_automaton(self.schema)

    def reward(self, prompt: str, answer: str, row: Dialogue) -> float:
        try:
            text = json.dumps(json.loads(answer), ensure_ascii=False)
        except (ValueError, RecursionError):
            return False
        return _schema_automaton(self.schema).accepts(text.encode(errors="surrogatepass"))


@dataclass(frozen=True)
class LengthPenalty(AnswerJudge):
    """0 up to `length` words, then -1 / `width` for each further one, at least -1 (Yu et al. 2025, equation 13)."""

    length: int
    width: int

    def reward(self, prompt: str, answer: str, row: Dialogue) -> float:
        return -min(max(len(answer.split()) - self.length, 0) / self.width, 1.0)


@lru_cache(maxsize=2)
def _load(workdir: str) -> Any:
    return Workdir(workdir).load()


@dataclass(frozen=True)
class RewardModelScore:
    """The score of the reward model of the run in `workdir`, which has a chat template and a tokenizer of its own."""

    workdir: str

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Dialogue]) -> np.ndarray:
        run = _load(self.workdir)
        if not isinstance(run.model, RewardModel):
            raise UserError(f"{self.workdir} holds a {type(run.model).__name__}, expected a RewardModel")
        dialogues = [row.prompt.with_answer(answer) for row, answer in zip(rows, answers, strict=True)]
        return run.experiment.task.score_answers(run, dialogues)


@dataclass(frozen=True)
class WeightedSum:
    """The sum of the rewards of several judges, each times its weight: `WeightedSum(((judge, 1.0), (other, 0.2)))`."""

    judges: tuple[tuple[Any, float], ...]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Dialogue]) -> np.ndarray:
        rewards = [weight * np.asarray(judge(prompts, answers, rows), np.float32) for judge, weight in self.judges]
        return np.sum(rewards, axis=0)

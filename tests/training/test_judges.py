"""Judges: what they reward, and what is said of one that fails."""

from dataclasses import dataclass, replace

import pytest
from fixtures.preference_rows import toy_experiment

import jaxlm
from jaxlm import (
    Arithmetic,
    Dialogue,
    ExactMatch,
    JsonValid,
    LengthPenalty,
    RegexMatch,
    RewardModel,
    RewardModelScore,
    RunOptions,
    Turn,
    UserError,
    WeightedSum,
)
from jaxlm.objectives.reward_model import BradleyTerry
from jaxlm.tasks.rewards import judge_answers

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
CASES = {
    "regex": (RegexMatch("a+b?"), {"aab": 1, "aab ": 0, "b": 0}),
    "exact": (ExactMatch(), {"the  Answer": 1, "the answer": 0, "": 0}),
    "arithmetic": (Arithmetic(), {"18": 1, "it is 3, no 18.": 1, "81": 0, "": 0, "118": 0, "-18": 0}),
    "json": (JsonValid(SCHEMA), {'{"n": 3}': 1, '{ "n":3 }': 1, '{"n": "3"}': 0, "{": 0, "[" * 5000: 0}),
    "length": (LengthPenalty(2, 2), {"a b": 0, "a b c": -0.5, "a b c d e": -1}),
    "weighted": (WeightedSum(((RegexMatch("a.*"), 2.0), (LengthPenalty(2, 2), 0.5))), {"a b": 2, "a b c": 1.75}),
}
ROW = Dialogue((Turn("user", "How much is 2 + 4 * 5 - 4?"), Turn("assistant", " the Answer ")))


@pytest.mark.parametrize("name", CASES)
def test_rewards(name):
    judge, expected = CASES[name]
    rewards = judge_answers(judge, [ROW.prompt.text] * len(expected), list(expected), [ROW] * len(expected))
    assert rewards.tolist() == list(expected.values())


@dataclass(frozen=True)
class Faulty:
    """A judge of one's own, which fails at an answer."""

    fault: str

    def __call__(self, prompts, answers, rows):
        if self.fault == "raises" and "bad" in answers:
            raise KeyError("no such word")
        if self.fault == "batch" and len(answers) > 1:
            raise ValueError("too many")
        rewards = [float("nan") if self.fault == "nan" and answer == "bad" else 1.0 for answer in answers]
        return rewards[1:] if self.fault == "number" else rewards


@pytest.mark.parametrize(
    "fault, message",
    [
        ("raises", r"the judge Faulty raised KeyError \('no such word'\) for the answer 'bad' to the prompt 'How much"),
        ("batch", r"raised ValueError \(too many\) for the answer 'good'"),
        ("nan", "the judge Faulty gave the reward nan for the answer 'bad' to the prompt 'How much"),
        ("number", "the judge Faulty gave 2 rewards for 3 answers, such as the answer 'good'"),
    ],
)
def test_judges_that_fail(fault, message):
    with pytest.raises(UserError, match=message):
        judge_answers(Faulty(fault), [ROW.prompt.text] * 3, ["good", "bad", "good"], [ROW] * 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: judge_answers(RegexMatch("("), ["x"], ["x"], [ROW]), r"the judge RegexMatch raised .*unterminated"),
        (lambda: JsonValid("{"), "the schema, line 1, column 2: not JSON"),
        (lambda: ExactMatch()(["x"], ["x"], [ROW.prompt]), "has no answer to compare with"),
        (lambda: Arithmetic()(["x"], ["x"], [ROW]), "has no sum, difference or product"),
    ],
    ids=["regex", "schema", "no-answer", "no-sum"],
)
def test_bad_options(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.slow
def test_a_reward_model_is_a_judge(tmp_path):
    """It scores as `predict` of its run does; another model is refused."""
    base = toy_experiment()
    experiment = replace(
        base, objective=BradleyTerry(), model=RewardModel(base.model), steps=2, evaluate_every=2,
        best_metric="valid/accuracy",
    )  # fmt: skip
    jaxlm.train(experiment, tmp_path / "reward", run_options=RunOptions(mesh={"data": 1}))
    row = Dialogue((Turn("user", "a b"),))
    rewards = judge_answers(RewardModelScore(str(tmp_path / "reward")), ["a b"] * 2, ["A B", "c"], [row, row])
    shown = jaxlm.load(tmp_path / "reward").predict(["a b\tA B", "a b\tc"])
    assert [f"{reward:.4f}" for reward in rewards] == shown

"""Rewards that a program gives: a language model learns to praise, and to add (RLOO, GRPO, Dr. GRPO, PPO).

    jaxlm train experiments.preferences:base --workdir runs/praise_base
    jaxlm train experiments.rewards:praise_rloo --workdir runs/praise_rloo
    python -m experiments.preferences judge runs/praise_base runs/praise_rloo

    jaxlm train experiments.rewards:sums_base --workdir runs/sums_base
    jaxlm train experiments.rewards:sums --workdir runs/sums
    jaxlm evaluate runs/sums

`praise_*` start from the language model of minilang of `experiments.preferences`. A prompt is the first word of a
sentence; an answer has the reward 1 if the sentence is grammatical and its speaker's sentiment is positive, else 0.
Each step has 16 prompts with 8 answers. `sums_base` learns from 1,600 of the 8,100 sums of two numbers of two digits;
`sums` continues with rewards alone, on 7,100 of them: only the value of the sum has the reward 1. Test sums are in
neither.

`praise_hacked` and `praise_guarded` have a reward model as judge (`experiments.preferences:praise_reward`), without and
with the divergence from the language model in the reward; `judge` shows which share of the answers is really praise.

Measured on one busy core: 100 steps of 128 answers take 2 minutes, and the reward on held-out prompts is .91 to .95
after them, from .24, with each of RLOO, GRPO, Dr. GRPO and PPO. docs/post-training.md has their curves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from experiments.preferences import SENTENCE, base, verdict
from jaxlm import (
    ActorCritic,
    AdamW,
    AnswerJudge,
    Arithmetic,
    Buckets,
    Characters,
    ChatTemplate,
    Constant,
    Decoder,
    Dialogue,
    Experiment,
    FineTuning,
    GenerationDefaults,
    InstructionTuning,
    MiniLangTexts,
    PolicyGradient,
    ReadStats,
    RewardModelScore,
    Rewards,
    Sampler,
    Source,
    Turn,
    run_this_experiment,
)


@dataclass(frozen=True)
class FirstWords(Source[Dialogue]):
    """The first words of `count` sentences of minilang, as prompts."""

    split: str
    count: int

    def read(self, stats: ReadStats) -> Iterator[Dialogue]:
        for sentence in MiniLangTexts(self.split, self.count, english_only=True):
            stats.kept += 1
            yield Dialogue((Turn("user", sentence.split()[0]),))

    def describe(self) -> str:
        return f"the first words of {self.count:,} sentences of minilang ({self.split})"


@dataclass(frozen=True)
class Praise(AnswerJudge):
    """1 for a grammatical sentence whose speaker's sentiment is positive."""

    def reward(self, prompt: str, answer: str, row: Dialogue) -> float:
        return verdict(f"{prompt} {answer}") == "P"


EQUATION = ChatTemplate(roles=(("user", "", ""),), answer_before="=")
"""12+34=46."""


def praise_rloo() -> Experiment:
    """REINFORCE with the other answers as baseline and the divergence in the reward (Ahmadian et al. 2024)."""
    return _praise(PolicyGradient(max_tokens=14))


def praise_grpo() -> Experiment:
    """Rewards divided by the standard deviation of their group (Shao et al. 2024)."""
    return _praise(PolicyGradient(kind="grpo", max_tokens=14))


def praise_dr_grpo() -> Experiment:
    """GRPO without the divisions (Liu et al. 2025)."""
    return _praise(PolicyGradient(kind="dr_grpo", max_tokens=14))


def praise_no_kl() -> Experiment:
    """RLOO without a reference: nothing keeps it near the language model."""
    return _praise(PolicyGradient(max_tokens=14, kl=0.0))


def praise_ppo() -> Experiment:
    """PPO with a value head (Schulman et al. 2017): two updates on each rollout."""
    objective = PolicyGradient(kind="ppo", max_tokens=14, updates=2, value_weight=0.5)
    return replace(_praise(objective), model=ActorCritic())


def praise_hacked() -> Experiment:
    """RLOO with a reward model as judge (`experiments.preferences:praise_reward`), and without a reference."""
    return _praise(PolicyGradient(max_tokens=14, kl=0.0), RewardModelScore("runs/praise_reward"))


def praise_guarded() -> Experiment:
    """The same judge, with the divergence from the reference in the reward."""
    return _praise(PolicyGradient(max_tokens=14, kl=0.5), RewardModelScore("runs/praise_reward"))


def _praise(objective: PolicyGradient, judge: Any = Praise()) -> Experiment:  # noqa: B008
    splits = FirstWords("train", 8000), FirstWords("valid", 200), FirstWords("test", 1000)
    return replace(
        base(),
        task=Rewards(*splits, chat_template=SENTENCE, judge=judge, generation=GenerationDefaults(Sampler(), 14)),
        batching=Buckets(tokens=16 * 3, max_length=3, lengths=(3,)),
        optimizer=AdamW(Constant(3e-4), clip=1.0),
        objective=objective,
        finetuning=FineTuning(init="runs/praise_base"),
        steps=400,
        log_every=10,
        evaluate_every=50,
        checkpoint_every=50,
        best_metric="valid/reward",
    )


@dataclass(frozen=True)
class Sums(Source[Dialogue]):
    """The sums of two numbers from 10 to 99 in a random order, from number `first` to `end`: 12+34=46."""

    first: int
    end: int

    def read(self, stats: ReadStats) -> Iterator[Dialogue]:
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        Random(0).shuffle(pairs)
        for a, b in pairs[self.first : self.end]:
            stats.kept += 1
            yield Dialogue((Turn("user", f"{a}+{b}"), Turn("assistant", str(a + b))))

    def describe(self) -> str:
        return f"sums {self.first:,} to {self.end:,} of 8,100"


def sums_base() -> Experiment:
    """Supervised learning of one sum in five: a decoder of 2 layers and width 128 that reads characters."""
    splits = Sums(0, 1600), Sums(7100, 7600), Sums(7600, 8100)
    answers = GenerationDefaults(Sampler(temperature=0.0), max_tokens=4)
    return Experiment(
        task=InstructionTuning(*splits, chat_template=EQUATION, generation=answers),
        tokenizer=Characters(16),
        model=Decoder(16, 128, 4, 512, 2, max_length=16, position="rotary"),
        batching=Buckets(tokens=64 * 12, max_length=12, lengths=(12,)),
        optimizer=AdamW(Constant(1e-3, warmup=50), weight_decay=0.1, clip=1.0),
        steps=600,
        evaluate_every=100,
        checkpoint_every=100,
        best_metric="valid/nll",
    )


def sums() -> Experiment:
    """RLOO with the value of a sum as reward, from `sums_base`: 128 sums with 8 answers a step."""
    start = sums_base()
    task = Rewards(Sums(0, 7100), Sums(7100, 7600), Sums(7600, 8100), chat_template=EQUATION, judge=Arithmetic(),
                   generation=start.task.generation)  # fmt: skip
    return replace(
        start,
        task=task,
        batching=Buckets(tokens=128 * 8, max_length=8, lengths=(8,)),
        optimizer=AdamW(Constant(5e-4, warmup=10), clip=1.0),
        objective=PolicyGradient(max_tokens=4),
        finetuning=FineTuning(init="runs/sums_base"),
        steps=1000,
        log_every=20,
        best_metric="valid/reward",
    )


if __name__ == "__main__":
    run_this_experiment()

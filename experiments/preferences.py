"""Preferences with a judge that is a program: a small language model learns to praise (DPO, its kin, a reward model).

    jaxlm train experiments.preferences:base --workdir runs/praise_base
    python -m experiments.preferences sample runs/praise_base --out data/praise
    jaxlm train experiments.preferences:praise_dpo --workdir runs/praise_dpo
    python -m experiments.preferences judge runs/praise_base runs/praise_dpo runs/praise_ipo

`base` is a language model of the English side of minilang. `sample` draws four answers to each of 8,000 prompts, the
first word of a sentence, and judges them by the grammar of minilang: an answer is good if the sentence is grammatical
and its speaker's sentiment is positive. A prompt whose answers differ gives a pair for `data/praise.pairs.train.jsonl`
and two judged answers for `data/praise.judged.train.jsonl`; of twenty prompts one is for `valid` and one for `test`.
`judge` samples from the first run and from each of the others and prints a row for each: the share of praise and of
ungrammatical sentences, the win rate against the first run (ties count one half), the divergence from it in nats per
answer, and the length of an answer.

Measured on one busy core, with 4,512 training pairs: `praise_dpo` after 1,000 steps, 4 minutes, has 85 % praise
(`base` 24 %), a win rate of 80 %, 2.5 nats of divergence per answer, 13 % ungrammatical sentences (`base` 12 %) and 6.9
words an answer (`base` 7.2). The reward model orders 96 % of the test pairs. docs/post-training.md has more.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

import jaxlm
from jaxlm import (
    KTO,
    AdamW,
    BradleyTerry,
    Buckets,
    ChatTemplate,
    Constant,
    Decoder,
    Experiment,
    FineTuning,
    GenerationDefaults,
    JudgedFile,
    LanguageModeling,
    MiniLangTexts,
    PairwisePreference,
    PreferenceFile,
    Preferences,
    RewardModel,
    UserError,
    Words,
    analyze,
    run_this_experiment,
)

VOCAB = 141
SPLITS = (("train", 20_000), ("valid", 1000), ("test", 1000))
DATA = "data/praise"
SENTENCE = ChatTemplate(roles=(("user", "", ""),), answer_before=" ")
"""Prompt and answer are one sentence."""


def base() -> Experiment:
    """The language model: a decoder of 3 layers and width 96, 1,000 steps of 4,096 positions."""
    return Experiment(
        task=LanguageModeling(
            *(MiniLangTexts(split, count, english_only=True) for split, count in SPLITS), windows=None
        ),
        tokenizer=Words(VOCAB),
        model=Decoder(VOCAB, 96, 4, 384, 3, max_length=32, position="rotary"),
        batching=Buckets(tokens=4096, max_length=24, max_shapes=3),
        optimizer=AdamW(Constant(1e-3, warmup=50), clip=1.0),
        steps=1000,
        evaluate_every=250,
        checkpoint_every=250,
        best_metric="valid/nll",
    )


def praise_dpo() -> Experiment:
    """DPO with the log-likelihood of the chosen answers (Rafailov et al. 2023; alpha 1)."""
    return _pairs("dpo", beta=0.5, nll_weight=1.0)


def praise_dpo_plain() -> Experiment:
    """DPO as published: beta 0.1, no log-likelihood."""
    return _pairs("dpo", beta=0.1)


def praise_ipo() -> Experiment:
    """IPO (Azar et al. 2024)."""
    return _pairs("ipo", beta=0.1)


def praise_simpo() -> Experiment:
    """SimPO, without a reference (Meng et al. 2024)."""
    return _pairs("simpo", beta=2.0, gamma=0.5)


def praise_orpo() -> Experiment:
    """ORPO, without a reference (Hong et al. 2024)."""
    return _pairs("orpo", beta=0.5)


def praise_kto() -> Experiment:
    """KTO of answers that are judged one by one (Ethayarajh et al. 2024)."""
    return _preferences("judged", JudgedFile, KTO(beta=0.5))


def praise_reward() -> Experiment:
    """A reward model of the same pairs (Bradley and Terry 1952)."""
    experiment = _pairs("dpo")
    return replace(
        experiment, model=RewardModel(), objective=BradleyTerry(center=0.01), best_metric="valid/accuracy", steps=300
    )


def _pairs(kind: str, **options: float) -> Experiment:
    return _preferences("pairs", PreferenceFile, PairwisePreference(kind=kind, **options))


def _preferences(name: str, reader, objective) -> Experiment:
    train, valid, test = (reader(f"{DATA}.{name}.{split}.jsonl") for split in ("train", "valid", "test"))
    start = base()
    return replace(
        start,
        task=Preferences(train, valid, test, chat_template=SENTENCE, generation=GenerationDefaults(max_tokens=20)),
        batching=Buckets(tokens=64 * 24, max_length=24, lengths=(24,)),
        optimizer=AdamW(Constant(1e-4, warmup=20), clip=1.0),
        objective=objective,
        finetuning=FineTuning(init="runs/praise_base"),
        steps=1000,
        evaluate_every=100,
        checkpoint_every=100,
        best_metric="valid/loss",
    )


@lru_cache(maxsize=1 << 16)
def verdict(sentence: str) -> str:
    """The speaker's sentiment ("P", "NEU" or "N"), or "ungrammatical"."""
    try:
        return analyze(sentence).sentiment
    except UserError:
        return "ungrammatical"


def draw(workdir: str, prompts: list[str], each: int, seed: int = 0) -> list[list[str]]:
    """`each` answers of a run to every prompt; equal prompts are sampled together."""
    run, counts = jaxlm.load(workdir), Counter(prompts)
    answers: dict[str, list[str]] = {}
    for prompt, count in counts.items():
        samples = run.generate([prompt], num_samples=each * count, max_tokens=20, seed=seed)
        answers[prompt] = [sample.text.strip() for sample in samples]
    return [[answers[prompt].pop() for _ in range(each)] for prompt in prompts]


def first_words(count: int, split: str) -> list[str]:
    """The first words of sentences of minilang: the prompts."""
    return [english.split()[0] for english in MiniLangTexts(split, count)]


def sample(workdir: str, out: str, prompts: int = 8000) -> None:
    """Write the pairs and the judged answers of the three splits."""
    rng, words = random.Random(0), first_words(prompts, "train")
    counts: Counter[str] = Counter()
    rows: dict[str, list[dict]] = {}
    for number, (prompt, answers) in enumerate(zip(words, draw(workdir, words, 4), strict=True)):
        split = {0: "valid", 1: "test"}.get(number % 20, "train")
        good = [answer for answer in answers if verdict(f"{prompt} {answer}") == "P"]
        bad = [answer for answer in answers if answer and answer not in good]
        counts.update(verdict(f"{prompt} {answer}") for answer in answers)
        if not (good and bad):
            continue
        chosen, rejected = rng.choice(good), rng.choice(bad)
        pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        judged = [{"prompt": prompt, "completion": text, "label": text is chosen} for text in (chosen, rejected)]
        rows.setdefault(f"pairs.{split}", []).append(pair)
        rows.setdefault(f"judged.{split}", []).extend(judged)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    for name, records in rows.items():
        Path(f"{out}.{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"{sum(len(records) for name, records in rows.items() if 'pairs' in name):,} pairs;", end=" ")
    print(", ".join(f"{name} {count / (4 * prompts):.3f}" for name, count in counts.most_common()))


def judge(workdirs: list[str], count: int = 1000) -> Iterator[dict[str, float]]:
    """The figures of each run: shares of praise and of ungrammatical sentences, win rate against the first run,
    divergence from it in nats per answer, and words per answer.
    """
    prompts, base = first_words(count, "test"), jaxlm.load(workdirs[0])
    first: list[bool] = []
    for index, workdir in enumerate(workdirs):
        answers = [answer for (answer,) in draw(workdir, prompts, 1, seed=index)]
        sentences = [f"{prompt} {answer}".strip() for prompt, answer in zip(prompts, answers, strict=True)]
        verdicts = [verdict(sentence) for sentence in sentences]
        good = [each == "P" for each in verdicts]
        first = first or good
        wins = [0.5 + (ours - theirs) / 2 for ours, theirs in zip(good, first, strict=True)]
        scores = (jaxlm.load(workdir).score(sentences), base.score(sentences))
        # The first token is the prompt.
        own, reference = (sum(sum(score.token_logprobs[1:]) for score in side) for side in scores)
        yield {
            "praise": float(np.mean(good)),
            "ungrammatical": float(np.mean([each == "ungrammatical" for each in verdicts])),
            "win rate": float(np.mean(wins)),
            "KL": (own - reference) / count,
            "length": float(np.mean([len(answer.split()) for answer in answers])),
        }


def show_judgments(workdirs: list[str], count: int = 1000) -> None:
    """Print a row for each run; the others are compared with the first one."""
    for workdir, figures in zip(workdirs, judge(workdirs, count), strict=True):
        print(f"{workdir:28}" + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)


def main() -> None:
    """`sample` and `judge`; everything else is `jaxlm train`."""
    if sys.argv[1:2] not in (["sample"], ["judge"]):
        run_this_experiment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sample", help="make pairs from the samples of a run")
    command.add_argument("workdir")
    command.add_argument("--out", default=DATA)
    command.add_argument("--prompts", type=int, default=8000)
    command = commands.add_parser("judge", help="compare runs with the first one")
    command.add_argument("workdirs", nargs="+")
    command.add_argument("--count", type=int, default=1000)
    options = vars(parser.parse_args())
    {"sample": sample, "judge": show_judgments}[options.pop("command")](**options)


if __name__ == "__main__":
    main()

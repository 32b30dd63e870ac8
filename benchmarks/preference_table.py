"""Losses of preferences side by side: what a small language model says after each, as a program judges it.

    python -m benchmarks.preference_table
    python -m benchmarks.preference_table --steps 200 --prompts 3000 --count 400 --only dpo kto

Trains `experiments.preferences:base` (runs/praise_base), samples and judges the pairs (data/praise), trains each row of
the table from that base, and prints: praise and ungrammatical sentences among samples to held-out prompts, the win rate
against the base (ties count one half), the divergence from it in nats per answer, words per answer, and on held-out
pairs the mean log-probability of the chosen and of the rejected answers and the share of pairs in the right order. The
last line is the reward model's. What exists already is not made again.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxlm
from experiments import preferences
from jaxlm.experiment import Experiment

BASE = "runs/praise_base"
ROWS: tuple[tuple[str, dict[str, float]], ...] = (
    ("praise_dpo_plain", {"beta": 0.1}),
    ("praise_dpo_plain", {"beta": 0.5}),
    ("praise_dpo", {"beta": 0.1}),
    ("praise_dpo", {"beta": 0.5}),
    ("praise_ipo", {"beta": 0.1}),
    ("praise_ipo", {"beta": 0.5}),
    ("praise_simpo", {"beta": 2.0}),
    ("praise_simpo", {"beta": 5.0}),
    ("praise_orpo", {"beta": 0.5}),
    ("praise_orpo", {"beta": 2.0}),
    ("praise_kto", {"beta": 0.1}),
    ("praise_kto", {"beta": 0.5}),
)
"""Variants of `experiments.preferences` and options of their objectives."""


def runs_of(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(name, workdir) of each row of the table, trained."""
    for variant, changes in ROWS:
        name = f"{variant} " + ", ".join(f"{key} {value}" for key, value in changes.items())
        if options.only and not any(word in name for word in options.only):
            continue
        experiment: Experiment = getattr(preferences, variant)()
        objective: Any = replace(experiment.objective, **changes)
        folder = "runs/" + name.replace(" ", "_")
        jaxlm.train(replace(experiment, objective=objective, steps=options.steps), folder)
        yield name, folder


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("steps", 500), ("base-steps", 1000), ("prompts", 8000), ("count", 1000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", nargs="*", help="rows with one of these words in their name")
    options = parser.parse_args()
    jaxlm.train(replace(preferences.base(), steps=options.base_steps), BASE)
    if not Path(f"{preferences.DATA}.pairs.train.jsonl").is_file():
        preferences.sample(BASE, preferences.DATA, options.prompts)
    names, folders = zip(("base", BASE), *runs_of(options), strict=True)
    reward = preferences.praise_reward()
    pairs: Any = preferences.praise_dpo().task
    for name, folder, judged in zip(names, folders, preferences.judge(list(folders), options.count), strict=True):
        figures = pairs.evaluate(jaxlm.load(folder), "test")
        judged |= {key: figures[key] for key in ("logp/chosen", "logp/rejected", "accuracy")}
        print(f"{name:28}" + "  ".join(f"{key} {value:.3f}" for key, value in judged.items()), flush=True)
    if not options.only or "reward" in options.only:
        jaxlm.train(replace(reward, steps=min(options.steps, reward.steps)), "runs/praise_reward")
        figures = jaxlm.load("runs/praise_reward").evaluate("test")
        keys = ("lines", "accuracy", "score/mean", "score/sd", "length_correlation")
        print(f"{'reward model':28}" + "  ".join(f"{key} {figures[key]:.3f}" for key in keys))


if __name__ == "__main__":
    main()

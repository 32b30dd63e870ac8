"""Runs on the test dialogues of an experiment of `experiments.instruct`: a base and what became of it.

    python -m benchmarks.instructions runs/text_base runs/instructions
    python -m benchmarks.instructions runs/commands_base runs/commands --task commands

Prints the perplexity of the reference answers, its fall against the first run, and of a run's own answers the share
that ends by itself, equals the reference, and has the form that was asked for.
"""

import argparse
from typing import Any

import jaxlm
from experiments import instruct


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--task", default="instructions", help="an experiment of experiments.instruct")
    options = parser.parse_args()
    task: Any = getattr(instruct, options.task)().task
    first = 0.0
    for workdir in options.workdirs:
        figures = task.evaluate(jaxlm.load(workdir), "test")
        first = first or figures["perplexity"]
        shown = {name: figures[name] for name in ("lines", "answers", "ended", "exact_match", "pattern_match")
                 if name in figures}  # fmt: skip
        fall = f"({1 - figures['perplexity'] / first:.1%} lower)  "
        print(f"{workdir:28}perplexity {figures['perplexity']:.3f} {fall}"
              + "  ".join(f"{name} {value:.4g}" for name, value in shown.items()), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

"""Decoding speed in new tokens/s: the same model, weights, inputs and search in several programs, in turns.

    python -m benchmarks.decode                    Transformer base, beam 4, sources of 25 tokens, 30 new ones, 32 rows
    python -m benchmarks.decode --task write       GPT-2 small, 8 prompts of 32 tokens, 64 new ones, top-k 40
    python -m benchmarks.decode --only ours_int8_dynamic,ctranslate2_int8 --rounds 6
    python -m benchmarks.decode --only ours_lstm,ours --beam 5            an attention LSTM of the Transformer's size

Weights are random, and every text has the same number of new tokens (EOS is never likely), so that all contestants do
the same work. Each is a process of its own, warm before the first round, and all take turns. For translation, the share
of tokens on which a contestant agrees with the first one is printed too: same weights, same search, same answers.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import translators, writers
from benchmarks.contest import Contestant, load, machine, serve, take_turns

TASKS = {"translate": translators, "write": writers}
SIZES = {"translate": {"rows": 32, "length": 25, "new": 30}, "write": {"rows": 8, "length": 32, "new": 64}}
NAMES = (
    "ours",
    "ours_lstm",
    "ours_bfloat16",
    "ours_int8",
    "ours_int8_dynamic",
    "huggingface",
    "ctranslate2",
    "ctranslate2_int8",
)


def main() -> None:
    """Measure and print; the last line is JSON."""
    options = _options()
    if options.worker:
        serve(lambda: TASKS[options.task].start(options.worker, options.folder))
        return
    before = machine()
    print(f"{before['processor']}, {before['cores']} cores, load {before['load']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        TASKS[options.task].draw(Path(folder), options.rows, options.length, options.new, options.beam)
        results = [_result(contestant, options.rows * options.new) for contestant in _contest(options, folder)]
    first = results[0]
    for other in results[1:]:
        ratios = [theirs / ours for ours, theirs in zip(first["seconds"], other["seconds"], strict=True)]
        print(f"{first['name']} / {other['name']}: {first['tokens_per_second'] / other['tokens_per_second']:.2f}x "
              f"(rounds {min(ratios):.2f} to {max(ratios):.2f}), agreement {_agreement(first, other):.2%}")  # fmt: skip
    print(f"load before {before['load']}, after {load()}")
    for result in results:
        del result["tokens"]
    print(json.dumps({"benchmark": "decode", "task": options.task, "machine": before, "results": results}))


def _contest(options: argparse.Namespace, folder: str) -> list[Contestant]:
    command = [sys.executable, "-m", "benchmarks.decode", "--folder", folder, "--task", options.task, "--worker"]
    commands = {name: [*command, name] for name in options.only.split(",")}

    def describe(contestant: Contestant) -> str:
        return f"first batch {contestant.facts['first_seconds']:.1f} s"

    return take_turns(commands, options.steps, options.rounds, time_limit=900, describe=describe)


def _result(contestant: Contestant, tokens: int) -> dict[str, Any]:
    rounds = contestant.rounds
    seconds = [statistics.median(round["seconds"]) for round in rounds]
    best = min(min(round["seconds"]) for round in rounds)
    rates = {"tokens_per_second": tokens / statistics.median(seconds), "best": tokens / best}
    rates["cpu_seconds"] = statistics.median(round["cpu_seconds"] / round["steps"] for round in rounds)
    print(f"{contestant.name:18s} {rates['tokens_per_second']:7.1f} new tokens/s, best {rates['best']:.1f}, "
          f"{statistics.median(seconds):.2f} s and {rates['cpu_seconds']:.2f} CPU s a batch")  # fmt: skip
    return {"name": contestant.name, **rates, "seconds": seconds, "tokens": contestant.facts["tokens"]}


def _agreement(first: dict[str, Any], other: dict[str, Any]) -> float:
    pairs = [pair for rows in zip(first["tokens"], other["tokens"], strict=True) for pair in zip(*rows, strict=False)]
    return sum(a == b for a, b in pairs) / len(pairs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "ours,huggingface,ctranslate2,ctranslate2_int8"
    parser.add_argument("--only", default=default, help="contestants, separated by commas; ratios are to the first")
    parser.add_argument("--task", choices=TASKS, default="translate")
    parser.add_argument("--rows", type=int, help="texts per batch")
    parser.add_argument("--length", type=int, help="tokens of a source (EOS included) or of a prompt")
    parser.add_argument("--new", type=int, help="new tokens of every text")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="batches per round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, default in SIZES[options.task].items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


if __name__ == "__main__":
    main()

"""The table of `experiments.ladder`: train every model for the same time, one after the other, and score it.

    python -m benchmarks.ladder                              Multi30k, five minutes per model
    python -m benchmarks.ladder --data minilang --minutes 1  the built-in corpus
    python -m benchmarks.ladder --rungs first,general

The minutes are wall time from the start of training. They include compilation, but not reading the data and the final
test. A model whose results are in the folder is not trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

RUNGS = ("first", "every", "one_network", "dot", "general", "additive", "convolutional", "transformer")
"""From the simplest model to the best."""
RESULT = "result.json"


def main() -> None:
    """Train, score, print a table and a JSON line."""
    options = _options()
    prefix = "" if options.data == "multi30k" else f"{options.data}_"
    results = {}
    for rung in options.rungs.split(","):
        results[rung] = _climb(prefix + rung, options.folder / (prefix + rung), options.minutes)
        print(_table({rung: results[rung]}).splitlines()[-1], file=sys.stderr, flush=True)
    print(_table(results))
    print(json.dumps({"benchmark": "ladder", "data": options.data, "minutes": options.minutes, "rungs": results}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("multi30k", "minilang"), default="multi30k")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rungs", default=",".join(RUNGS), help=f"some of {', '.join(RUNGS)}")
    parser.add_argument("--folder", type=Path, default=Path("runs/ladder"), help="folder of the runs")
    return parser.parse_args()


def _climb(variant: str, folder: Path, minutes: float) -> dict[str, Any]:
    """The figures of one model."""
    stored = folder / RESULT
    if stored.exists():
        return json.loads(stored.read_text())
    command = [sys.executable, "-m", "jaxlm", "train", f"experiments.ladder:{variant}"]
    command += ["--workdir", str(folder), "--max-minutes", str(minutes)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    summary = json.loads(out.splitlines()[-1])
    size = subprocess.run([*command[:3], "show", command[4]], check=True, stdout=subprocess.PIPE, text=True).stdout
    parameters = next(line.split()[1] for line in size.splitlines() if line.startswith("parameters"))
    figures = {
        "bleu": summary["test"]["bleu"]["value"], "chrf": summary["test"]["chrf"]["value"],
        "valid_perplexity": summary["valid/perplexity"], "steps": summary["step"], "parameters": parameters,
        "tokens_per_second": summary["time/tokens_per_second"], "ms_per_step": _median_step(folder),
        "lines_per_second": summary["test"]["sentences_per_second"],
    }  # fmt: skip
    stored.write_text(json.dumps(figures))
    return figures


def _median_step(folder: Path) -> float:
    """Milliseconds a step, the median of the log."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return median(1000 / line["time/steps_per_second"] for line in lines if "time/steps_per_second" in line)


def _table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    names = ("model", "parameters", "steps", "ms a step", "valid perplexity", "test BLEU", "chrF", "lines/s")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for rung, row in results.items():
        scores = (
            f"{row['valid_perplexity']:.2f} | {row['bleu']:.2f} | {row['chrf']:.2f} | {row['lines_per_second']:.0f}"
        )
        lines.append(f"| {rung} | {row['parameters']} | {row['steps']:,} | {row['ms_per_step']:.0f} | {scores} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

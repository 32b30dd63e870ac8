"""The ladder's table: every rung of `experiments.ladder` trained for the same minutes, one after the other, and scored.

    python -m benchmarks.ladder                              Multi30k, five minutes a rung
    python -m benchmarks.ladder --data minilang --minutes 1  the built-in corpus
    python -m benchmarks.ladder --rungs first,general

The minutes are wall time from the start of training, compilation included; reading the data and the final test are not.
A rung that is in the folder already is not trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNGS = ("first", "every", "one_network", "dot", "general", "additive", "transformer")
"""From the bottom."""
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
    parser.add_argument("--folder", type=Path, default=Path("runs/ladder"), help="where the runs are kept")
    return parser.parse_args()


def _climb(variant: str, folder: Path, minutes: float) -> dict[str, Any]:
    """The figures of one rung."""
    stored = folder / RESULT
    if stored.exists():
        return json.loads(stored.read_text())
    command = [sys.executable, "-m", "jaxlm", "train", f"experiments.ladder:{variant}"]
    command += ["--workdir", str(folder), "--max-minutes", str(minutes)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(out.splitlines()[-1])
    size = subprocess.run([*command[:3], "show", command[4]], check=True, stdout=subprocess.PIPE, text=True).stdout
    parameters = next(line.split()[1] for line in size.splitlines() if line.startswith("parameters"))
    figures = {
        "bleu": found["test"]["bleu"]["value"], "chrf": found["test"]["chrf"]["value"],
        "valid_perplexity": found["valid/perplexity"], "steps": found["step"], "parameters": parameters,
        "tokens_per_second": found["time/tokens_per_second"], "lines_per_second": found["test"]["sentences_per_second"],
    }  # fmt: skip
    stored.write_text(json.dumps(figures))
    return figures


def _table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| rung | parameters | steps | valid perplexity | test BLEU | chrF | lines/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for rung, found in results.items():
        lines.append(
            f"| {rung} | {found['parameters']} | {found['steps']:,} | {found['valid_perplexity']:.2f} | "
            f"{found['bleu']:.2f} | {found['chrf']:.2f} | {found['lines_per_second']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""The accuracies of files of `jaxlm prompt` with those of the oracle, as a table and as a figure.

python -m experiments.in_context.curves retrieve.jsonl retrieve_lstm.jsonl --figure retrieve.svg
"""

import argparse
import json
from pathlib import Path

import numpy as np

from experiments.in_context.episodes import LABELS
from jaxlm.report.figures import curves_figure, figure_to_svg

SHOTS = (0, 1, 2, 4, 8, 16, 32)


def oracle(shots: int) -> float:
    """The accuracy of the best answer after this number of shots."""
    seen = 1 - 0.75**shots
    return seen + (1 - seen) / len(LABELS)


def curves(files: list[Path], figure: Path | None) -> None:
    """Print the accuracy by shots of each file of `jaxlm prompt`, with the oracle's, and draw the curves."""
    lines: dict[str, tuple[list[int], list[float]]] = {"oracle": (list(SHOTS), list(map(oracle, SHOTS)))}
    for file in files:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        shots = sorted({record["shots"] for record in records})
        means = [float(np.mean([each["accuracy"] for each in records if each["shots"] == k])) for k in shots]
        lines[file.stem] = shots, means
    for name, (shots, values) in lines.items():
        print(f"{name:24}" + "".join(f"{k:>5}: {value:.3f}" for k, value in zip(shots, values, strict=True)))
    if figure:
        drawn = curves_figure("Accuracy on held-out episodes", lines)
        drawn.axes[0].set_xlabel("shots")
        drawn.axes[0].set_xscale("symlog", base=2, linthresh=1)
        drawn.axes[0].set_xticks(SHOTS, [str(k) for k in SHOTS])
        # a page of its own color may be dark
        figure.write_text(figure_to_svg(drawn).replace("<svg ", '<svg style="background:#fff" ', 1), encoding="utf-8")


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    curves(options.files, options.figure)


if __name__ == "__main__":
    main()

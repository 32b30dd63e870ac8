"""The stages after each other, and runs on rewards together, drawn from their logs.

    python -m benchmarks.post_training_figures stages runs/praise_base runs/commands runs/praise_dpo runs/praise_rloo
    python -m benchmarks.post_training_figures rewards rloo=runs/praise_rloo,runs/praise_rloo_1 grpo=runs/praise_grpo

`stages` draws four runs side by side: pre-training, instruction tuning, preferences, rewards. `rewards` draws a curve
of the reward, of the divergence from the first model and of the diversity of the samples (different bigrams of words /
all) for each group of runs, the mean of its runs with their range, and prints the last values.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.report.figures import figure_to_svg, new_figure

STAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("1 pre-training", "-log p(next token)", ("train/nll", "valid/nll")),
    ("2 instruction tuning", "-log p(answer), a token", ("train/nll", "valid/nll")),
    ("3a preferences", "log p(answer)", ("valid/logp/chosen", "valid/logp/rejected")),
    ("3b rewards", "mean of an answer", ("train/reward", "train/kl")),
)
REWARDS = (("reward", "train/reward"), ("divergence, nats an answer", "train/kl"), ("distinct-2", "train/distinct/2"))


def curve(workdir: str, name: str) -> dict[int, float]:
    """The values of a metric by step."""
    records = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record[name] for record in records if name in record}


def prepare(axes: Any, title: str, label: str = "") -> None:
    """Title and grid of a panel."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel(label, fontsize=8)
    axes.grid(True, alpha=0.3)


def stages(workdirs: Iterable[str]) -> Any:
    """A panel for each stage."""
    figure = new_figure(width=12.8, height=2.9)
    for axes, workdir, (title, label, names) in zip(figure.subplots(1, 4), workdirs, STAGES, strict=True):
        for name in names:
            points = curve(workdir, name)
            axes.plot(list(points), list(points.values()), linewidth=1.3, label=name)
        prepare(axes, title, label)
        axes.legend(frameon=False, fontsize=7)
    return figure


def rewards(groups: Mapping[str, list[str]]) -> Any:
    """A panel for each metric."""
    figure = new_figure(width=12.8, height=3.2)
    for axes, (title, name) in zip(figure.subplots(1, 3), REWARDS, strict=True):
        for group, workdirs in groups.items():
            curves = [points for workdir in workdirs if (points := curve(workdir, name))]
            if not curves:  # a run without a reference has no divergence
                continue
            steps = sorted(set.intersection(*map(set, curves)))
            value_RS = np.array([[points[step] for step in steps] for points in curves])
            axes.plot(steps, value_RS.mean(0), linewidth=1.3, label=group)
            axes.fill_between(steps, value_RS.min(0), value_RS.max(0), alpha=0.2)
            last = "  ".join(f"{value:.3f}" for value in value_RS[:, -1])
            print(f"{group:12} {title:28} at step {steps[-1]}: {last}")
        prepare(axes, title)
        axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Read the options and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("stages", "rewards"))
    parser.add_argument("runs", nargs="+", help="workdirs, or for rewards NAME=WORKDIR,WORKDIR,...")
    parser.add_argument("--figure", type=Path, default=Path("figure.svg"))
    options = parser.parse_args()
    if options.which == "stages":
        figure = stages(options.runs)
    else:
        figure = rewards({name: runs.split(",") for name, _, runs in (each.partition("=") for each in options.runs)})
    svg = figure_to_svg(figure).replace("<svg ", '<svg style="background:#fff" ', 1)  # the page around it may be dark
    options.figure.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()

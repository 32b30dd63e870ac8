"""The parts of every claim: the registry, the training of its models, and the drawing of its figure.

A claim is a function of a `Course` that returns a `Finding`. `python -m docs.course.claims` runs them.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import jaxlm
from jaxlm import Experiment, Pipeline
from jaxlm.report.figures import COLORS, INK, figure_to_svg, new_figure

ROOT = Path(__file__).resolve().parents[3]
FIGURES = ROOT / "docs/course/figures"
FEW = 8
"""Rows of every measurement of a run that only shows that the code works."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Finding:
    """The numbers of a claim, its figure, and for each statement that must hold, whether it does."""

    numbers: Mapping[str, float]
    figure: Any
    checks: Mapping[str, bool]


@dataclass(frozen=True)
class Claim:
    """A claim of a page: its name is that of its command and of its figure."""

    page: int
    name: str
    text: str
    find: Callable[["Course"], Finding]


CLAIMS: dict[str, Claim] = {}
"""Name -> claim, in the order of the pages."""


def claim(page: int, text: str) -> Callable:
    """Register a function as the claim of its name, with hyphens."""

    def register(find: Callable[["Course"], Finding]) -> Callable[["Course"], Finding]:
        name = find.__name__.replace("_", "-")
        CLAIMS[name] = Claim(page, name, text, find)
        return find

    return register


@dataclass
class Course:
    """One run of the course.

    Attributes:
      folder: the workdirs of the models; a model that is there already is not trained again.
      steps: None, or the steps of a run that only shows that the code works: few rows are measured, nothing is checked.
      seconds: model -> CPU seconds of its training, of the models that the present claim uses.
      trained_now: those of them that were trained now.
    """

    folder: Path
    steps: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    trained_now: list[str] = field(default_factory=list)

    def train(self, make: Callable[[], Experiment]) -> Pipeline:
        """The trained model of an experiment; claims that name the same function share it."""
        workdir = self.workdir(make)
        experiment = make()
        if self.steps and not hasattr(experiment.model, "fit"):
            experiment = replace(experiment, steps=self.steps)
        if experiment.finetuning.init:
            experiment = replace(
                experiment,
                finetuning=replace(experiment.finetuning, init=str(self.folder / experiment.finetuning.init)),
            )
        record = workdir / "cpu_seconds.json"
        if not record.exists():
            began = time.process_time()
            if "stopped" in jaxlm.train(experiment, workdir):
                raise KeyboardInterrupt
            record.write_text(json.dumps(time.process_time() - began))
            self.trained_now.append(workdir.name)
        self.seconds[workdir.name] = json.loads(record.read_text())
        return jaxlm.load(workdir)

    def workdir(self, make: Callable[[], Experiment]) -> Path:
        """The folder of an experiment's run."""
        return self.folder / f"{make.__module__.rpartition('.')[2]}-{make.__name__}"

    def some(self, rows: Sequence[Row], count: int) -> Sequence[Row]:
        """The first rows that are measured."""
        return rows[: min(count, FEW) if self.steps else count]


def plot(title: str = "", x: str = "", y: str = "", height: float = 2.9) -> tuple[Any, Any]:
    """An empty figure of the course and its axes."""
    figure = new_figure(width=5.4, height=height)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, axis="y", color=INK, alpha=0.15)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def legend(axes: Any) -> None:
    """The names of the curves, in the color of the text."""
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def bars(values: Mapping[str, float], title: str = "", y: str = "", line: float | None = None) -> Any:
    """A bar with its number for each name; a dashed line at chance."""
    figure, axes = plot(title, y=y)
    colors = [COLORS[i % len(COLORS)] for i in range(len(values))]
    drawn = axes.bar(list(values), list(values.values()), color=colors, width=0.6)
    axes.bar_label(drawn, [f"{value:.4g}" if value < 10 else f"{value:.1f}" for value in values.values()], color=INK,
                   fontsize=9, padding=2)  # fmt: skip
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(y=0.12)
    if line is not None:
        axes.axhline(line, color=INK, linestyle="--", linewidth=1)
    return figure


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str, y: str) -> Any:
    """A curve with markers for each name."""
    figure, axes = plot(title, x, y)
    for color, (name, (xs, ys)) in zip(COLORS, lines.items(), strict=False):
        few = len(xs) <= 15
        axes.plot(xs, ys, color=color, marker="o" if few else None, markersize=4, linewidth=1.6, label=name)
        if few:
            axes.set_xticks(xs, [f"{x:.3g}" for x in xs])
    legend(axes)
    return figure


MARGIN = 8
"""Points between the figure and the edge of its card."""

CARD = """<style>
  svg {{ color: #1d2733 }} .card {{ fill: #fbfbfd; stroke: #d0d4dc }}
  text {{ font-family: system-ui, "DejaVu Sans", sans-serif }}
  @media (prefers-color-scheme: dark) {{ svg {{ color: #e6edf3 }} .card {{ fill: #161b22; stroke: #30363d }} }}
</style>
<title>{title}</title>
<rect class="card" x="{corner}" y="{corner}" width="{width}" height="{height}" rx="8"/>"""


def save_figure(owner: Claim, figure: Any) -> Path:
    """Write the figure of a claim on a card of its own, which is readable on light and dark pages."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": owner.name}):
        svg = figure_to_svg(figure)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(font: [\d.]+px) 'DejaVu Sans'[^;\"]*", r"\1 system-ui, 'DejaVu Sans', sans-serif", svg)
    svg = re.sub(r"(\d+\.\d\d)\d+", r"\1", svg)
    head, rest = svg.split(">", 1)
    width, height = (float(size) for size in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head).groups())
    left, width, height = -MARGIN, width + 2 * MARGIN, height + 2 * MARGIN
    head = re.sub(r'width="[^"]*" height="[^"]*"', f'width="{width}pt" height="{height}pt"', head)
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="{left} {left} {width} {height}"', head)
    card = CARD.format(title=owner.text, corner=left + 0.5, width=width - 1, height=height - 1)
    path = FIGURES / f"{owner.name}.svg"
    path.write_text(f"{head}>\n{card}{rest}".rstrip() + "\n", encoding="utf-8")
    return path

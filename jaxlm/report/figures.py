"""The pictures of a report, as SVG text that stands in the page itself.

The picture of vanishing gradients: the norm of d loss_T / d h_t against T - t, a line a model, on a log axis.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.errors import UserError

Curve = tuple[Sequence[float], Sequence[float]]


def new_figure(width: float = 6.4, height: float = 3.6) -> Any:
    """An empty matplotlib Figure. Raises UserError without matplotlib, which nothing else needs."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError as error:
        raise UserError("drawing needs matplotlib, which is not installed: pip install 'jaxlm[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def curves_figure(title: str, lines: Mapping[str, Curve], log: bool = False) -> Any:
    """A line for each run against the step."""
    figure = new_figure()
    axes = figure.subplots()
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, marker="." if len(values) < 40 else None, linewidth=1.3, label=name)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def attention_figure(
    source: Sequence[str], target: Sequence[str], weights: Sequence[Sequence[float]], title: str = ""
) -> Any:
    """A row for each target token, a column for each source token: the darker, the longer the look."""
    figure = new_figure(1.5 + 0.45 * len(source), 1.2 + 0.32 * len(target))
    axes = figure.subplots()
    axes.imshow(np.asarray(weights), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    # a "$" would start a formula
    axes.set_xticks(range(len(source)), [token.replace("$", r"\$") for token in source], rotation=60, ha="right")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_yticks(range(len(target)), [token.replace("$", r"\$") for token in target])
    return figure


def figure_to_svg(figure: Any) -> str:
    """The figure as an <svg> element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def gradient_flow_figure(gradient_flows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """A matplotlib Figure of `{"Elman": gradient_flow(...), ...}`; a norm of exactly 0 leaves a gap in its line.

    Raises UserError without matplotlib, which nothing else needs.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise UserError("drawing needs matplotlib, which is not installed: pip install 'jaxlm[plots]'") from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, (distance, norm) in gradient_flows.items():
        axes.plot(distance, np.where(norm > 0, norm, np.nan), marker=".", markersize=4, linewidth=1.2, label=name)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("distance T − t (tokens)")
    axes.set_ylabel("‖∂ loss at T / ∂ hidden state at t‖")
    axes.grid(True, which="major", alpha=0.3)
    if gradient_flows:
        axes.legend(frameon=False)
    return figure

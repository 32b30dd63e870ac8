"""Figures of matplotlib as SVG elements that take the colors of the page around them, light or dark."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.errors import UserError

COLORS = ("#2f7ed8", "#e0662a", "#2e9e5b", "#b5489d", "#8a7a1f", "#8c6fd6", "#d64550", "#1d9aa6")
"""Colors of runs, in their order on the page; readable on white and on black."""

INK = "#123456"
"""The color that `figure_to_svg` replaces by the text color of the page."""

SMOOTHING = 0.025
"""Long curves are drawn faintly under their moving average, over this share of their points."""

Curve = tuple[Any, Any]


def new_figure(width: float = 6.4, height: float = 3.6) -> Any:
    """An empty matplotlib Figure. Raises UserError if matplotlib, an optional package, is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError as error:
        raise UserError("figures need matplotlib, which is not installed: pip install 'jaxlm[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def curves_figure(title: str, lines: Mapping[str, Curve], log: bool = False, height: float = 3.6) -> Any:
    """A curve over the training steps for each run, in the order of COLORS; a run without points only takes its color.

    A long noisy curve is drawn faintly, its exponential moving average over it; a single point, such as the score of a
    fitted model, is a horizontal line.
    """
    figure = new_figure(height=height)
    axes = figure.subplots()
    for index, (name, (steps, values)) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        if len(values) == 1:
            axes.axhline(values[0], color=color, linestyle="--", linewidth=1.3, label=name)
        elif SMOOTHING * len(values) > 2:
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
            axes.plot(steps, smooth(values), color=color, linewidth=1.6, label=name)
        elif len(values):
            axes.plot(steps, values, color=color, marker="." if len(values) < 40 else None, linewidth=1.3, label=name)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, color=INK, alpha=0.15)
    if lines:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def smooth(values: Sequence[float]) -> np.ndarray:
    """The exponential moving average of a curve, without the bias of its beginning (Kingma and Ba 2015, section 3);
    values that are not finite are passed over."""
    mean, weight, means, decay = 0.0, 0.0, [], 1 - 1 / (SMOOTHING * len(values))
    for value in values:
        if np.isfinite(value):
            mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        means.append(mean / weight if weight else np.nan)
    return np.array(means)


def attention_figure(
    source: Sequence[str], target: Sequence[str], weights: Sequence[Sequence[float]], title: str = ""
) -> Any:
    """Attention weights: a row for each target token, a column for each source token; fuller is larger."""
    figure = new_figure(1.5 + 0.45 * len(source), 1.2 + 0.32 * len(target))
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    colors = LinearSegmentedColormap.from_list("attention", [to_rgba(COLORS[0], 0.04), to_rgba(COLORS[0], 1.0)])
    axes = figure.subplots()
    axes.imshow(np.asarray(weights), cmap=colors, vmin=0.0, vmax=1.0, aspect="auto")
    # matplotlib reads a "$" as the start of a formula
    axes.set_xticks(range(len(source)), [token.replace("$", r"\$") for token in source], rotation=60, ha="right")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_yticks(range(len(target)), [token.replace("$", r"\$") for token in target])
    return figure


def figure_to_svg(figure: Any) -> str:
    """The figure as an <svg> element without a background, its text and axes in the page's text color."""
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(which="both", colors=INK)
        for part in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.spines.values()):
            part.set_color(INK)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def gradient_flow_figure(gradient_flows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """The norm of d loss_T / d h_t against T - t on a log axis, with gaps at 0: `{"Elman": gradient_flow(...)}`."""
    curves = {name: (distance, np.where(norm > 0, norm, np.nan)) for name, (distance, norm) in gradient_flows.items()}
    figure = curves_figure("", curves, log=True, height=4.0)
    from matplotlib.ticker import MaxNLocator

    (axes,) = figure.axes
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("distance T − t (tokens)")
    axes.set_ylabel("‖∂ loss at T / ∂ hidden state at t‖")
    return figure

"""The figures of a report, as SVG for the page: curves, attention weights, gradient norms."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.errors import UserError

Curve = tuple[Any, Any]


def new_figure(width: float = 6.4, height: float = 3.6) -> Any:
    """An empty matplotlib Figure. Raises UserError if matplotlib, an optional package, is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError as error:
        raise UserError("figures need matplotlib, which is not installed: pip install 'jaxlm[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def curves_figure(title: str, lines: Mapping[str, Curve], log: bool = False, height: float = 3.6) -> Any:
    """A curve over the training steps for each run."""
    figure = new_figure(height=height)
    axes = figure.subplots()
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, marker="." if len(values) < 40 else None, linewidth=1.3, label=name)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, alpha=0.3)
    if lines:
        axes.legend(frameon=False, fontsize=8)
    return figure


def attention_figure(
    source: Sequence[str], target: Sequence[str], weights: Sequence[Sequence[float]], title: str = ""
) -> Any:
    """Attention weights: a row for each target token, a column for each source token; darker is larger."""
    figure = new_figure(1.5 + 0.45 * len(source), 1.2 + 0.32 * len(target))
    axes = figure.subplots()
    axes.imshow(np.asarray(weights), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    # matplotlib reads a "$" as the start of a formula
    axes.set_xticks(range(len(source)), [token.replace("$", r"\$") for token in source], rotation=60, ha="right")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_yticks(range(len(target)), [token.replace("$", r"\$") for token in target])
    return figure


def figure_to_svg(figure: Any) -> str:
    """The figure as an <svg> element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


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

"""The picture of vanishing gradients: the norm of d loss_T / d h_t against T - t, a line a model, on a log axis."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.errors import UserError


def flow_figure(flows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
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
    for name, (distance, norm) in flows.items():
        axes.plot(distance, np.where(norm > 0, norm, np.nan), marker=".", markersize=4, linewidth=1.2, label=name)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("distance T − t (tokens)")
    axes.set_ylabel("‖∂ loss at T / ∂ hidden state at t‖")
    axes.grid(True, which="major", alpha=0.3)
    if flows:
        axes.legend(frameon=False)
    return figure

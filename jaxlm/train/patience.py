"""How evaluations went: which was the best, and whether they still get better."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What patience must remember; it travels in the checkpoint's metadata. Of a figure here more is always better.

    best, best_step: the best figure and where it was reached; worse: evaluations since then; history: all figures.
    """

    best: float | None = None
    best_step: int = 0
    worse: int = 0
    history: tuple[float | None, ...] | list[float | None] = ()

    def after(self, figure: float | None, step: int) -> "Progress":
        """The same after one more evaluation."""
        finite = figure is not None and math.isfinite(figure)
        history = (*self.history, figure if finite else None)
        if finite and (self.best is None or figure > self.best):
            return Progress(figure, step, 0, history)
        return Progress(self.best, self.best_step, self.worse + 1, history)

    def stalled(self, patience: int) -> bool:
        """The newest figure is worse than the best one of those that are older than the last `patience`."""
        old = [figure for figure in self.history[:-patience] if figure is not None]
        if not old or not self.history:
            return False
        newest = self.history[-1]
        return newest is None or newest < max(old)

"""What the machine, and not the experiment, decides about a run: the same steps are computed whatever it says."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """How a run lies on devices and what feeds it.

    Attributes:
      mesh: axis -> devices, as `jaxlm.axes.parse_axes` reads it; None: rows are dealt out to all devices.
      split_moments: the optimizer's state is split over `data` too.
      threads, workers: that make batches.
      hang: seconds without a step after which the process ends; 0: never.
    """

    mesh: Mapping[str, int] | None = None
    split_moments: bool = False
    threads: int = 1
    workers: int = 0
    hang: float = 0.0


PLAIN = Machine()

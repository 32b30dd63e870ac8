"""What the machine, and not the experiment, decides about a run: the same steps are computed whatever it says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError


@dataclass(frozen=True)
class RunOptions:
    """How a run lies on devices and what feeds it.

    Attributes:
      mesh: axis -> devices, as `jaxlm.distributed.mesh_axes.parse_axes` reads it; None: rows are dealt out to
        all devices.
      split_moments: the optimizer's state is split over `data` too.
      remat: "none", "dots" or "full", as `jaxlm.nn.transformer.layer_stack.Stack` has it; None: as the model says.
      threads, workers: that make batches.
      hang: seconds without a step after which the process ends; 0: never.
    """

    mesh: Mapping[str, int] | None = None
    shard_optimizer_state: bool = False
    remat: str | None = None
    threads: int = 1
    workers: int = 0
    step_timeout: float = 0.0

    def with_remat(self, model: Any) -> Any:
        """The model, with the machine's word on what it computes twice. Raises UserError where it has no say in it."""
        if self.remat is None:
            return model
        if not hasattr(model, "remat"):
            raise UserError(f"{type(model).__name__} has no stack of layers to compute again: leave --remat out")
        return model.clone(remat=False if self.remat == "none" else self.remat)


DEFAULT_RUN_OPTIONS = RunOptions()

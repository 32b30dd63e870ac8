"""The options of a run that depend on the machine, not on the experiment: they never change the computed steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxlm.config.checks import check_fields
from jaxlm.errors import UserError

MAX_PROFILE_STEPS = 100
"""The most steps of one trace, which is kept in memory until it is written."""


@dataclass(frozen=True)
class RunOptions:
    """Devices, rematerialization, data loading and profiling of a run.

    Attributes:
      mesh: axis -> devices (see `jaxlm.distributed.mesh_axes`); None: rows are split over all devices.
      shard_optimizer_state: whether the optimizer state is split over the axis `data` too.
      remat: "none", "dots" or "full" (see `jaxlm.nn.transformer.layer_stack`); None: the setting of the model.
      choices: replaces choices of the platform, by name (see `jaxlm.distributed.platforms`).
      threads, workers: the threads and processes that make batches.
      step_timeout: seconds without a step after which the process ends, 0: never; None: as in
        `jaxlm.distributed.multihost.step_timeout`.
      profile_steps: first and last step of a trace, counted from 1 (see `jaxlm.training.profiling`).
      exact: on a GPU, whether the step uses only operations that give the same bits each time (see
        `jaxlm.perf.compiler_options`); CPUs and TPUs always do.
      accept_changed_data: resume a run although its training data has changed.
    """

    mesh: Mapping[str, int] | None = None
    shard_optimizer_state: bool = False
    remat: Literal["none", "dots", "full"] | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    workers: int = 0
    step_timeout: float | None = None
    profile_steps: tuple[int, int] | None = None
    exact: bool = False
    accept_changed_data: bool = False

    def __post_init__(self) -> None:
        check_fields(RunOptions, vars(self), "RunOptions", "set another value")

    def with_remat(self, model: Any) -> Any:
        """The model with `remat` overridden. Raises UserError if the model does not support rematerialization."""
        if self.remat is None:
            return model
        if not hasattr(model, "remat"):
            raise UserError(f"{type(model).__name__} has no stack of layers to recompute: leave --remat out")
        return model.clone(remat=False if self.remat == "none" else self.remat)

    def memory_options(self) -> list[str]:
        """The options of `train` that set `remat` and `choices`."""
        remat = [] if self.remat is None else [f"--remat {self.remat}"]
        choices = {name: int(value) if isinstance(value, bool) else value for name, value in self.choices.items()}
        names = ",".join(f"{name}={value}" for name, value in choices.items())
        return remat + ([f"--choices {names}"] if names else [])


DEFAULT_RUN_OPTIONS = RunOptions()

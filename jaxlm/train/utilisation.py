"""Model-FLOPs utilisation (Chowdhery et al. 2022, appendix B): what the model's arithmetic takes of the chips' peak."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from jaxlm import workdir
from jaxlm.chips import chip_of
from jaxlm.experiment import Experiment
from jaxlm.flops import model_flops
from jaxlm.plan.shapes import batch_of, positions, shapes_of
from jaxlm.types import Batch


def flops_per_token(experiment: Experiment, batch: Batch | None = None) -> float:
    """FLOPs of an update for each token, of the shape of `batch` or else of the experiment's fullest one.

    Counted by `jaxlm.flops.model_flops`: attention in full, nothing twice.
    """
    batch = shapes_of(batch_of(experiment) if batch is None else batch)
    params = workdir.abstract_params(experiment.model)
    return model_flops(experiment.model, experiment.objective, params, batch) / positions(batch)


def utilisation(experiment: Experiment, mesh: Mesh) -> Callable[[float], float] | None:
    """Real tokens/s -> MFU, on devices whose peak is known; None elsewhere (a CPU)."""
    device: Any = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    if chip is None:
        return None
    peak = chip.peak(getattr(experiment.model, "dtype", "float32")) * mesh.size
    share = flops_per_token(experiment) / peak
    return lambda tokens_per_second: share * tokens_per_second

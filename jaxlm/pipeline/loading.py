"""Load the trained model of a workdir for inference: precision, ensemble, placement on a mesh."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax

from jaxlm.distributed.sharding import make_mesh, train_state_shardings
from jaxlm.errors import UserError
from jaxlm.experiment import TrainedRun
from jaxlm.models.ensemble import Ensemble, ensemble_params
from jaxlm.nn.transformer.layer_stack import unstack_layers_jit
from jaxlm.nn.weights.quantization import cast_for_inference
from jaxlm.pipeline.pipeline import Pipeline
from jaxlm.workdir import Workdir


def load(
    folder: str | Path,
    *,
    average_last: int | None = None,
    step: int | None = None,
    precision: str = "float32",
    mesh: Mapping[str, int] | None = None,
    ensemble: Sequence[str | Path] = (),
    ensemble_mean: Literal["probabilities", "logarithms"] = "probabilities",
) -> Pipeline:
    """The trained model of a workdir, as `predict`, `generate` and the other commands use it.

    Args:
      average_last: checkpoints whose mean the parameters are (1: the best one); None: as the experiment has it.
      step: the checkpoint of this step instead.
      precision: of the weights: "float32", "bfloat16", "int8" or "int8_dynamic".
      mesh: devices along each axis, such as {"data": 2, "tensor": 2}; None: one device.
      ensemble: workdirs of further models with the same tokenizer; all predict each token together.
      ensemble_mean: the mean of their "probabilities" or of the "logarithms".

    Raises UserError if the folder is not a workdir, has no checkpoint, or if an option does not fit.
    """
    workdir = Workdir(folder)
    run = workdir.load(average_last, step)
    members = [_load_member(workdir, Workdir(other)) for other in ensemble]
    parts = [cast_for_inference(member.model, member.params, precision) for member in (run, *members)]
    model, params = parts[0]
    if members:
        model = Ensemble(tuple(model for model, _ in parts), ensemble_mean)
        params = ensemble_params([params for _, params in parts])
    if mesh:
        params = jax.device_put(params, train_state_shardings(params, make_mesh(dict(mesh))))
    return Pipeline(model, unstack_layers_jit(params), run.tokenizer, run.experiment, run.steps)


def _load_member(first: Workdir, other: Workdir) -> TrainedRun:
    """Another run of an ensemble. Raises UserError if its tokenizer is not that of the first."""
    first_files, files = (
        {path.name: path.read_bytes() for path in workdir.tokenizer_folder.iterdir()} for workdir in (first, other)
    )
    if files != first_files:
        raise UserError(
            f"{other} has another tokenizer than {first}: an ensemble needs one; before training, copy "
            f"{first.tokenizer_folder} into the new workdir"
        )
    return other.load()

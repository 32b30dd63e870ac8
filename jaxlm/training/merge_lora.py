"""A run with low-rank maps as a plain workdir: `export-hf` and whatever else reads one knows nothing of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp

from jaxlm import workdir
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.errors import UserError
from jaxlm.finetuning import FineTuning
from jaxlm.training.state import TrainState


def merge_lora_workdir(source: Path, target: Path, average: int | None = None, step: int | None = None) -> list[int]:
    """Write the workdir `target`; the steps whose parameters it holds.

    Raises UserError where there is nothing to merge, where adapters stand that cannot be, and where `target` is not a
    new folder.
    """
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: choose another folder")
    tuning = workdir.read_experiment(source).finetuning
    if tuning.lora is None:
        raise UserError(f"{source} has no low-rank maps (finetuning.lora = None): it is a plain workdir as it is")
    if tuning.adapters is not None:
        raise UserError(f"{source} has adapters, which are no part of any matrix and cannot be merged: use it as it is")
    trained = workdir.load_trained_model(source, average, step)
    workdir.open_or_create(target, replace(trained.experiment, finetuning=FineTuning(), average_last=1))
    for name in ("tokenizer", workdir.PRETRAINED_FILES):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
    with Checkpoints(target / "checkpoints") as checkpoints:
        last = trained.steps[-1]
        checkpoints.save(last, TrainState(jnp.int32(last), trained.params, ()), {})
        checkpoints.wait()
    return trained.steps

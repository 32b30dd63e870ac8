"""From an experiment and a workdir to everything that the loop needs, in the order in which faults are cheapest."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlm import workdir
from jaxlm.data.batching.batches import Batches, HostShard
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.storage.columns import fingerprints
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.distributed import multihost
from jaxlm.distributed.placement import host_rows
from jaxlm.distributed.sharding import data_mesh, make_mesh, num_batch_shards, unsharded_params
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.filesystem import check_writable
from jaxlm.finetuning import FineTuning
from jaxlm.pytree import partition, tree_bytes
from jaxlm.training.initialize import copy_tokenizer, load_init_params
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.state import TrainState
from jaxlm.training.step import build_compiled_step, make_init_fn

VALID_BATCH_TOKENS = 8192
"""Positions of a batch of the evaluations during training."""


@dataclass(frozen=True)
class TrainingData:
    """What one run learns from: the tokenizer and the training split as ids."""

    tokenizer: Tokenizer
    columns: Columns


@dataclass(frozen=True)
class TrainSetup:
    """What one run is made of."""

    experiment: Experiment
    folder: Path
    tokenizer: Tokenizer
    batches: Any
    train_step: Any
    abstract_state: TrainState
    init_state: Any
    mesh: Mesh


def setup_data(experiment: Experiment, folder: Path, notify: Any, checkpoint_bytes: int = 0) -> TrainingData:
    """Claim the workdir, fit or load the tokenizer, encode the data. `size`: bytes of a checkpoint, if known."""
    check_writable(folder, checkpoint_bytes * (experiment.keep_checkpoints + 1))
    workdir.open_or_create(folder, experiment)
    tokenizer = _load_or_fit_tokenizer(experiment, folder, notify)
    workdir.check_vocabulary(experiment, tokenizer)
    _check_best_metric(experiment)
    experiment.task.check_model(experiment.model, tokenizer)
    bad, task = ReadStats(), experiment.task
    columns = task.encode_train(tokenizer, folder / "data" / "train", bad)
    workdir.check_data_unchanged(folder, fingerprints(columns))
    if bad.kept:
        notify(f"data: {task.describe()}: {bad}")
    return TrainingData(tokenizer, columns)


def setup_training(
    experiment: Experiment, folder: Path, notify: Any, run_options: RunOptions = DEFAULT_RUN_OPTIONS
) -> TrainSetup:
    """Everything that the loop needs. `note(text)` tells the user."""
    new = make_init_fn(experiment)
    abstract = jax.eval_shape(new)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    data = multihost.first_host_first(lambda: setup_data(experiment, folder, notify, size))
    mesh = data_mesh() if run_options.mesh is None else make_mesh(run_options.mesh)
    batches = experiment.batching.batches(data.columns, experiment.seed)
    check_batch_divisible(batches.row_multiple, experiment.grad_accum, num_batch_shards(mesh))
    notify(_batch_summary(batches.statistics()))
    if mesh.size > 1:
        notify(_mesh_summary(mesh, [*unsharded_params(abstract.params, mesh), *_indivisible_lengths(batches, mesh)]))
    made = build_compiled_step(experiment, new, mesh, run_options)
    tokenizer, state = data.tokenizer, made.abstract_state
    notify(_parameter_summary(state, experiment.finetuning))
    return TrainSetup(
        experiment,
        folder,
        tokenizer,
        HostShard(batches, *host_rows(mesh)),
        made.train_step,
        state,
        lambda: load_init_params(made.init_state(), experiment, notify),
        mesh,
    )


def _check_best_metric(experiment: Experiment) -> None:
    figures = [f"valid/{name}" for name in experiment.task.metric_names]
    if figures and experiment.best_metric not in figures:
        raise UserError(f"best_metric = {experiment.best_metric!r}: expected one of the figures {', '.join(figures)}")


def _load_or_fit_tokenizer(experiment: Experiment, folder: Path, notify: Any) -> Tokenizer:
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    if experiment.finetuning.init:
        return copy_tokenizer(Path(experiment.finetuning.init), folder)
    notify(f"tokenizer: learning {experiment.tokenizer} from {experiment.task.describe()}")
    tokenizer = experiment.tokenizer.fit(experiment.task.texts())
    workdir.check_vocabulary(experiment, tokenizer)
    tokenizer.save(folder / "tokenizer")
    return tokenizer


def check_batch_divisible(multiple: int, grad_accum: int, devices: int) -> None:
    """The batches do not change with the machine, so it must be able to divide them. Raises UserError with the cure."""
    if multiple % (grad_accum * devices):
        fits = 0 if multiple % grad_accum else math.gcd(multiple // grad_accum, devices)
        raise UserError(
            f"the rows of the batches are multiples of {multiple}, which {grad_accum} micro-batches on {devices} "
            "devices cannot share evenly: choose --batching.row_multiple (or .rows) "
            f"{math.lcm(grad_accum * devices, 8)}"
            + (f", or split rows over {fits} devices alone (--mesh data={fits})" if fits else "")
        )


def _parameter_summary(state: TrainState, tuning: FineTuning) -> str:
    """What is trained, in numbers."""
    learnt, all_of = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (
        partition(state.params, tuning.is_trainable)[0], state.params))  # fmt: skip
    return (
        f"parameters: {learnt:,} of {all_of:,} are trained ({learnt / all_of:.1%}); the optimizer keeps "
        f"{tree_bytes(state.opt_state) / 1e6:,.1f} MB"
    )


def _indivisible_lengths(batches: Batches, mesh: Mesh) -> list[str]:
    """A line about the lengths of batches that the axis `sequence` does not divide."""
    lengths = {length for bucket in getattr(batches, "buckets", ()) for length in (bucket.source, bucket.target)}
    odd = sorted(length for length in lengths if length % mesh.shape["sequence"])
    return [f"batches of {', '.join(map(str, odd))} positions (by sequence={mesh.shape['sequence']})"] if odd else []


def _mesh_summary(mesh: Mesh, unsharded: list[str]) -> str:
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    rest = f"; left whole, since their sizes do not divide: {'; '.join(unsharded)}" if unsharded else ""
    return f"mesh: {sizes} on {mesh.size} devices{rest}"


def _batch_summary(figures: dict[str, float]) -> str:
    return (
        f"batches: {figures['examples']:,.0f} examples in {figures['batches_per_epoch']:,.1f} batches an epoch, "
        f"{figures['shapes']:.0f} shapes, {figures['tokens']:,.0f} real tokens a batch, "
        f"padding {figures.get('padding_target', figures['padding_both']):.1%} of the target, "
        f"{figures['padding_both']:.1%} in all; {figures['dropped']:.0f} too long and left out, "
        f"{figures['truncated']:.0f} cut"
    )

"""From an experiment and a workdir to everything that the loop needs, in the order in which faults are cheapest."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlm import hosts, workdir
from jaxlm.data.batching import Columns, Plan
from jaxlm.data.collate import Batches, HostRows
from jaxlm.data.digest import digests
from jaxlm.data.text import BadLines
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.disk import check_writable
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.leaves import part, tree_bytes
from jaxlm.parallel import batch_shards, data_mesh, left_whole, make_mesh
from jaxlm.placing import row_share
from jaxlm.train.machine import PLAIN, Machine
from jaxlm.train.program import fresh_state, program
from jaxlm.train.source import started, take_along
from jaxlm.train.state import TrainState
from jaxlm.tuning import Tuning

VALID_TOKENS = 8192
"""Positions of a batch of the evaluations during training."""


@dataclass(frozen=True)
class Data:
    """What one run learns from: the tokenizer and the training split as ids."""

    tokenizer: Tokenizer
    columns: Columns


@dataclass(frozen=True)
class Prepared:
    """What one run is made of."""

    experiment: Experiment
    folder: Path
    tokenizer: Tokenizer
    batches: Any
    step: Any
    abstract_state: TrainState
    create: Any
    mesh: Mesh


def prepare_data(experiment: Experiment, folder: Path, note: Any, size: int = 0) -> Data:
    """Claim the workdir, fit or load the tokenizer, encode the data. `size`: bytes of a checkpoint, if known."""
    check_writable(folder, size * (experiment.keep + 1))
    workdir.claim(folder, experiment)
    tokenizer = _tokenizer(experiment, folder, note)
    workdir.check_vocabulary(experiment, tokenizer)
    _check_best(experiment)
    experiment.task.check_model(experiment.model, tokenizer)
    bad, task = BadLines(), experiment.task
    columns = task.columns(tokenizer, folder / "data" / "train", bad)
    workdir.claim_data(folder, digests(columns))
    if bad.kept:
        note(f"data: {task.describe()}: {bad}")
    return Data(tokenizer, columns)


def prepare(experiment: Experiment, folder: Path, note: Any, machine: Machine = PLAIN) -> Prepared:
    """Everything that the loop needs. `note(text)` tells the user."""
    new = fresh_state(experiment)
    abstract = jax.eval_shape(new)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    data = hosts.in_turn(lambda: prepare_data(experiment, folder, note, size))
    mesh = data_mesh() if machine.mesh is None else make_mesh(machine.mesh)
    plan = experiment.batching.plan(data.columns, experiment.seed)
    batches = HostRows(Batches(data.columns, plan) if isinstance(plan, Plan) else plan, *row_share(mesh))
    check_rows(batches.multiple, experiment.accumulate, batch_shards(mesh))
    note(_described(batches.statistics()))
    if mesh.size > 1:
        note(_laid_out(mesh, [*left_whole(abstract.params, mesh), *_long_rows(plan, mesh)]))
    made = program(experiment, new, mesh, machine)
    tokenizer, state = data.tokenizer, made.abstract_state
    note(_trained(state, experiment.tuning))
    return Prepared(
        experiment, folder, tokenizer, batches, made.step, state, lambda: started(made.create(), experiment, note), mesh
    )


def _check_best(experiment: Experiment) -> None:
    figures = [f"valid/{name}" for name in experiment.task.figures]
    if figures and experiment.best not in figures:
        raise UserError(f"best = {experiment.best!r}: expected one of the figures {', '.join(figures)}")


def _tokenizer(experiment: Experiment, folder: Path, note: Any) -> Tokenizer:
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    if experiment.tuning.init:
        return take_along(Path(experiment.tuning.init), folder)
    note(f"tokenizer: learning {experiment.tokenizer} from {experiment.task.describe()}")
    tokenizer = experiment.tokenizer.fit(experiment.task.texts())
    workdir.check_vocabulary(experiment, tokenizer)
    tokenizer.save(folder / "tokenizer")
    return tokenizer


def check_rows(multiple: int, accumulate: int, devices: int) -> None:
    """The batches do not change with the machine, so it must be able to divide them. Raises UserError with the cure."""
    if multiple % (accumulate * devices):
        fits = 0 if multiple % accumulate else math.gcd(multiple // accumulate, devices)
        raise UserError(
            f"the rows of the batches are multiples of {multiple}, which {accumulate} micro-batches on {devices} "
            f"devices cannot share evenly: choose --batching.multiple (or .rows) {math.lcm(accumulate * devices, 8)}"
            + (f", or split rows over {fits} devices alone (--mesh data={fits})" if fits else "")
        )


def _trained(state: TrainState, tuning: Tuning) -> str:
    """What is trained, in numbers."""
    learnt, all_of = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (
        part(state.params, tuning.trains)[0], state.params))  # fmt: skip
    return (
        f"parameters: {learnt:,} of {all_of:,} are trained ({learnt / all_of:.1%}); the optimizer keeps "
        f"{tree_bytes(state.opt_state) / 1e6:,.1f} MB"
    )


def _long_rows(plan: Any, mesh: Mesh) -> list[str]:
    """A line about the lengths of batches that the axis `sequence` does not divide."""
    lengths = {length for bucket in getattr(plan, "buckets", ()) for length in (bucket.source, bucket.target)}
    odd = sorted(length for length in lengths if length % mesh.shape["sequence"])
    return [f"batches of {', '.join(map(str, odd))} positions (by sequence={mesh.shape['sequence']})"] if odd else []


def _laid_out(mesh: Mesh, whole: list[str]) -> str:
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    rest = f"; left whole, since their sizes do not divide: {'; '.join(whole)}" if whole else ""
    return f"mesh: {sizes} on {mesh.size} devices{rest}"


def _described(figures: dict[str, float]) -> str:
    return (
        f"batches: {figures['examples']:,.0f} examples in {figures['batches_per_epoch']:,.1f} batches an epoch, "
        f"{figures['shapes']:.0f} shapes, {figures['tokens']:,.0f} real tokens a batch, "
        f"padding {figures.get('padding_target', figures['padding_both']):.1%} of the target, "
        f"{figures['padding_both']:.1%} in all; {figures['dropped']:.0f} too long and left out, "
        f"{figures['truncated']:.0f} cut"
    )

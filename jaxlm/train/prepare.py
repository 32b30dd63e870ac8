"""From an experiment and a workdir to everything that the loop needs, in the order in which faults are cheapest."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlm import workdir
from jaxlm.data.batching import Columns, Plan
from jaxlm.data.collate import Batches
from jaxlm.data.text import BadLines
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.disk import check_writable
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.leaves import part, tree_bytes
from jaxlm.parallel import data_mesh, everywhere, rows, with_sharding
from jaxlm.train.source import started, take_along
from jaxlm.train.state import TrainState, create
from jaxlm.train.step import make_step
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
    if bad.kept:
        note(f"data: {task.describe()}: {bad}")
    return Data(tokenizer, columns)


def prepare(experiment: Experiment, folder: Path, note: Any) -> Prepared:
    """Everything that the loop needs. `note(text)` tells the user."""
    optimizer, batching = experiment.optimizer.build(experiment.steps), experiment.batching
    carry = getattr(batching, "carry_rows", 0)

    def new() -> TrainState:
        parts = experiment.model, optimizer, workdir.example(), experiment.seed, experiment.averages, carry
        return create(*parts, experiment.tuning)

    abstract = jax.eval_shape(new)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    data = prepare_data(experiment, folder, note, size)
    mesh = data_mesh()
    plan = batching.plan(data.columns, experiment.seed)
    batches = Batches(data.columns, plan) if isinstance(plan, Plan) else plan
    _check_rows(batches.multiple, experiment.accumulate, mesh.size)
    note(_described(batches.statistics()))
    rate = experiment.optimizer.schedule.build(experiment.steps)
    parts = experiment.model, experiment.objective, optimizer, rate, experiment.seed
    step = make_step(*parts, experiment.accumulate, experiment.ema, mesh, experiment.tuning.trains)
    whole, by_row = everywhere(mesh), rows(mesh)
    placed: Any = TrainState(*(whole,) * 5, carry=by_row)  # type: ignore[arg-type]
    split = with_sharding(abstract.carry, by_row)
    abstract = with_sharding(replace(abstract, carry=None), whole)
    abstract = replace(abstract, carry=split)
    note(_trained(abstract, experiment.tuning))
    made = jax.jit(new, out_shardings=placed)
    return Prepared(
        experiment, folder, data.tokenizer, batches, step, abstract, lambda: started(made(), experiment, note), mesh
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


def _check_rows(multiple: int, accumulate: int, devices: int) -> None:
    """The batches do not change with the machine, so it must be able to divide them."""
    if multiple % (accumulate * devices):
        raise UserError(
            f"the rows of the batches are multiples of {multiple}, which {accumulate} micro-batches on {devices} "
            f"devices cannot share evenly: choose --batching.multiple (or .rows) {math.lcm(accumulate * devices, 8)}"
        )


def _trained(state: TrainState, tuning: Tuning) -> str:
    """What is trained, in numbers."""
    learnt, all_of = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (
        part(state.params, tuning.trains)[0], state.params))  # fmt: skip
    return (
        f"parameters: {learnt:,} of {all_of:,} are trained ({learnt / all_of:.1%}); the optimizer keeps "
        f"{tree_bytes(state.opt_state) / 1e6:,.1f} MB"
    )


def _described(figures: dict[str, float]) -> str:
    return (
        f"batches: {figures['examples']:,.0f} examples in {figures['batches_per_epoch']:,.1f} batches an epoch, "
        f"{figures['shapes']:.0f} shapes, {figures['tokens']:,.0f} real tokens a batch, "
        f"padding {figures.get('padding_target', figures['padding_both']):.1%} of the target, "
        f"{figures['padding_both']:.1%} in all; {figures['dropped']:.0f} too long and left out, "
        f"{figures['truncated']:.0f} cut"
    )

"""From an experiment and a workdir to everything that the loop needs, in the order in which faults are cheapest."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlm import workdir
from jaxlm.data.batching import Plan
from jaxlm.data.pairs import read
from jaxlm.data.pipeline import Batches
from jaxlm.data.ragged import encode_pairs
from jaxlm.data.text import BadLines
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.disk import check_writable
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.parallel import data_mesh, everywhere, with_sharding
from jaxlm.train.state import TrainState, create
from jaxlm.train.step import make_step


@dataclass(frozen=True)
class Prepared:
    """What one run is made of."""

    experiment: Experiment
    folder: Path
    tokenizer: Tokenizer
    plan: Plan
    batches: Batches
    step: Any
    abstract_state: TrainState
    create: Any
    mesh: Mesh


def prepare(experiment: Experiment, folder: Path, note: Any) -> Prepared:
    """Claim the workdir, fit or load the tokenizer, encode the data, plan the batches. `note(text)` tells the user."""
    optimizer = experiment.optimizer.build(experiment.steps)

    def new() -> TrainState:
        return create(experiment.model, optimizer, workdir.example(), experiment.seed, experiment.ema > 0)

    abstract = jax.eval_shape(new)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    check_writable(folder, size * (experiment.keep + 1))
    workdir.claim(folder, experiment)
    tokenizer = _tokenizer(experiment, folder, note)
    workdir.check_vocabulary(experiment, tokenizer)
    columns = _columns(experiment, folder, tokenizer, note)
    mesh = data_mesh()
    plan = experiment.batching.plan(columns, experiment.seed)
    _check_rows(plan, experiment.accumulate, mesh.size)
    note(_described(plan))
    rate = experiment.optimizer.schedule.build(experiment.steps)
    parts = experiment.model, experiment.objective, optimizer, rate, experiment.seed
    step = make_step(*parts, experiment.accumulate, experiment.ema, mesh)
    abstract = with_sharding(abstract, everywhere(mesh))
    create_state = jax.jit(new, out_shardings=everywhere(mesh))
    return Prepared(experiment, folder, tokenizer, plan, Batches(columns, plan), step, abstract, create_state, mesh)


def _tokenizer(experiment: Experiment, folder: Path, note: Any) -> Tokenizer:
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    note(f"tokenizer: learning {experiment.tokenizer} from {experiment.task.train.describe()}")
    tokenizer = experiment.tokenizer.fit(experiment.task.texts())
    workdir.check_vocabulary(experiment, tokenizer)
    tokenizer.save(folder / "tokenizer")
    return tokenizer


def _columns(experiment: Experiment, folder: Path, tokenizer: Tokenizer, note: Any) -> Any:
    bad = BadLines()
    columns = encode_pairs(read(experiment.task.train, bad), tokenizer, folder / "data" / "train")
    if bad.kept:
        note(f"data: {experiment.task.train.describe()}: {bad}")
    return columns


def _check_rows(plan: Plan, accumulate: int, devices: int) -> None:
    """The batches do not change with the machine, so it must be able to divide them."""
    rows = math.gcd(*(bucket.rows for bucket in plan.buckets))
    if rows % (accumulate * devices):
        raise UserError(
            f"the rows of the batches are multiples of {rows}, which {accumulate} micro-batches on {devices} devices "
            f"cannot share evenly: choose --batching.multiple {math.lcm(accumulate * devices, 8)}"
        )


def _described(plan: Plan) -> str:
    figures = plan.statistics()
    return (
        f"batches: {figures['examples']:,.0f} examples in {figures['batches_per_epoch']:,.1f} batches an epoch, "
        f"{figures['shapes']:.0f} shapes, {figures['tokens']:,.0f} real tokens a batch, "
        f"padding {figures.get('padding_target', figures['padding_both']):.1%} of the target, "
        f"{figures['padding_both']:.1%} in all; {figures['dropped']:.0f} too long and left out, "
        f"{figures['truncated']:.0f} cut"
    )

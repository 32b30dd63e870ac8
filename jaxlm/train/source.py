"""A run that starts from another workdir: its model where it has none of its own, its tokenizer, its parameters.

Parameters are found by their path, in which the names of wrappers do not count: what a model wraps is called `model`,
so "model/stack/..." of an imported BERT and "model/model/stack/..." of a classifier around it are the same.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm import workdir
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.leaves import exchanged, named_leaves, rebuild
from jaxlm.models.headed import Headed
from jaxlm.models.renumbered import Renumbered
from jaxlm.train.state import TrainState
from jaxlm.types import Params

LISTED = 12
"""Paths that a message names."""


def resolved(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with the trunk and the tokenizer of `tuning.init`; of the run in `folder`, where it has begun.

    A published model takes the place of the experiment's own: its sizes and its ids belong to its tokenizer. Heads,
    dropout and dtype stay those of the experiment. Raises UserError where a model has no trunk, and none to take, and
    where the published one is of another kind.
    """
    init, model = experiment.tuning.init, experiment.model
    headed = isinstance(model, Headed)
    lacks = headed and model.model is None
    if not init and not lacks:
        return experiment
    if not init:
        raise UserError(
            f"{type(model).__name__} has nothing to read with: --tuning.init WORKDIR takes the model of a run or of "
            "`import-hf`"
        )
    source = workdir.read_experiment(_begun(experiment, folder) or Path(init))
    trunk = source.model.model if isinstance(source.model, Headed) else source.model
    if lacks:
        model = model.around(trunk)
    elif isinstance(trunk, Renumbered) and not headed and not isinstance(model, Renumbered):
        model = trunk.trained_like(model)
    return replace(experiment, model=model, tokenizer=source.tokenizer)


def take_along(init: Path, folder: Path) -> Tokenizer:
    """Copy the tokenizer of the workdir `init` into a new one, and what a published model came with."""
    shutil.copytree(init / "tokenizer", folder / "tokenizer")
    if (init / workdir.KEPT).is_dir():
        shutil.copytree(init / workdir.KEPT, folder / workdir.KEPT, dirs_exist_ok=True)
    return load_tokenizer(folder / "tokenizer")


def started(state: TrainState, experiment: Experiment, note: Any) -> TrainState:
    """A fresh state with the parameters of `tuning.init`; `note` tells what came, what is fresh, what was left out.

    Raises UserError with the names where shapes differ, where nothing fits, and where what is fresh is not trained.
    """
    tuning = experiment.tuning
    if not tuning.init:
        return state
    source = workdir.load(Path(tuning.init))
    found = fit_together(state.params, source.params, getattr(experiment.model, "new_ids", 0), tuning.init)
    untrained = [name for name in found.fresh if not tuning.trains(name)]
    if untrained:
        raise UserError(
            f"{tuning.init} lacks {_listed(untrained)}: they would start at random and never be trained; add a pattern "
            "to tuning.train that finds them"
        )
    note(
        f"from {tuning.init} (steps {source.steps}): {found.numbers:,} numbers in {len(found.came)} parameters; fresh: "
        f"{_listed(found.fresh)}; left out: {_listed(found.left_out)}"
    )
    params = rebuild(state.params, {**named_leaves(state.params), **found.came})
    if state.ema is None:
        return replace(state, params=params)
    return replace(state, params=params, ema=jax.tree.map(jax.numpy.copy, exchanged(state.ema, params)[1]))


@dataclass(frozen=True)
class Fit:
    """`came`: the arrays that were found, by path here; `fresh`: paths here without one; `left_out`: unused ones."""

    came: Mapping[str, Any]
    fresh: list[str]
    left_out: list[str]

    @property
    def numbers(self) -> int:
        """How many came."""
        return sum(leaf.size for leaf in self.came.values())


def fit_together(params: Params, source: Params, new_ids: int, where: str) -> Fit:
    """Which parameters come from `source`. The last `new_ids` rows of tables of ids may be fresh. Raises UserError."""
    ours, theirs = (
        {_bare(name): (name, leaf) for name, leaf in named_leaves(tree).items()} for tree in (params, source)
    )
    came, wrong = {}, []
    for bare in ours.keys() & theirs.keys():
        (name, leaf), (other, given) = ours[bare], theirs[bare]
        if leaf.shape == given.shape:
            came[name] = jax.device_put(given.astype(leaf.dtype), leaf.sharding)
        elif new_ids and leaf.shape == (given.shape[0] + new_ids, *given.shape[1:]):
            grown = np.asarray(leaf).copy()
            grown[: len(given)] = given
            came[name] = jax.device_put(grown, leaf.sharding)
        else:
            wrong.append(f"{name} has shape {leaf.shape}, {other} there {given.shape}")
    if wrong:
        raise UserError(f"the parameters of {where} do not fit the model:\n  " + "\n  ".join(sorted(wrong)))
    if not came:
        raise UserError(
            f"no parameter of {where} is one of this model: there are {_listed(list(named_leaves(source)))} there, and "
            f"{_listed(list(named_leaves(params)))} here"
        )
    fresh = [name for bare, (name, _) in ours.items() if bare not in theirs]
    return Fit(came, fresh, [name for bare, (name, _) in theirs.items() if bare not in ours])


def _begun(experiment: Experiment, folder: Path) -> Path | None:
    """The folder, if the run that starts from there has saved something: it needs the other one no longer."""
    if (folder / workdir.RECORD).is_file() and any((folder / "checkpoints").glob("*")):
        same = workdir.read_experiment(folder).tuning.init == experiment.tuning.init
        return folder if same else None
    return None


def _bare(path: str) -> str:
    while path.startswith("model/"):
        path = path.removeprefix("model/")
    return path


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) + more) or "nothing"

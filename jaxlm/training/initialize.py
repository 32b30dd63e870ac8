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
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.special_ids import Renumbered
from jaxlm.pytree import named_leaves, replace_leaves, swap_leaves
from jaxlm.training.state import TrainState
from jaxlm.types import Params

MAX_LISTED_NAMES = 12
"""Paths that a message names."""


def resolve_init(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with the trunk and the tokenizer of `finetuning.init`; of the run in `folder`, where it has begun.

    A published model takes the place of the experiment's own: its sizes and its ids belong to its tokenizer. Heads,
    dropout and dtype stay those of the experiment. Raises UserError where a model has no trunk, and none to take, and
    where the published one is of another kind.
    """
    init, model = experiment.finetuning.init, experiment.model
    headed = isinstance(model, FineTunable)
    lacks = headed and model.model is None
    if not init and not lacks:
        return experiment
    if not init:
        raise UserError(
            f"{type(model).__name__} has nothing to read with: --finetuning.init WORKDIR takes the model of a run "
            "or of "
            "`import-hf`"
        )
    source = workdir.read_experiment(_resuming_from(experiment, folder) or Path(init))
    trunk = source.model.model if isinstance(source.model, FineTunable) else source.model
    if lacks:
        model = model.with_trunk(trunk)
    elif isinstance(trunk, Renumbered) and not headed and not isinstance(model, Renumbered):
        model = trunk.trained_like(model)
    return replace(experiment, model=model, tokenizer=source.tokenizer)


def copy_tokenizer(init: Path, folder: Path) -> Tokenizer:
    """Copy the tokenizer of the workdir `init` into a new one, and what a published model came with."""
    shutil.copytree(init / "tokenizer", folder / "tokenizer")
    if (init / workdir.PRETRAINED_FILES).is_dir():
        shutil.copytree(init / workdir.PRETRAINED_FILES, folder / workdir.PRETRAINED_FILES, dirs_exist_ok=True)
    return load_tokenizer(folder / "tokenizer")


def load_init_params(state: TrainState, experiment: Experiment, notify: Any) -> TrainState:
    """A fresh state with the parameters of `finetuning.init`; `note` tells what came, what is fresh, what was left out.

    Raises UserError with the names where shapes differ, where nothing fits, and where what is fresh is not trained.
    """
    tuning = experiment.finetuning
    if not tuning.init:
        return state
    source = workdir.load_trained_model(Path(tuning.init))
    found = match_params(state.params, source.params, getattr(experiment.model, "num_extra_ids", 0), tuning.init)
    untrained = [name for name in found.initialized if not tuning.is_trainable(name)]
    if untrained:
        raise UserError(
            f"{tuning.init} lacks {_format_names(untrained)}: they would start at random and never be trained; "
            "add a pattern "
            "to finetuning.trainable that finds them"
        )
    notify(
        f"from {tuning.init} (steps {source.steps}): {found.num_loaded:,} numbers in {len(found.loaded)} "
        "parameters; fresh: "
        f"{_format_names(found.initialized)}; left out: {_format_names(found.unused)}"
    )
    params = replace_leaves(state.params, {**named_leaves(state.params), **found.loaded})
    if state.ema is None:
        return replace(state, params=params)
    return replace(state, params=params, ema=jax.tree.map(jax.numpy.copy, swap_leaves(state.ema, params)[1]))


@dataclass(frozen=True)
class ParamMatch:
    """`came`: the arrays that were found, by path here; `fresh`: paths here without one; `left_out`: unused ones."""

    loaded: Mapping[str, Any]
    initialized: list[str]
    unused: list[str]

    @property
    def num_loaded(self) -> int:
        """How many came."""
        return sum(leaf.size for leaf in self.loaded.values())


def match_params(params: Params, source: Params, extra_ids: int, source_name: str) -> ParamMatch:
    """Which parameters come from `source`. The last `new_ids` rows of tables of ids may be fresh. Raises UserError."""
    ours, theirs = (
        {_strip_wrappers(name): (name, leaf) for name, leaf in named_leaves(tree).items()} for tree in (params, source)
    )
    came, wrong = {}, []
    for bare in ours.keys() & theirs.keys():
        (name, leaf), (other, given) = ours[bare], theirs[bare]
        if leaf.shape == given.shape:
            came[name] = jax.device_put(given.astype(leaf.dtype), leaf.sharding)
        elif extra_ids and leaf.shape == (given.shape[0] + extra_ids, *given.shape[1:]):
            grown = np.asarray(leaf).copy()
            grown[: len(given)] = given
            came[name] = jax.device_put(grown, leaf.sharding)
        else:
            wrong.append(f"{name} has shape {leaf.shape}, {other} there {given.shape}")
    if wrong:
        raise UserError(f"the parameters of {source_name} do not fit the model:\n  " + "\n  ".join(sorted(wrong)))
    if not came:
        raise UserError(
            f"no parameter of {source_name} is one of this model: there are "
            f"{_format_names(list(named_leaves(source)))} there, and "
            f"{_format_names(list(named_leaves(params)))} here"
        )
    fresh = [name for bare, (name, _) in ours.items() if bare not in theirs]
    return ParamMatch(came, fresh, [name for bare, (name, _) in theirs.items() if bare not in ours])


def _resuming_from(experiment: Experiment, folder: Path) -> Path | None:
    """The folder, if the run that starts from there has saved something: it needs the other one no longer."""
    if (folder / workdir.EXPERIMENT_FILE).is_file() and any((folder / "checkpoints").glob("*")):
        same = workdir.read_experiment(folder).finetuning.init == experiment.finetuning.init
        return folder if same else None
    return None


def _strip_wrappers(path: str) -> str:
    while path.startswith("model/"):
        path = path.removeprefix("model/")
    return path


def _format_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return (", ".join(names[:MAX_LISTED_NAMES]) + more) or "nothing"

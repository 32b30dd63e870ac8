"""The start from another workdir (`finetuning.init`): its model if the run has none, its tokenizer, its parameters.

Parameters are matched by path without the names of wrappers: a wrapped model is called `model`, so "model/stack/..." of
an imported BERT and "model/model/stack/..." of a classifier around it are the same parameter.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxlm.data.tokenizers.loading import PretrainedTokenizer
from jaxlm.errors import UserError, list_some
from jaxlm.experiment import Experiment
from jaxlm.models.finetune_heads import FineTunable
from jaxlm.models.properties import RUN_FIELDS
from jaxlm.pytree import named_leaves, replace_leaves, swap_leaves
from jaxlm.training.state import TrainState
from jaxlm.types import Params
from jaxlm.workdir import Workdir


def resolve_init(experiment: Experiment, workdir: Workdir | None = None) -> Experiment:
    """The experiment with the model, the tokenizer and, if it has none, the chat template of `finetuning.init`.

    If the run in `workdir` has a checkpoint, both come from there and the initial workdir is no longer needed. A
    published model replaces the model of the experiment, because its sizes and ids belong to its tokenizer; heads,
    dropout and dtype stay those of the experiment. Raises UserError if a head has no model and there is none to take,
    and if the published model is of another kind.
    """
    init, model = experiment.finetuning.init, experiment.model
    has_head = isinstance(model, FineTunable)
    needs_trunk = has_head and model.model is None
    if needs_trunk and not init:
        raise UserError(
            f"{type(model).__name__} is a head without a model: --finetuning.init WORKDIR takes the model of a run or "
            "of `import-hf`"
        )
    if not init:
        return experiment
    source = Workdir(init)
    if workdir and workdir.experiment_file.is_file() and workdir.has_checkpoint():
        source = workdir if workdir.read_experiment().finetuning.init == init else source
    initial = source.read_experiment()
    trunk = initial.model.model if isinstance(initial.model, FineTunable) else initial.model
    if needs_trunk:
        model = model.with_trunk(trunk)
    elif isinstance(initial.tokenizer, PretrainedTokenizer) and not has_head:
        if type(model) is not type(trunk):
            raise UserError(
                f"a published {type(trunk).__name__} cannot stand in the place of the experiment's "
                f"{type(model).__name__}: choose an experiment of that kind"
            )
        fields = {name: getattr(model, name) for name in (*RUN_FIELDS, "mlm_head", "nsp_head") if hasattr(model, name)}
        model = trunk.clone(**fields, parent=None)
    task: Any = experiment.task
    if getattr(task, "chat_template", initial) is None:
        task = replace(task, chat_template=getattr(initial.task, "chat_template", None))
    return replace(experiment, task=task, model=model, tokenizer=initial.tokenizer)


def load_init_params(state: TrainState, experiment: Experiment, notify: Callable[[str], None]) -> TrainState:
    """A new state with the parameters of `finetuning.init`; `notify` shows which were loaded, initialized and unused.

    Raises UserError with the names if shapes differ, if no parameter matches, or if one that is not in `init` is not
    trained either.
    """
    finetuning = experiment.finetuning
    if not finetuning.init:
        return state
    source = Workdir(finetuning.init).load()
    match = match_params(state.params, source.params, getattr(experiment.model, "num_extra_ids", 0), finetuning.init)
    untrained = [name for name in match.initialized if not finetuning.is_trainable(name)]
    if untrained:
        raise UserError(
            f"{finetuning.init} lacks {list_some(untrained)}: they would start at random and never be trained; "
            "add a pattern to finetuning.trainable that matches them"
        )
    loaded = sum(leaf.size for leaf in match.loaded.values())
    notify(
        f"from {finetuning.init} (steps {source.steps}): {loaded:,} numbers in {len(match.loaded)} parameters; "
        f"initialized: {list_some(match.initialized)}; unused: {list_some(match.unused)}"
    )
    params = replace_leaves(state.params, {**named_leaves(state.params), **match.loaded})
    if state.ema is None:
        return replace(state, params=params)
    # The average is a copy, not the same arrays: the train step donates both.
    return replace(state, params=params, ema=jax.tree.map(jax.numpy.copy, swap_leaves(state.ema, params)[1]))


@dataclass(frozen=True)
class ParamMatch:
    """The arrays that were found, by path in the model; the paths of the model and of the source without a match."""

    loaded: Mapping[str, Any]
    initialized: list[str]
    unused: list[str]


def match_params(params: Params, source: Params, extra_ids: int, source_name: str) -> ParamMatch:
    """The parameters that can be loaded from `source`.

    The last `extra_ids` rows of a table of ids may be missing in `source` and stay as they are. Raises UserError if
    shapes differ otherwise, or if nothing matches.
    """
    ours, theirs = (
        {re.sub("^(model/)+", "", name): (name, leaf) for name, leaf in named_leaves(tree).items()}
        for tree in (params, source)
    )
    loaded, mismatches = {}, []
    for bare_name in ours.keys() & theirs.keys():
        (name, leaf), (source_path, stored) = ours[bare_name], theirs[bare_name]
        if leaf.shape == stored.shape:
            loaded[name] = jax.device_put(stored.astype(leaf.dtype), leaf.sharding)
        elif extra_ids and leaf.shape == (stored.shape[0] + extra_ids, *stored.shape[1:]):
            extended = np.asarray(leaf).copy()
            extended[: len(stored)] = stored
            loaded[name] = jax.device_put(extended, leaf.sharding)
        else:
            mismatches.append(f"{name} has shape {leaf.shape}, {source_path} there {stored.shape}")
    if mismatches:
        raise UserError(f"the parameters of {source_name} do not fit the model:\n  " + "\n  ".join(sorted(mismatches)))
    if not loaded:
        raise UserError(
            f"no parameter of {source_name} matches this model. {source_name} has: "
            f"{list_some(list(named_leaves(source)))}; the model has: {list_some(list(named_leaves(params)))}"
        )
    initialized = [name for bare_name, (name, _) in ours.items() if bare_name not in theirs]
    return ParamMatch(loaded, initialized, [name for bare, (name, _) in theirs.items() if bare not in ours])

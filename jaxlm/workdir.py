"""A run's folder: `experiment.json`, `data.json`, `tokenizer/`, `data/`, `checkpoints/`, `metrics.jsonl`, ...

It is all that `evaluate`, `predict` and the others need, and it may be moved.
"""

import dataclasses
import json
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm import __version__, config
from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.data.batching.collate import MAX_WORD_CHARACTERS
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.distributed import multihost
from jaxlm.errors import UserError
from jaxlm.experiment import RESUMABLE_FIELDS, Experiment
from jaxlm.filesystem import write_atomic
from jaxlm.inference.base import TrainedModel
from jaxlm.nn.layers.adapters import merge_lora
from jaxlm.types import Batch, Params

EXPERIMENT_FILE = "experiment.json"

DATA_FILE = "data.json"
"""What the training split was known by when the run began."""

PRETRAINED_FILES = "published"
"""The folder of a workdir that holds what came with a published model beside its weights."""

TEST_FILE = "test.json"
"""The scores of the test split, written when training ends."""

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun(TrainedModel):
    """The trained model of a workdir, its experiment, and the steps of the checkpoints that were averaged."""

    experiment: Experiment
    steps: list[int]


def open_or_create(folder: Path, experiment: Experiment) -> bool:
    """Make the folder this experiment's own; True if it already holds the run, which then goes on.

    A run that has no checkpoint yet is begun anew. Raises UserError if the folder holds a run whose identity differs
    (the fields are named), or something else altogether.
    """
    record = folder / EXPERIMENT_FILE
    if not record.exists():
        strangers = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        if "checkpoints" in strangers:
            raise UserError(
                f"{folder} has checkpoints but no {EXPERIMENT_FILE}: restore that file or choose another --workdir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_experiment(folder, experiment)
        return False
    old = read_experiment(folder)
    found = _identity_differences(experiment, old, str(record))
    if found and not _has_checkpoint(folder):  # it stopped before it learnt anything
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    elif found:
        raise UserError(
            f"{folder} holds another experiment:\n  " + "\n  ".join(found) + "\nchoose another --workdir, or give the "
            "options that it was started with"
        )
    write_experiment(folder, experiment)
    return True


def check_data_unchanged(folder: Path, fingerprints: dict[str, Any]) -> None:
    """Note what a run learns from (`jaxlm.data.storage.columns.fingerprints`). Raises UserError where one that has
    learnt something began with other data: its next batches would be those of neither.
    """
    file = folder / DATA_FILE
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = fingerprints
    if old != fingerprints and _has_checkpoint(folder):
        raise UserError(
            f"the training data is not what {folder} began with: {_describe_fingerprints(old)} then, "
            f"{_describe_fingerprints(fingerprints)} now. Give it "
            f"the same data, or choose another --workdir, where --finetuning.init {folder} begins with what this "
            "has learnt"
        )
    if jax.process_index() == 0:
        file.write_text(json.dumps(fingerprints, indent=1) + "\n", encoding="utf-8")


def _describe_fingerprints(columns: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {of['rows']:,} rows of {of['ids']:,} ids ({of['digest']})" for name, of in columns.items()
    )


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*"))


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """The run's identity and, for the reader, what it was started with. Of several processes the first one writes."""
    if jax.process_index() > 0:
        return
    record = {"experiment": config.to_json(experiment), "versions": library_versions(), "git": _git_state()}
    write_atomic(folder / EXPERIMENT_FILE, json.dumps(record, indent=1) + "\n")


def read_experiment(folder: Path) -> Experiment:
    """The experiment of a workdir. Raises UserError where there is none or it cannot be read."""
    record = folder / EXPERIMENT_FILE
    if not record.is_file():
        raise UserError(
            f"{folder} is no workdir: it has no {EXPERIMENT_FILE}. `jaxlm train EXPERIMENT --workdir {folder}` "
            "makes one"
        )
    try:
        data = json.loads(record.read_text(encoding="utf-8"))["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error}): restore it from a copy") from None
    experiment = config.from_json(data)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{record} holds a {type(experiment).__name__}, expected an Experiment")
    return experiment


def load_trained_model(
    folder: Path, average_last: int | None = None, step: int | None = None, merge: bool = True
) -> TrainedRun:
    """The trained model of a workdir: the mean of the last checkpoints, or the best or the given one.

    Low-rank maps are merged into those that they stand beside, unless `merge` is False.

    `average` overrides the experiment's own, which counts as what there is where a short run has saved fewer; `step`
    picks one checkpoint.
    """
    experiment = read_experiment(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    check_vocabulary(experiment, tokenizer)
    with Checkpoints(folder / "checkpoints", keep_best=experiment.best_metric, read_only=True) as checkpoints:
        there = len(checkpoints.steps())
        count = min(experiment.average_last, there) if average_last is None else average_last
        if not there:
            raise UserError(f"{folder} holds no checkpoint yet: train it with `jaxlm train`")
        fitted = hasattr(experiment.model, "fit")
        params = checkpoints.abstract_params(step) if fitted else abstract_tuned_params(experiment)
        if step is None and count > 1:
            params, steps = checkpoints.average(params, count)
        else:
            params, _, step = checkpoints.restore_params(params, checkpoints.best_step() if step is None else step)
            steps = [step]
    if merge and experiment.finetuning.lora:
        params = merge_lora(params)
    return TrainedRun(experiment.model, multihost.to_local(params), tokenizer, experiment, steps)


def check_vocabulary(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises UserError if the tokenizer and the model do not agree on the number of ids."""
    vocab = getattr(experiment.model, "vocab", tokenizer.vocab_size)
    if tokenizer.vocab_size != vocab:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {vocab}: set both to one number "
            f"(--model.vocab {tokenizer.vocab_size}, or the tokenizer's vocab_size)"
        )


def abstract_params(model: Any) -> Params:
    """Shapes and dtypes of the parameters, without computing anything."""
    return jax.eval_shape(model.init, jax.random.key(0), dummy_batch())["params"]


def abstract_tuned_params(experiment: Experiment) -> Params:
    """The same with what fine-tuning adds: what a checkpoint holds."""
    key = jax.random.key(0)
    return jax.eval_shape(
        lambda params: experiment.finetuning.add_adapters(params, key), abstract_params(experiment.model)
    )


def dummy_batch(rows: int = 1, length: int = 8) -> Batch:
    """A batch that has every field that a model may ask for; it gives shapes to `init`."""
    ids, valid = np.full((rows, length), 4, np.int32), np.ones((rows, length), bool)
    return Batch(
        source_BS=ids, source_valid_BS=valid, target_BT=ids, target_valid_BT=valid, label_BT=ids,
        token_label_BS=0 * ids,
        label_B=np.zeros(rows, np.int32), character_BSW=np.full((rows, length, MAX_WORD_CHARACTERS), 4, np.int32),
    )  # fmt: skip


def library_versions() -> dict[str, str]:
    """Of jaxlm, Python and the libraries that decide what a run computes."""
    found = {"jaxlm": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _identity_differences(new: Experiment, old: Experiment, old_name: str) -> list[str]:
    same = {name: getattr(new, name) for name in RESUMABLE_FIELDS}
    if getattr(new.optimizer.schedule, "needs_total_steps", False):
        del same["steps"]
    aligned: Any = dataclasses.replace(old, **same)
    task: Any = new.task
    old_task: Any = aligned.task
    if type(old_task) is type(task):
        old_task = dataclasses.replace(
            old_task, **{name: getattr(new.task, name) for name in new.task.eval_only_fields}
        )
    return config.differences(new, dataclasses.replace(aligned, task=old_task), old_name)


def _git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it, of the code that runs; None outside a repository."""

    def run(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": run("rev-parse", "HEAD"), "changed": bool(run("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None

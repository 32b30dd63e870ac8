"""The folder of a run, the workdir, which may be moved: where each file lies; makes, opens and refuses workdirs."""

import contextlib
import itertools
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from jaxlm import runtime
from jaxlm.config import trust
from jaxlm.config.serialization import check_config, from_json, iter_dataclasses, to_json
from jaxlm.errors import UserError
from jaxlm.filesystem import copy_folder, create_folder, remove_folder, write_atomic
from jaxlm.json_files import check_type, read_json

if TYPE_CHECKING:
    from jaxlm.checkpoint.manager import Checkpoints
    from jaxlm.data.tokenizers.base import Tokenizer
    from jaxlm.experiment import Experiment, TrainedRun
    from jaxlm.types import Params

WORKDIR_FORMAT = 2
"""Written into experiment.json. Format 1, which has no number, names classes and fields that exist no longer."""


MAX_RECORD_BYTES = 1 << 22


class ExperimentRecord(TypedDict):
    """experiment.json, which also holds the versions of the libraries, the git commit and the machine."""

    format: int
    experiment: dict[str, Any]
    modules: NotRequired[dict[str, trust.ModuleOrigin]]


class Fingerprint(TypedDict):
    """An entry of data.json: a column of the training data."""

    rows: int
    ids: int
    digest: str


READ_ATTEMPTS = 10

TRAIN_COMMAND = "jaxlm train EXPERIMENT"
"""The beginning of a command in a message; the command line puts the words of its user there."""


class Workdir:
    """The paths of a run. The methods import JAX, so that the CLI can refuse a wrong folder before it loads JAX."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.experiment_file = self.folder / "experiment.json"  # format, experiment, library versions, git commit
        self.source_folder = self.folder / "source"  # the modules of the experiment that are not jaxlm's
        self.data_file = self.folder / "data.json"  # fingerprints of the training data
        self.data_changes_file = self.folder / "data_changes.jsonl"  # steps after which other data was accepted
        self.tokenizer_folder = self.folder / "tokenizer"
        self.train_data = self.folder / "data" / "train"  # the training split as ids
        self.reference_folder = self.folder / "reference"  # log-probabilities or parameters of a reference model
        self.checkpoint_folder = self.folder / "checkpoints"  # one folder per saved step
        self.published_folder = self.folder / "published"  # the files that came with an imported model
        self.metrics_file = self.folder / "metrics.jsonl"  # the log
        self.tensorboard_folder = self.folder / "tensorboard"  # the same as TensorBoard events
        self.profile_folder = self.folder / "profile"  # traces of steps
        self.autotune_folder = self.folder / "autotune"  # the kernels that XLA chose on a GPU (--exact)
        self.test_file = self.folder / "test.json"  # scores of the test split, written when training ends

    def __str__(self) -> str:
        return str(self.folder)

    def check(self) -> None:
        """Raise UserError if the folder is not a workdir."""
        if not self.experiment_file.is_file():
            if not self.folder.exists():
                raise UserError(f"{self} does not exist. `jaxlm train EXPERIMENT --workdir {self}` makes it")
            problem = "it has no experiment.json" if self.folder.is_dir() else "it is not a folder"
            raise UserError(
                f"{self} is not a workdir: {problem}. Name the folder that `jaxlm train EXPERIMENT --workdir D` made"
            )

    def check_empty(self) -> None:
        """Raise UserError if the folder holds anything."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self} is not empty: choose another --workdir")

    def create(self, experiment: "Experiment") -> None:
        """Make a new workdir. Raises UserError if the folder is not empty."""
        self.check_empty()
        self.write_experiment(experiment)

    def open_or_create(self, experiment: "Experiment") -> bool:
        """Take the folder for this experiment; True if it holds a run already. One without a checkpoint is replaced.

        Raises UserError if it has checkpoints of a run with another identity (the message names the fields), or without
        an experiment.
        """
        is_run, is_same = self.experiment_file.exists(), self.check_same_experiment(experiment)
        if not is_same:  # nothing was trained with the old tokenizer
            remove_folder(self.tokenizer_folder)
        self.write_experiment(experiment)
        return is_run

    def check_same_experiment(self, experiment: "Experiment") -> bool:
        """True if a run of this experiment can start or continue here; False if it replaces one without a checkpoint.

        Raises UserError if it cannot, with the options that start a new run from the parameters of the old one.
        """
        from jaxlm.experiment import identity_differences

        if not self.experiment_file.exists():
            if self.checkpoint_folder.exists():
                raise UserError(
                    f"{self} has checkpoints but no experiment.json: restore that file or choose another --workdir"
                )
            return True
        differences = identity_differences(experiment, self.read_experiment(), str(self.experiment_file))
        if differences and self.has_checkpoint():
            raise UserError(
                f"{self} holds another experiment:\n  " + "\n  ".join(differences) + "\ngive the options that it was "
                "started with, or another --workdir"
                + ("" if hasattr(experiment.model, "fit") else f"; to start from its parameters:\n  {self.warm_start}")
            )
        return not differences

    @property
    def warm_start(self) -> str:
        """The command of a run that starts from the parameters of this one, in a folder that does not exist yet."""
        free = (self.folder.with_name(f"{self.folder.name}-{number}") for number in itertools.count(2))
        new = next(path for path in free if not path.exists())
        return f"{TRAIN_COMMAND} --workdir {shlex.quote(str(new))} --finetuning.init {shlex.quote(str(self))}"

    def has_checkpoint(self) -> bool:
        """True if the run has saved a step."""
        names = [path.name for path in self.checkpoint_folder.glob("*")]  # one with a longer name was not finished
        return any(name.isdigit() or name.endswith(".damaged") for name in names)

    def write_experiment(self, experiment: "Experiment") -> None:
        """Write experiment.json; of several processes the first one does. Raises UserError for what it cannot hold."""
        from jaxlm.distributed import multihost

        check_config(experiment, "experiment")
        if not multihost.is_first():
            return
        origins = trust.module_origins(type(part) for _, part in iter_dataclasses(experiment))
        record = {"format": WORKDIR_FORMAT, "experiment": to_json(experiment), "modules": origins}
        record |= {
            "versions": runtime.library_versions(),
            "git": runtime.git_state(),
            "machine": runtime.machine_name(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        trust.copy_sources(origins, self.source_folder)
        trust.remember(origins)
        write_atomic(self.experiment_file, json.dumps(record, indent=1) + "\n")

    def read_experiment(self) -> "Experiment":
        """The experiment. Raises UserError if there is none, if it is damaged, or if its format is another one."""
        from jaxlm.experiment import Experiment

        self.check()
        record = read_json(self.experiment_file, max_bytes=MAX_RECORD_BYTES)
        if (format_number := record.get("format", 1)) != WORKDIR_FORMAT:
            raise UserError(
                f"{self.experiment_file} has workdir format {format_number}, this jaxlm reads format {WORKDIR_FORMAT}: "
                "use the version of jaxlm that wrote it, or train into another --workdir"
            )
        check_type(record, ExperimentRecord, str(self.experiment_file))
        origins = record.get("modules", {})
        trust.import_trusted(origins, self.source_folder)
        try:
            experiment = from_json(record["experiment"], str(self.experiment_file))
        except trust.UntrustedModule as error:
            module = next((module for module in origins if error.name.startswith(f"{module}.")), error.module)
            came_from = f" (it was {origins[module]['file']})" if module in origins else ""
            raise UserError(
                f"{error}{came_from}. If you trust it, repeat with --trust {module}, which takes it from here, from "
                f"the Python path or {self.source_folder}; in Python: sys.path.append('{self.source_folder}'); "
                f"import {module}"
            ) from None
        if not isinstance(experiment, Experiment):
            raise UserError(f"{self.experiment_file} holds a {type(experiment).__name__}, expected an Experiment")
        return experiment

    def check_data_unchanged(self, fingerprints: dict[str, Any], accept: bool = False) -> None:
        """Write the fingerprints of the training data (see `jaxlm.data.storage.token_cache`) to data.json.

        Raises UserError if a run with checkpoints began with other data, whose batches could not be reproduced; with
        `accept` a line of data_changes.jsonl notes the step and the old fingerprints instead.
        """
        from jaxlm.distributed import multihost

        stored = fingerprints
        if self.data_file.exists():
            stored = read_json(self.data_file, dict[str, Fingerprint])
        changed = stored != fingerprints and self.has_checkpoint()
        if changed and not accept:
            raise UserError(
                f"the training data of {self} has changed: {describe_fingerprints(stored)} when the run began, "
                f"{describe_fingerprints(fingerprints)} now. Restore the data, continue with other batches "
                f"(--accept-changed-data), or start a new run from these parameters:\n  {self.warm_start}"
            )
        if multihost.is_first():
            if changed:
                steps = [int(path.name) for path in self.checkpoint_folder.glob("*") if path.name.isdigit()]
                with self.data_changes_file.open("a") as file:
                    file.write(json.dumps({"after_step": max(steps, default=0), "before": stored}) + "\n")
            write_atomic(self.data_file, json.dumps(fingerprints, indent=1) + "\n")

    def load_tokenizer(self) -> "Tokenizer":
        """The tokenizer. Raises UserError if there is none."""
        from jaxlm.data.tokenizers.loading import load_tokenizer

        return load_tokenizer(self.tokenizer_folder)

    def copy_tokenizer(self, source: "Workdir") -> None:
        """Copy the tokenizer of another workdir, and the files of the published model if it was imported."""
        if source.published_folder.is_symlink():
            raise UserError(f"{source.published_folder} is a link: put the folder itself there if you trust its files")
        folders = (source.published_folder, self.published_folder), (source.tokenizer_folder, self.tokenizer_folder)
        for folder, copy in folders:  # the tokenizer last: a workdir that has one is complete
            if folder.is_dir():
                with create_folder(copy, replace=True) as partial:
                    # Links stay links: what they lead to is not copied, and the export refuses them.
                    copy_folder(folder, partial, symlinks=folder == source.published_folder)

    def open_checkpoints(self, experiment: "Experiment", read_only: bool = False) -> "Checkpoints":
        """The checkpoints, kept as the experiment configures it."""
        from jaxlm.checkpoint.manager import Checkpoints

        keep, best = experiment.keep_checkpoints, experiment.best_metric
        return Checkpoints(self.checkpoint_folder, keep, keep_best=best, read_only=read_only)

    def save_once(self, experiment: "Experiment", params: "Params", step: int = 1, metric: float | None = None) -> None:
        """Save the only checkpoint of a model that takes no training steps: fitted, merged or imported."""
        import numpy as np

        with self.open_checkpoints(experiment) as checkpoints:
            checkpoints.save(step, {"params": params, "step": np.asarray(step, np.int32)}, {}, metric)

    def load(self, average_last: int | None = None, step: int | None = None, merge: bool = True) -> "TrainedRun":
        """The trained model: the mean of the last checkpoints, or the best checkpoint, or that of one step.

        Args:
          average_last: how many checkpoints are averaged; 1: the best one. None: as the experiment configures it, or
            all of them if a short run has saved fewer.
          step: the step of the only checkpoint to read.
          merge: whether LoRA matrices are added to the matrices that they adapt.
        """
        from jaxlm.checkpoint.step_io import DeletedCheckpoint
        from jaxlm.distributed import multihost
        from jaxlm.experiment import TrainedRun
        from jaxlm.models.properties import with_special_ids
        from jaxlm.nn.layers.adapters import merge_lora

        experiment = self.read_experiment()
        tokenizer = self.load_tokenizer()
        experiment.check_vocabulary(tokenizer)
        for _ in range(READ_ATTEMPTS):
            with contextlib.suppress(DeletedCheckpoint):  # the run, which continues, has other steps by now
                params, steps = self._read_params(experiment, average_last, step)
                break
        else:
            raise UserError(f"the checkpoints of {self} are deleted faster than they are read: keep more of them")
        if merge and experiment.finetuning.lora:
            params = merge_lora(params)
        model = with_special_ids(experiment.model, tokenizer.special)
        return TrainedRun(model, multihost.to_local(params), tokenizer, experiment, steps)

    def _read_params(
        self, experiment: "Experiment", average_last: int | None, step: int | None
    ) -> tuple["Params", list[int]]:
        with self.open_checkpoints(experiment, read_only=True) as checkpoints:
            if not (saved := len(checkpoints.steps())):
                raise UserError(f"{self} holds no checkpoint yet: train it with `jaxlm train`")
            count = min(experiment.average_last, saved) if average_last is None else average_last
            fitted = hasattr(experiment.model, "fit")  # the data decided on the shapes, not the model
            params = checkpoints.abstract_params(step) if fitted else experiment.abstract_params()
            if step is None and count > 1:
                return checkpoints.average(params, count)
            params, _, step = checkpoints.restore_params(params, checkpoints.best_step() if step is None else step)
            return params, [step]


def describe_fingerprints(columns: dict[str, Any]) -> str:
    """Training data in a message: the fingerprint of each column."""
    return ", ".join(
        f"{name} {of['rows']:,} rows of {of['ids']:,} ids ({of['digest']})" for name, of in columns.items()
    )

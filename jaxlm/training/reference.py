"""The reference of a preference objective: the log-probabilities of its answers before the first step.

stored   computed once for all rows, and kept in the folder `reference` of the workdir: two numbers a row; of several
         hosts the first one computes them alone
live     the parameters themselves are kept there, and read every batch before the train step does
base     the train step reads the batch with the model's own parameters, without LoRA and adapters
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxlm.checkpoint.step_io import checksums
from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.ragged import Columns, Ragged
from jaxlm.data.storage.token_cache import cached_columns, fingerprints
from jaxlm.distributed import multihost
from jaxlm.distributed.placement import put_like_params, serialize_on_cpu
from jaxlm.distributed.sharding import all_gather_params
from jaxlm.errors import UserError
from jaxlm.filesystem import remove_folder, write_atomic
from jaxlm.json_files import read_json
from jaxlm.objectives.log_probs import answer_log_probs
from jaxlm.objectives.preference import PolicyObjective
from jaxlm.pytree import named_leaves
from jaxlm.tasks.base import make_eval_step, mean_losses
from jaxlm.training.setup import VALID_BATCH_TOKENS, OpenRun, TrainSetup
from jaxlm.types import Array, Batch, Params
from jaxlm.workdir import Workdir

MAX_LOSS_DIFFERENCE = 1e-3
"""Nats per row by which the loss at step 0 may differ between the stored reference and the model itself."""


@dataclass(frozen=True)
class ReferencedObjective:
    """An objective during training, with the reference log-probabilities of the validation split, two numbers a row."""

    objective: PolicyObjective
    valid_reference: Ragged


def with_reference(setup: TrainSetup, params: Params, is_new: bool) -> TrainSetup:
    """The set-up with the reference of its objective, if it has one: that of the first step, also of a resumed run.

    `params` are the parameters of the run: those before the first step if `is_new`.
    """
    run = setup.run
    objective = run.experiment.objective
    if not getattr(objective, "uses_reference", False):
        return setup
    if objective.reference != "stored" and (reference := live_reference(setup, params, is_new)) is None:
        return setup
    batches: Any = setup.batches.batches
    task: Any = run.experiment.task
    valid = task.encode_split("valid", run.tokenizer)
    if objective.reference == "live":
        column = _reference_column(run, run.experiment.model, reference, valid)
        score = _make_score_fn(run.experiment.model)
        setup = replace(setup, add_reference=lambda batch: replace(batch, reference_logprob_BA=score(reference, batch)))
    else:
        stored = _stored_columns(run, {"train": batches.columns, "valid": valid}, params, is_new)
        column, batches = stored["valid"], replace(batches, columns={**batches.columns, "reference": stored["train"]})
        setup = replace(setup, batches=replace(setup.batches, batches=batches))
        if is_new and not objective.reference_workdir:
            _check_first_batch(run, params, batches[0])
    experiment = replace(run.experiment, objective=ReferencedObjective(objective, column))
    return replace(setup, run=replace(run, experiment=experiment))


def live_reference(setup: TrainSetup, params: Params, is_new: bool) -> Params | None:
    """The parameters of the first step, which a new run saves; None if the reference is the base of the model.

    Raises UserError if that base is trained.
    """
    finetuning = setup.run.experiment.finetuning
    if setup.run.experiment.objective.reference == "base":
        if finetuning.trainable is None and (finetuning.lora or finetuning.adapters):
            return None
        raise UserError(
            "reference = 'base' is the model without its LoRA matrices and adapters, and other parameters are "
            "trained too: set --finetuning.lora and no --finetuning.trainable, or choose another reference"
        )
    workdir, experiment = Workdir(setup.run.workdir.reference_folder), setup.run.experiment
    if is_new:
        multihost.first_host_first(lambda: remove_folder(workdir.folder) if multihost.is_first() else None)
        workdir.save_once(experiment, params)
    with workdir.open_checkpoints(experiment, read_only=True) as checkpoints:
        return checkpoints.restore_params(setup.compiled.abstract_state.params, 1)[0]


def _stored_columns(run: OpenRun, columns: dict[str, Columns], params: Params, is_new: bool) -> Columns:
    """The columns of both splits, from the workdir if they belong to these data and, in a new run, these parameters."""
    folder, origin = run.workdir.reference_folder, run.experiment.objective.reference_workdir
    record_file = folder.parent / f"{folder.name}.json"
    record: dict[str, Any] = {name: fingerprints(of) for name, of in columns.items()}
    model = run.experiment.model
    if is_new:
        if origin:
            model, params = _other_model(run, origin)
        params = multihost.to_local(params)
        digest = json.dumps(checksums(named_leaves(params)))
        record["parameters"] = hashlib.sha256(digest.encode()).hexdigest()
    else:
        stored = read_json(record_file)
        if {**record, "parameters": stored.get("parameters")} != stored:
            raise UserError(
                f"{record_file} belongs to other training or validation data: restore the data that the run began "
                "with, or start a new run in another --workdir"
            )
        record = stored

    def compute(_: Any) -> Columns:
        if not is_new:
            raise UserError(
                f"{folder} is damaged, and the parameters that it was computed with have changed since: restore the "
                "folder, or start a new run in another --workdir"
            )
        return {name: _reference_column(run, model, params, of) for name, of in columns.items()}

    recipe = json.dumps(record)
    result = multihost.first_host_first(lambda: cached_columns([recipe], compute, recipe, folder))
    multihost.first_host_first(lambda: write_atomic(record_file, recipe) if multihost.is_first() else None)
    return result


def _other_model(run: OpenRun, folder: str) -> tuple[Any, Params]:
    """The model and the parameters of another run. Raises UserError if it has another vocabulary."""
    trained = Workdir(folder).load()
    if trained.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"the reference {folder} has another vocabulary ({trained.tokenizer.vocab_size:,} ids) than this run "
            f"({run.tokenizer.vocab_size:,} ids), or other ids: choose a reference that shares the tokenizer of "
            f"{run.workdir}, such as the run that --finetuning.init names"
        )
    return trained.model, trained.params


@lru_cache(maxsize=4)
def _make_score_fn(model: Any) -> Any:
    """The jitted function (parameters, batch) -> log-probability of each answer (B, A), in nats, without dropout."""
    return jax.jit(lambda params, batch: answer_log_probs(model, all_gather_params(params), batch).total_BA)


def _reference_column(run: OpenRun, model: Any, params: Params, columns: Columns) -> Ragged:
    """The log-probabilities of both answers of every row, float32."""
    score, params = _make_score_fn(model), multihost.to_local(params)
    score_NA = np.zeros((len(columns["target"]), 2), np.float32)
    for row_B, batch in eval_batches(columns, VALID_BATCH_TOKENS, special=run.tokenizer.special):
        score_BA: Array = serialize_on_cpu(score(params, put_like_params(params, batch)))
        score_NA[row_B[row_B >= 0]] = np.asarray(score_BA)[row_B >= 0]
    return Ragged(score_NA.reshape(-1), 2 * np.arange(len(score_NA) + 1))


def _check_first_batch(run: OpenRun, params: Params, batch: Batch) -> None:
    """Show the loss of the first batch with the stored reference. Raises UserError unless it is that of r = 0."""
    model, objective = run.experiment.model, run.experiment.objective
    evaluate, score = make_eval_step(model, objective), _make_score_fn(model)
    own = replace(batch, reference_logprob_BA=score(params, put_like_params(params, batch)))
    stored_loss, own_loss = (mean_losses([evaluate(params, each)])["loss"] for each in (batch, own))
    if not abs(stored_loss - own_loss) <= MAX_LOSS_DIFFERENCE:
        raise UserError(
            f"the first batch has the loss {stored_loss:.6f} with the stored reference and {own_loss:.6f} with the "
            f"initial model itself: remove {run.workdir.reference_folder} and start again"
        )
    rows = len(batch.reference_logprob_BA)
    run.notify(f"reference: stored; the loss of the first {rows} rows is {stored_loss:.6f} before the first step")

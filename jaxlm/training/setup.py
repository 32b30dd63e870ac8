"""The set-up of a run in three phases, in the order in which faults are cheapest: open, load the data, compile."""

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlm.data.batching.batches import Batches, HostShard, RunningText
from jaxlm.data.batching.mixture import MixedBatches, make_batches
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.storage.token_cache import fingerprints, update_digest
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.distributed import multihost
from jaxlm.distributed.placement import host_rows
from jaxlm.distributed.sharding import data_mesh, make_mesh, num_batch_shards, train_state_shardings, unsharded_params
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.filesystem import check_writable
from jaxlm.models.properties import check_positions, with_special_ids
from jaxlm.pytree import partition, tree_bytes
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.state import TrainState
from jaxlm.training.step import CompiledStep, build_compiled_step, make_init_fn
from jaxlm.types import Batch, Params
from jaxlm.workdir import Workdir, describe_fingerprints

VALID_BATCH_TOKENS = 8192
"""Positions of a batch of the evaluations during training."""


@dataclass(frozen=True)
class OpenRun:
    """Phase 1: an experiment, whose model has the special ids of `tokenizer`; `notify(text)` shows a line to users."""

    experiment: Experiment
    workdir: Workdir
    tokenizer: Tokenizer
    notify: Callable[[str], None]


@dataclass(frozen=True)
class TrainSetup:
    """All three phases: the run, its batches (this host's rows), and its train step, compiled for the mesh.

    add_reference: what a reference model adds to each batch before the train step (`jaxlm.training.reference`).
    roll_out, updates: (parameters, batch, step) -> the batch with sampled answers, and figures for the log; the number
      of updates on each batch (`jaxlm.training.rollout`).
    """

    run: OpenRun
    batches: HostShard
    mesh: Mesh
    compiled: CompiledStep
    add_reference: Callable[[Batch], Batch] = lambda batch: batch
    roll_out: Callable[[Params, Batch, int], tuple[Batch, dict[str, Any]]] = lambda params, batch, step: (batch, {})
    updates: int = 1


def setup_training(
    experiment: Experiment, workdir: Workdir, notify: Callable[[str], None],
    run_options: RunOptions = DEFAULT_RUN_OPTIONS,
) -> TrainSetup:  # fmt: skip
    """The three phases. Raises UserError for every fault that can be known before the first step."""
    first_traced, _ = run_options.profile_steps or (0, 0)
    if first_traced > experiment.steps:
        raise UserError(f"--profile-steps begins with step {first_traced}, and the run has {experiment.steps}")
    experiment.check_parts()
    init_fn = make_init_fn(experiment)
    abstract = jax.eval_shape(init_fn)
    mesh = data_mesh() if run_options.mesh is None else make_mesh(run_options.mesh)
    shardings = train_state_shardings(abstract, mesh, run_options.shard_optimizer_state)
    init_state = _compile_init(init_fn, shardings, workdir)
    # The first host writes the workdir, the tokenizer and the encoded data to the shared disk; the others then read.
    run = multihost.first_host_first(lambda: open_run(experiment, workdir, notify, tree_bytes(abstract)))
    columns = multihost.first_host_first(lambda: load_data(run, run_options.accept_changed_data))
    if multihost.num_hosts() > 1:
        _check_same_data(run, columns)
    if "loss_mask" in columns and isinstance(experiment.batching, RunningText):
        raise UserError(
            f"{type(experiment.batching).__name__} cuts running text into rows, and a loss mask needs whole examples: "
            "choose batching=Packing(...) or Buckets(...)"
        )
    batches = make_batches(experiment.batching, columns, experiment.seed, run.tokenizer.special)
    _check_positions(run.experiment, batches)
    check_batch_divisible(batches.row_multiple, experiment.grad_accum, num_batch_shards(mesh))
    notify(_batch_summary(batches.statistics()))
    if isinstance(batches, MixedBatches):
        notify(batches.describe(experiment.steps))
    if mesh.size > 1:
        unsharded = [*unsharded_params(abstract.params, mesh), *_indivisible_lengths(batches, mesh)]
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
        not_split = f"; not split, since the sizes do not divide: {'; '.join(unsharded)}" if unsharded else ""
        notify(f"mesh: {sizes} on {mesh.size} devices{not_split}")
    autotune_folder = run.workdir.autotune_folder.absolute() if run_options.exact else None
    compiled = build_compiled_step(run.experiment, init_fn, mesh, run_options, autotune_folder)
    compiled = replace(compiled, init_state=init_state)
    notify(_parameter_summary(compiled.abstract_state, experiment))
    return TrainSetup(run, HostShard(batches, *host_rows(mesh)), mesh, compiled)


def _compile_init(init_fn: Callable[[], TrainState], shardings: Any, workdir: Workdir) -> Callable[[], TrainState]:
    """`init_fn`, jitted; in a new run it is compiled at once, while Python reads the data, which leaves a core idle."""
    jitted = jax.jit(init_fn, out_shardings=shardings)
    if multihost.num_hosts() > 1 or any(workdir.checkpoint_folder.glob("*")):
        return jitted
    compiling = ThreadPoolExecutor(1).submit(jitted.lower().compile)
    return lambda: compiling.result()()


def _check_positions(experiment: Experiment, batches: Batches) -> None:
    """Raise UserError if an example has more tokens than the model has positions."""
    longest = batches.longest_example()
    if longest and getattr(experiment.model, "num_sequences", 1) > 1:  # each sequence of a row has positions of its own
        sequence_format: Any = getattr(experiment.task, "sequence_format", None)
        longest["source"] = min(longest["source"], sequence_format.max_length)
    check_positions(experiment.model, longest)


def open_run(
    experiment: Experiment, workdir: Workdir, notify: Callable[[str], None], checkpoint_bytes: int = 0
) -> OpenRun:
    """Open or create the workdir, load or fit the tokenizer, and check that the parts fit, also the disk.

    `checkpoint_bytes`: the size of one checkpoint.
    """
    check_writable(workdir.folder, checkpoint_bytes * (experiment.keep_checkpoints + 1))
    workdir.open_or_create(experiment)
    if not workdir.tokenizer_folder.is_dir() and experiment.finetuning.init:
        workdir.copy_tokenizer(Workdir(experiment.finetuning.init))
    elif not workdir.tokenizer_folder.is_dir():
        notify(f"tokenizer: fitting {experiment.tokenizer}")
        new_tokenizer = experiment.tokenizer.fit(experiment.task.texts())
        experiment.check_vocabulary(new_tokenizer)  # before it is saved: a workdir never holds one that does not fit
        new_tokenizer.save(workdir.tokenizer_folder)
    tokenizer = workdir.load_tokenizer()
    experiment.check_vocabulary(tokenizer)
    metrics = [f"valid/{name}" for name in experiment.task.metric_names]
    if metrics and experiment.best_metric not in metrics:
        raise UserError(f"best_metric = {experiment.best_metric!r}: expected one of the metrics {', '.join(metrics)}")
    experiment.task.check_model(experiment.model, tokenizer)
    model = with_special_ids(experiment.model, tokenizer.special)
    return OpenRun(replace(experiment, model=model), workdir, tokenizer, notify)


def load_data(run: OpenRun, accept_changed: bool = False) -> Columns:
    """The training split as ids, encoded once and cached in the workdir."""
    bad_lines, task = ReadStats(), run.experiment.task
    columns = task.encode_train(run.tokenizer, run.workdir.train_data, bad_lines)
    run.workdir.check_data_unchanged(fingerprints(columns), accept_changed)
    if bad_lines.kept:
        run.notify(f"data: {task.describe()}: {bad_lines}")
    return columns


def _check_same_data(run: OpenRun, columns: Columns) -> None:
    """Raise AgreedError, which names the host, if hosts have other data: they would train together without a word."""
    task, digests = run.experiment.task, {"tokenizer": run.tokenizer.fingerprint}
    for name, split in {"validation": task.valid, "test": task.test, **task.extra_tests}.items():
        digest = hashlib.sha256()
        for item in split:
            update_digest(digest, repr(item))
        digests[f"{name} data"] = digest.hexdigest()[:16]
    digests["training data"] = describe_fingerprints(fingerprints(columns))
    multihost.check_same(digests, "give all of them the same files")


def check_batch_divisible(multiple: int, grad_accum: int, devices: int) -> None:
    """Raise UserError if the rows of a batch cannot be split evenly: batches never depend on the machine."""
    if multiple % (grad_accum * devices):
        divisor = 0 if multiple % grad_accum else math.gcd(multiple // grad_accum, devices)
        raise UserError(
            f"the rows of the batches are multiples of {multiple}, which {grad_accum} micro-batches on {devices} "
            "devices cannot share evenly: choose --batching.row_multiple (or .rows) "
            f"{math.lcm(grad_accum * devices, 8)}"
            + (f", or split rows over {divisor} devices alone (--mesh data={divisor})" if divisor else "")
        )


def _indivisible_lengths(batches: Batches, mesh: Mesh) -> list[str]:
    """A line about the lengths of batches that the axis `sequence` does not divide."""
    lengths = {length for bucket in getattr(batches, "buckets", ()) for length in (bucket.source, bucket.target)}
    odd = sorted(length for length in lengths if length % mesh.shape["sequence"])
    return [f"batches of {', '.join(map(str, odd))} positions (by sequence={mesh.shape['sequence']})"] if odd else []


def _batch_summary(statistics: dict[str, float]) -> str:
    padding_target = statistics.get("padding_target", statistics["padding_both"])
    shapes = f" of {statistics['shapes']:.0f} shapes" if statistics["shapes"] > 1 else ""
    both = f" ({statistics['padding_both']:.1%} in all)" if statistics["padding_both"] != padding_target else ""
    counts = (("dropped", "too long and left out"), ("truncated", "cut"))
    return (
        f"batches: {statistics['batches_per_epoch']:,.1f} an epoch{shapes}, {statistics['tokens']:,.0f} tokens each, "
        f"padding {padding_target:.1%}{both}"
    ) + "".join(f"; {statistics[name]:,.0f} {what}" for name, what in counts if statistics[name])


def _parameter_summary(state: TrainState, experiment: Experiment) -> str:
    trainable, _ = partition(state.params, experiment.finetuning.is_trainable)
    trained, total = (sum(leaf.size for leaf in jax.tree.leaves(x)) for x in (trainable, state.params))
    share = "" if trained == total else f", of which {trained:,} ({trained / total:.1%}) are trained"
    return f"model: {total:,} parameters{share}; the optimizer keeps {tree_bytes(state.opt_state) / 1e6:,.1f} MB"

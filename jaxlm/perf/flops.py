"""Floating-point operations of a function, counted in its jaxpr, and model-FLOPs utilization (MFU).

XLA's own count takes the body of a loop once. Here a scan counts as often as it is long. A loop whose length is known
at run time only (the loop over the chunks of the loss) counts as often as its slices cover the array that they are cut
from, which is its length if no token is padding. A multiplication and an addition are two operations. Only products of
matrices and convolutions count, as is the custom: the other operations are a few percent.

MFU (Chowdhery et al. 2022, appendix B): the model's FLOP/s over the dense peak of the chips. `show`, `plan`, `bench`
and the training log take all figures from `count_step`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxlm.data.batching.batches import RunningText
from jaxlm.data.batching.bucketing import Buckets
from jaxlm.data.pretraining.token_types import IS_TEXT, STARTS_WORD
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.simple import WordsWithChars
from jaxlm.experiment import Experiment
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.properties import abstract_params, check_positions, model_dtype
from jaxlm.objectives.policy_gradient import PolicyGradient, answer_batch
from jaxlm.perf.chips import Chip, chip_for_device_kind
from jaxlm.types import Batch, Params

FLOPS_CONVENTION = (
    "3 x the matrix products of the forward pass, counted in its jaxpr; attention in full, no recomputation"
)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of the model in one update on all devices, with causal attention in full and halved, and its positions."""

    full: int
    causal_halved: int
    positions: int


def count_step(experiment: Experiment, batch: Batch | None = None) -> StepFlops:
    """The FLOPs of an update on batches of the shape of `batch` (default: the fullest batch of the experiment)."""
    batch = shape_structs(synthetic_batch(experiment) if batch is None else batch)
    params = abstract_params(experiment.model)
    full = model_flops(experiment.model, experiment.objective, params, batch)
    return StepFlops(full, full - causal_attention_flops(experiment.model, batch) // 2, num_positions(batch))


def peak_flops(model: Any, chip: Chip | None, num_devices: int) -> float | None:
    """Dense peak FLOP/s of the devices for the dtype of the model; None for an unknown chip (a CPU)."""
    return None if chip is None else chip.peak_flops(model_dtype(model)) * num_devices


def make_mfu_fn(experiment: Experiment, mesh: jax.sharding.Mesh) -> Callable[[float], float] | None:
    """A function from real tokens/s to MFU; None on devices whose peak is unknown (a CPU)."""
    device: Any = mesh.devices.flat[0]
    if (peak := peak_flops(experiment.model, chip_for_device_kind(device.device_kind), mesh.size)) is None:
        return None
    step = count_step(experiment)
    return lambda tokens_per_second: tokens_per_second * step.full / step.positions / peak


def model_flops(model: Any, objective: Any, params: Params, batch: Batch) -> int:
    """FLOPs of one update: three times the products of the forward pass (the backward pass has two for each of them),
    attention in full, without recomputation. `params` and `batch` may be ShapeDtypeStructs."""
    return 3 * count_flops(lambda params, batch: objective(model, params, batch, None), params, batch)


def causal_attention_flops(model: Any, batch: Batch) -> int:
    """FLOPs of causal self-attention in one update: QK^T and AV. Half of the products are masked."""
    layers = model.layers if isinstance(model, Decoder) else 0
    layers = model.decoder_layers if isinstance(model, EncoderDecoder) else layers
    if not layers:
        return 0
    rows, length = batch.target_BT.shape
    width = (getattr(model, "head_dim", None) or model.width // model.heads) * model.heads
    return 3 * layers * 4 * rows * length * length * width


def count_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of one call. Traces only; arguments may be ShapeDtypeStructs."""
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_flops(jaxpr: Any) -> int:
    """FLOPs of a jaxpr and of all jaxprs that it calls; of the branches of a `cond` the most expensive counts."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _conv_flops(equation)
        elif name == "cond":
            total += max(jaxpr_flops(branch) for branch in _inner_jaxprs(equation))
        elif name in ("custom_vjp_call", "custom_jvp_call"):
            total += jaxpr_flops(next(_inner_jaxprs(equation)))
        else:
            total += loop_trip_count(equation) * sum(jaxpr_flops(inner) for inner in _inner_jaxprs(equation))
    return total


def loop_trip_count(equation: Any) -> int:
    """The trip count of a loop; 1 for an equation that is not a loop."""
    name, params = equation.primitive.name, equation.params
    if name == "while":
        return max(map(_num_slices, params["body_jaxpr"].jaxpr.eqns), default=1)
    return params["length"] if name == "scan" else 1


def unknown_trip_count(jaxpr: Any) -> int:
    """The trip count of the longest loop whose length is known at run time only; 1 without such a loop."""
    counts = [loop_trip_count(equation) for equation in jaxpr.eqns if equation.primitive.name == "while"]
    inner_counts = [unknown_trip_count(inner) for equation in jaxpr.eqns for inner in _inner_jaxprs(equation)]
    return max([1, *counts, *inner_counts])


def _num_slices(equation: Any) -> int:
    if equation.primitive.name != "dynamic_slice":
        return max((_num_slices(inner) for jaxpr in _inner_jaxprs(equation) for inner in jaxpr.eqns), default=1)
    array, part = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    return math.prod(-(-a // b) for a, b in zip(array, part, strict=True))


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _conv_flops(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    products = math.prod(size for axis, size in enumerate(kernel) if axis != out_axis)
    return 2 * math.prod(equation.outvars[0].aval.shape) * products


DUMMY_ID = 4
"""The id of an ordinary token."""


def synthetic_batch(experiment: Experiment) -> Batch:
    """A full batch without padding: NumPy arrays with the shapes of training; for buckets, whose shapes are fitted to
    data, the batch of the longest texts that they admit."""
    batching: Any = experiment.batching
    if isinstance(batching, RunningText):
        document = np.full(batching.tokens + batching.length, DUMMY_ID, np.int32)
        symbols = np.arange(DUMMY_ID + 1, DUMMY_ID + 1 + batching.length)  # ids of masks or sentinels
        flags = np.full(DUMMY_ID + 1 + batching.length, IS_TEXT + STARTS_WORD, np.uint8)
        columns = {"target": Ragged.from_rows([document] * 2), "symbol": Ragged.from_rows([symbols])}
        columns["piece"] = Ragged(flags, np.arange(len(flags) + 1))
        batches = batching.batches(columns, experiment.seed)
        if not getattr(batching, "isolate_documents", False):  # the documents of the data may be shorter than a row
            check_positions(experiment.model, batches.longest_example())
        return batches[0]
    if isinstance(batching, Buckets):
        longest = max(batching.lengths or (batching.max_length,))
        longest = min(longest, batching.tokens // batching.row_multiple)  # a batch has at least `row_multiple` rows
    else:
        longest = batching.length
    source_length = min(getattr(batching, "source_length", None) or longest, longest) - 1
    target_length = longest - 1
    rows = {"source": np.full(source_length, DUMMY_ID), "target": np.full(target_length, DUMMY_ID)}
    rows |= {"label": np.full(source_length, 0), "class": np.full(1, 0), "loss_mask": np.ones(target_length + 1)}
    rows |= {f"other_{name}": rows[name] for name in ("target", "loss_mask")}
    columns = {name: Ragged.from_rows([rows[name]]) for name in experiment.task.batch_columns if name in rows}
    if "number" in experiment.task.batch_columns:
        columns["class"] = Ragged.from_rows([np.zeros(1)], np.float32)
    if "other_target" in columns:
        columns["reference"] = Ragged.from_rows([np.zeros(2)], np.float32)
    if isinstance(experiment.tokenizer, WordsWithChars):
        columns["character"] = Ragged.from_rows([np.full(4, DUMMY_ID)] * source_length)
    batch = batching.batches(columns, experiment.seed)[0]
    if not isinstance(objective := experiment.objective, PolicyGradient):
        return batch
    size, length = len(batch.target_BT) * objective.num_samples, objective.max_tokens
    return answer_batch(batch, np.ones((size, length)), np.full(size, length))


def batch_summary(batch: Batch) -> str:
    """`96 rows of 256 + 256 positions`."""
    sides = [side for side in (batch.source_BS, batch.target_BT) if side is not None]
    return f"{len(sides[0]):,} rows of {' + '.join(f'{side.shape[1]:,}' for side in sides)} positions"


def num_positions(batch: Batch) -> int:
    """The positions that count as tokens: those of the target, or of the source in batches without a target."""
    return (batch.source_BS if batch.target_BT is None else batch.target_BT).size


def shape_structs(tree: Any) -> Any:
    """The tree with a ShapeDtypeStruct for each array."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def adapt_batching(experiment: Experiment, shards: int) -> tuple[Experiment, list[str]]:
    """The experiment with rows that divide among `shards` devices, and the options that make this change: batches of
    running text keep their rows and have fewer micro-batches, buckets and packs get a multiple of rows."""
    changed: list[str] = []
    batching: Any = experiment.batching
    if isinstance(batching, RunningText):
        rows = max(1, batching.rows // shards)
        grad_accum = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= experiment.grad_accum)
        if grad_accum != experiment.grad_accum and batching.rows % shards == 0:
            experiment = dataclasses.replace(experiment, grad_accum=grad_accum)
            changed.append(f"--grad-accum {grad_accum}")
        return experiment, changed
    multiple = math.lcm(experiment.grad_accum * shards, 8)
    if batching.row_multiple % (experiment.grad_accum * shards):
        experiment = dataclasses.replace(experiment, batching=dataclasses.replace(batching, row_multiple=multiple))
        changed.append(f"--batching.row_multiple {multiple}")
    return experiment, changed

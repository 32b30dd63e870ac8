"""Estimates of a step: the bytes that it takes on one device, exact if a compiled program reports them; for targets
that nothing here can compile for its collectives, by the rules of `jaxlm.distributed.sharding`, and its memory traffic;
and its time and cost.

The time is a roofline: arithmetic runs at the chip's dense peak, memory and links at their bandwidth. If all of them
overlap perfectly, a step takes as long as the longest; if nothing overlaps, as long as their sum. A real step lies in
between, or above, since nothing reaches its peak. Collectives are rings over all links of a chip.
"""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm.distributed.mesh_axes import DATA, FSDP, SEQUENCE, TENSOR
from jaxlm.distributed.platforms import choices_for, device_memory
from jaxlm.distributed.sharding import AnyMesh, num_token_shards
from jaxlm.experiment import Experiment
from jaxlm.losses import Loss
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.properties import model_dtype
from jaxlm.nn.layers.linear import GATED_ACTIVATIONS
from jaxlm.nn.layers.position_chunks import MAX_CHUNK_LOGITS_WIDE
from jaxlm.nn.transformer.layer_stack import kept_numbers, scan_and_remat
from jaxlm.perf.chips import Chip
from jaxlm.perf.collectives import Collective
from jaxlm.training.state import TrainState
from jaxlm.types import Batch, Params

OOM_MESSAGE = re.compile(r"\(?([\d.]+)([KMGT])i?B?\)? exceeds available|[Uu]sed ([\d.]+)([KMGT])i?B? of")
"""The messages in which XLA reports how much memory a program needs if it does not fit."""


def program_bytes(analysis: Any) -> int:
    """Bytes of a compiled program: arguments, results that are not updated in place, temporaries and code."""
    arguments = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return arguments + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes


def compile_program(function: Any, *arguments: Any) -> tuple[Any | None, int, float]:
    """The compiled program, None if it does not fit; the bytes that it needs, 0 if the compiler that refuses gives no
    size; and the seconds that this took."""
    start = time.perf_counter()
    try:
        compiled = function.lower(*arguments).compile()
    except Exception as error:
        if (bytes_needed := oom_bytes(error)) is None:
            raise
        return None, bytes_needed, time.perf_counter() - start
    seconds = time.perf_counter() - start
    return compiled, program_bytes(compiled.memory_analysis()), seconds


def oom_bytes(error: Exception) -> int | None:
    """Bytes that a program needs that does not fit, by XLA's message (0: no size); None for any other error."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "exceeds available" not in text:
        return None
    match = OOM_MESSAGE.search(text)
    if match is None:
        return 0
    number, unit = match.groups()[:2] if match[1] else match.groups()[2:]
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def available_memory(chip: Chip | None) -> int | None:
    """Bytes per device that a program may take; None for an unknown chip."""
    return None if chip is None else int(chip.memory * chip.usable_fraction / chip.cores)


def shard_bytes(state: Any) -> int:
    """Bytes of one device's shard of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )


def state_memory(state: TrainState, batch: Batch) -> dict[str, int]:
    """Bytes per device of parameters, optimizer state (with averages), carried state and batch."""
    return {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes((state.opt_state, state.ema)),
        "carried": shard_bytes(state.carry),
        "batch": shard_bytes(batch),
    }


def activation_bytes(experiment: Experiment, params: Params, batch: Batch) -> int:
    """Bytes on all devices that the forward pass of a whole batch keeps for the backward pass. Traces only."""
    key = jax.random.key(0)

    def backward(params: Params, batch: Batch) -> Any:
        def total(params: Params) -> tuple[jax.Array, Loss]:
            loss = experiment.objective(experiment.model, params, batch, key)
            return loss.total, loss

        return jax.vjp(total, params, has_aux=True)[1]  # a pytree whose leaves are the residuals

    residuals = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(backward, params, batch))]
    for leaf in jax.tree.leaves(params):  # residuals that are parameters take no memory of their own
        if (leaf.shape, leaf.dtype) in residuals:
            residuals.remove((leaf.shape, leaf.dtype))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in residuals)


def analytic_memory(model: Any, state: TrainState, batch: Batch, activations: int) -> dict[str, int]:
    """Bytes per device, accurate to a third (what a compiler fuses or copies is unknown): state, gradients, activations
    of the device's share of a micro-batch, and the largest temporaries, which are logits and gathered parameters."""
    sizes = state_memory(state, batch)
    sizes |= {"activations": activations, "gradients": sizes["parameters"]}
    widest = max((math.prod(leaf.shape[-2:]) * 4 for leaf in jax.tree.leaves(state.params)), default=0)
    vocab, width = getattr(model, "vocab", 0), getattr(model, "width", 0)
    logits = 3 * 4 * max(choices_for().chunk_logits, min(width * vocab, MAX_CHUNK_LOGITS_WIDE))
    sizes["temporaries"] = 2 * widest + (logits if vocab else 0)
    return sizes | {"total": sum(sizes.values())}


def analytic_collectives(experiment: Experiment, params: Params, batch: Batch, mesh: AnyMesh) -> list[Collective]:
    """The collectives of one step along each axis of the mesh: parameters are gathered twice per micro-batch in the
    dtype of their products, activations all-reduced four times per layer, keys and values gathered in both passes."""
    model, sizes, steps = experiment.model, mesh.shape, experiment.grad_accum
    item_bytes = 2 if model_dtype(model) == "bfloat16" else 4
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) // sizes[TENSOR]
    layers = getattr(model, "layers", 0) or getattr(model, "encoder_layers", 0) + getattr(model, "decoder_layers", 0)
    tokens = max(leaf.size for leaf in jax.tree.leaves(batch)) / (steps * num_token_shards(mesh))
    activations = tokens * getattr(model, "width", 0) * item_bytes
    estimates = [
        ("all-gather", FSDP, 2 * steps, num_params * item_bytes),
        ("reduce-scatter", FSDP, steps, num_params * 4 / sizes[FSDP]),
        ("all-reduce", DATA, steps, shard_bytes(params)),
        ("all-reduce", TENSOR, 4 * layers * steps, activations),
        ("all-gather", SEQUENCE, 4 * layers * steps, activations * sizes[SEQUENCE]),
    ]
    collectives = []
    for kind, axis, count, size in estimates:
        if sizes[axis] > 1 and size:
            stride = math.prod(list(sizes.values())[list(sizes).index(axis) + 1 :])
            first_group = tuple(range(0, stride * sizes[axis], stride))
            collectives.append(Collective(kind, (), count, int(count * size), first_group))
    return collectives


StackMode = tuple[float, bool, str]
"""Of a stack of layers: the bytes that it keeps without recomputation, whether it is scanned, what it recomputes."""

LAYER_TRAFFIC = {(False, ""): 5.0, (False, "dots"): 6.0, (True, "dots"): 9.4, (True, ""): 15.5}
"""Bytes that a layer moves, in units of the activations that it keeps without recomputation: by whether it is scanned
and by what is recomputed. From GPT-2 and Transformer base, compiled for an H100 (`benchmarks.compiled_steps`)."""

FULL_REMAT_TRAFFIC = 1.3
"""The same with "full", relative to "dots"."""

BYTES_PER_LOGIT = 12
"""Bytes that the loss moves for each logit, by the same programs."""


def analytic_bytes_moved(
    experiment: Experiment, memory: dict[str, int], positions: float, modes: list[StackMode]
) -> int:
    """Bytes per device: state and gradients are read and written once, weights read twice per micro-batch and gradients
    added up; then logits and layers, by what compiled programs move. `positions`: of the device, in the whole step."""
    per_step = 2 * (memory["parameters"] + memory["optimizer"] + memory["gradients"])
    per_micro_batch = 2 * memory["parameters"] + 2 * memory["gradients"]
    layers = experiment.grad_accum * sum(
        LAYER_TRAFFIC[scan, remat and "dots"] * (FULL_REMAT_TRAFFIC if remat == "full" else 1.0) * kept
        for kept, scan, remat in modes
    )
    if not layers:
        per_micro_batch += 4 * memory["activations"]
    logits = positions * getattr(experiment.model, "vocab", 0) * BYTES_PER_LOGIT if layers else 0
    return int(per_step + experiment.grad_accum * per_micro_batch + layers + logits)


def stack_modes(model: Any, positions: float) -> list[StackMode]:
    """The mode of each stack of a Transformer on the planned platform."""
    if not isinstance(model, Decoder | Encoder | EncoderDecoder):
        return []
    stacks = [(model.encoder_layers, 1), (model.decoder_layers, 2)] if isinstance(model, EncoderDecoder) else []
    is_gated, item_bytes = model.activation in GATED_ACTIVATIONS, 2 if model_dtype(model) == "bfloat16" else 4
    modes, choices, memory = [], choices_for(), device_memory()
    for depth, num_attentions in stacks or [(model.layers, 1)]:
        numbers = depth * kept_numbers(model.width, model.hidden, num_attentions, is_gated)
        kept = max(positions * numbers * item_bytes, 1.0)
        modes.append((kept, *scan_and_remat(model.scan, model.remat, depth, memory / kept, choices)))
    return modes


RING_TRAFFIC = {"all-gather": 1.0, "all-reduce": 2.0, "all-to-all": 1.0, "collective-broadcast": 1.0}
"""Bytes that a device sends in a ring of n devices, in units of (n - 1) / n of the bytes of its result."""


LAUNCH_SECONDS = 2e-6
"""The least that a kernel takes, its start included: an assumption, of the order of kernels in a CUDA graph."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: arithmetic, memory, links between chips, network between slices or nodes; and the least that
    its kernels take one after the other, LAUNCH_SECONDS each."""

    compute: float
    memory: float
    links: float
    network: float
    launches: float = 0.0

    @property
    def lower_bound(self) -> float:
        return max(*self._parts, self.launches)

    @property
    def upper_bound(self) -> float:
        return sum(self._parts) + self.lower_bound - max(self._parts)

    @property
    def _parts(self) -> tuple[float, ...]:
        return self.compute, self.memory, self.links, self.network


def step_seconds(
    chip: Chip, dtype: str, flops: float, bytes_moved: float, collectives: list[Collective], slice_ids: list[int]
) -> StepTime:
    """The time of a step whose `flops` and `bytes_moved` are those of one device; `slice_ids`: the slice of each device
    in the order of the mesh."""
    links = network = 0.0
    for collective in collectives:
        group = collective.replica_group or tuple(range(len(slice_ids)))
        if collective.across_slices:
            network += wire_bytes(collective, len(set(slice_ids)))
        elif len({slice_ids[device] for device in group}) > 1:
            network += wire_bytes(collective, len(group))
        else:
            links += wire_bytes(collective, len(group))
    return StepTime(
        flops / chip.peak_flops(dtype),
        bytes_moved * chip.cores / chip.memory_bandwidth,
        links * chip.cores / chip.link_bandwidth,
        network * chip.cores / chip.network_bandwidth,
    )


def wire_bytes(collective: Collective, ring_size: int) -> float:
    """Bytes that one device sends in all runs of a collective."""
    if collective.kind == "collective-permute":
        return collective.bytes
    if collective.kind == "reduce-scatter":
        return collective.bytes * (ring_size - 1)
    return RING_TRAFFIC[collective.kind] * collective.bytes * (ring_size - 1) / ring_size


def run_cost(seconds: float, steps: int, chips: int, price: float | None) -> dict[str, Any]:
    """Hours, chip hours and cost of all steps; `price`: per chip and hour."""
    hours = seconds * steps / 3600
    return {"hours": hours, "chip_hours": hours * chips, "cost": None if price is None else hours * chips * price}

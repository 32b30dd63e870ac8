"""Analytic estimates of a step's collectives and memory traffic, for targets that nothing here can compile for.

They follow the sharding rules of `jaxlm.distributed.sharding`.
"""

import math
from typing import Any

import jax

from jaxlm.distributed.mesh_axes import DATA, FSDP, SEQUENCE, TENSOR
from jaxlm.distributed.platforms import choices_for, device_memory
from jaxlm.distributed.sharding import AnyMesh, num_batch_shards
from jaxlm.experiment import Experiment
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.properties import model_dtype
from jaxlm.nn.layers.linear import GATED_ACTIVATIONS
from jaxlm.nn.transformer.layer_stack import kept_numbers, scan_and_remat
from jaxlm.perf.collectives import Collective
from jaxlm.planner.memory import shard_bytes
from jaxlm.types import Batch, Params


def analytic_collectives(experiment: Experiment, params: Params, batch: Batch, mesh: AnyMesh) -> list[Collective]:
    """The collectives of one step along each axis of the mesh: parameters are gathered twice per micro-batch in the
    dtype of their products, activations all-reduced four times per layer, keys and values gathered in both passes."""
    model, sizes, steps = experiment.model, mesh.shape, experiment.grad_accum
    item_bytes = 2 if model_dtype(model) == "bfloat16" else 4
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) // sizes[TENSOR]
    layers = getattr(model, "layers", 0) or getattr(model, "encoder_layers", 0) + getattr(model, "decoder_layers", 0)
    tokens = max(leaf.size for leaf in jax.tree.leaves(batch)) / (steps * num_batch_shards(mesh) * sizes[SEQUENCE])
    activations = tokens * getattr(model, "width", 0) * item_bytes
    estimates = [
        ("all-gather", FSDP, 2 * steps, num_params * item_bytes),
        ("reduce-scatter", FSDP, steps, num_params * 4 / sizes[FSDP]),
        ("all-reduce", DATA, steps, shard_bytes(params)),
        ("all-reduce", TENSOR, 4 * layers * steps, activations),
        ("all-gather", SEQUENCE, 4 * layers * steps, activations * sizes[SEQUENCE]),
    ]
    return [
        Collective(kind, (), count, int(count * size), _first_group(mesh, axis))
        for kind, axis, count, size in estimates
        if sizes[axis] > 1 and size
    ]


LAYER_TRAFFIC = {(False, ""): 5.0, (False, "dots"): 6.0, (True, "dots"): 9.4, (True, ""): 15.5}
"""Bytes that a layer moves, in units of the activations that it keeps without recomputation: by whether it is scanned
and by what is recomputed. From GPT-2 and Transformer base, compiled for an H100 (`benchmarks.compiled_steps`)."""

FULL_REMAT_TRAFFIC = 1.3
"""The same with "full", relative to "dots"."""

BYTES_PER_LOGIT = 12
"""Bytes that the loss moves for each logit, by the same programs."""


def analytic_bytes_moved(experiment: Experiment, memory: dict[str, int], positions: float) -> int:
    """Bytes per device: state and gradients are read and written once, weights read twice per micro-batch and gradients
    added up; then logits and layers, by what compiled programs move. `positions`: of the device, in the whole step."""
    per_step = 2 * (memory["parameters"] + memory["optimizer"] + memory["gradients"])
    per_micro_batch = 2 * memory["parameters"] + 2 * memory["gradients"]
    layers = stack_traffic(experiment.model, positions / experiment.grad_accum) * experiment.grad_accum
    if not layers:
        per_micro_batch += 4 * memory["activations"]
    logits = positions * getattr(experiment.model, "vocab", 0) * BYTES_PER_LOGIT if layers else 0
    return int(per_step + experiment.grad_accum * per_micro_batch + layers + logits)


def stack_traffic(model: Any, positions: float) -> float:
    """Bytes that the stacks of a Transformer move for a micro-batch; 0 for other models."""
    return sum(
        LAYER_TRAFFIC[scan, remat and "dots"] * (FULL_REMAT_TRAFFIC if remat == "full" else 1.0) * kept
        for kept, scan, remat in stack_modes(model, positions)
    )


def stack_modes(model: Any, positions: float) -> list[tuple[float, bool, str]]:
    """Of each stack of a Transformer: the bytes that it keeps without recomputation, whether it is scanned, and what it
    recomputes, on the planned platform."""
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


def _first_group(mesh: AnyMesh, axis: str) -> tuple[int, ...]:
    """Indices in the mesh of the first group of devices along an axis."""
    stride = math.prod(list(mesh.shape.values())[list(mesh.shape).index(axis) + 1 :])
    return tuple(range(0, stride * mesh.shape[axis], stride))

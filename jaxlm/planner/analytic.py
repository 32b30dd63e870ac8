"""Analytic estimates of a step's collectives and memory traffic, for targets that nothing here can compile for.

They follow the sharding rules of `jaxlm.distributed.sharding`.
"""

import math

import jax

from jaxlm.distributed.mesh_axes import DATA, FSDP, SEQUENCE, TENSOR
from jaxlm.distributed.sharding import AnyMesh, num_batch_shards
from jaxlm.experiment import Experiment
from jaxlm.perf.collectives import Collective
from jaxlm.planner.memory import shard_bytes
from jaxlm.types import Batch, Params


def analytic_collectives(experiment: Experiment, params: Params, batch: Batch, mesh: AnyMesh) -> list[Collective]:
    """The collectives of one step along each axis of the mesh: parameters are gathered twice per micro-batch in the
    dtype of their products, activations all-reduced four times per layer, keys and values gathered in both passes."""
    model, sizes, steps = experiment.model, mesh.shape, experiment.grad_accum
    item_bytes = 2 if getattr(model, "dtype", "float32") == "bfloat16" else 4
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


def analytic_bytes_moved(experiment: Experiment, memory: dict[str, int]) -> int:
    """Bytes per device: state and gradients are read and written once, weights read twice per micro-batch, activations
    written and read, and as much again for what is recomputed or not fused."""
    per_step = 2 * (memory["parameters"] + memory["optimizer"] + memory["gradients"])
    per_micro_batch = 2 * memory["parameters"] + 4 * memory["activations"] + 2 * memory["gradients"]
    return per_step + experiment.grad_accum * per_micro_batch


def _first_group(mesh: AnyMesh, axis: str) -> tuple[int, ...]:
    """Indices in the mesh of the first group of devices along an axis."""
    stride = math.prod(list(mesh.shape.values())[list(mesh.shape).index(axis) + 1 :])
    return tuple(range(0, stride * mesh.shape[axis], stride))

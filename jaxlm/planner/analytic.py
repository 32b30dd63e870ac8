"""What a step sends and moves, by formula, where nothing can compile it: the rules of
`jaxlm.distributed.sharding` in numbers.
"""

import math
from typing import Any

import jax

from jaxlm.distributed.mesh_axes import DATA, FSDP, SEQUENCE, TENSOR
from jaxlm.distributed.sharding import AnyMesh, num_batch_shards
from jaxlm.experiment import Experiment
from jaxlm.perf.collectives import Collective
from jaxlm.planner.memory import shard_bytes
from jaxlm.types import Batch, Params


def analytic_collectives(experiment: Experiment, params: Params, batch: Batch, mesh: AnyMesh) -> list[Collective]:
    """Along `fsdp` parameters are gathered twice a micro-batch, in the type of their products, and gradients added up
    and cut; along `data` gradients are added up; along `tensor` four times a layer activations are; along `sequence`
    keys and values are gathered in both passes."""
    sizes, times = mesh.shape, experiment.grad_accum
    item = 2 if getattr(experiment.model, "dtype", "float32") == "bfloat16" else 4
    whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) // sizes[TENSOR]
    found: list[Collective] = []

    def add(kind: str, axis: str, count: int, size: float) -> None:
        if sizes[axis] > 1 and size:
            found.append(Collective(kind, (), count, int(count * size), _first_replica_group(mesh, axis)))

    add("all-gather", FSDP, 2 * times, whole * item)
    add("reduce-scatter", FSDP, times, whole * 4 / sizes[FSDP])
    add("all-reduce", DATA, times, shard_bytes(params))
    width, layers = getattr(experiment.model, "width", 0), _num_layers(experiment.model)
    tokens = max(leaf.size for leaf in jax.tree.leaves(batch)) / (times * num_batch_shards(mesh) * sizes[SEQUENCE])
    add("all-reduce", TENSOR, 4 * layers * times, tokens * width * item)
    add("all-gather", SEQUENCE, 4 * layers * times, tokens * sizes[SEQUENCE] * width * item)
    return found


def analytic_bytes_moved(experiment: Experiment, memory: dict[str, int]) -> int:
    """Bytes: the state read and written, weights read twice a micro-batch, activations written and read, and as much
    again for what is recomputed or not fused."""
    once = 2 * (memory["parameters"] + memory["optimizer"] + memory["gradients"])
    each = 2 * memory["parameters"] + 4 * memory["activations"] + 2 * memory["gradients"]
    return once + experiment.grad_accum * each


def _num_layers(model: Any) -> int:
    return getattr(model, "layers", 0) or getattr(model, "encoder_layers", 0) + getattr(model, "decoder_layers", 0)


def _first_replica_group(mesh: AnyMesh, axis: str) -> tuple[int, ...]:
    """Places of the first devices that talk along an axis."""
    at = list(mesh.shape).index(axis)
    stride = math.prod(list(mesh.shape.values())[at + 1 :])
    return tuple(range(0, stride * mesh.shape[axis], stride))

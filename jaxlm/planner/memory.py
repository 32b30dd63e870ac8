"""Bytes that a step takes on one device: exact if a compiled program reports them, else estimated."""

import math
import re
from typing import Any

import jax

from jaxlm.distributed.platforms import choices_for
from jaxlm.distributed.sharding import AnyMesh, num_batch_shards
from jaxlm.experiment import Experiment
from jaxlm.losses import Loss
from jaxlm.nn.layers.position_chunks import MAX_CHUNK_LOGITS_WIDE
from jaxlm.perf.chips import Chip
from jaxlm.training.state import TrainState
from jaxlm.types import Batch, Params

OOM_MESSAGE = re.compile(r"\(?([\d.]+)([KMGT])i?B?\)? exceeds available|[Uu]sed ([\d.]+)([KMGT])i?B? of")
"""The messages in which XLA reports how much memory a program needs if it does not fit."""


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


def analytic_memory(
    experiment: Experiment, state: TrainState, batch: Batch, total_activation_bytes: int, mesh: AnyMesh
) -> dict[str, int]:
    """Bytes per device, accurate to a third (what a compiler fuses or copies is unknown): state, gradients, activations
    of the device's share of a micro-batch, and the largest temporaries, which are logits and gathered parameters."""
    model, sizes = experiment.model, state_memory(state, batch)
    shares = experiment.grad_accum * num_batch_shards(mesh) * mesh.shape["sequence"]
    sizes |= {"activations": total_activation_bytes // shares, "gradients": sizes["parameters"]}
    widest = max((math.prod(leaf.shape[-2:]) * 4 for leaf in jax.tree.leaves(state.params)), default=0)
    vocab, width = getattr(model, "vocab", 0), getattr(model, "width", 0)
    logits = 3 * 4 * max(choices_for().chunk_logits, min(width * vocab, MAX_CHUNK_LOGITS_WIDE))
    sizes["temporaries"] = 2 * widest + (logits if vocab else 0)
    return sizes | {"total": sum(sizes.values())}


def program_bytes(analysis: Any) -> int:
    """Bytes of a compiled program: arguments, results that are not updated in place, temporaries and code."""
    arguments = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return arguments + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes


def compile_or_bytes_needed(lowered: Any) -> tuple[Any | None, int]:
    """The compiled program and 0; if it does not fit, None and the bytes it needs (0: the compiler gives no size)."""
    try:
        return lowered.compile(), 0
    except Exception as error:
        if (bytes_needed := oom_bytes(error)) is None:
            raise
        return None, bytes_needed


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

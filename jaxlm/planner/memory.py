"""What one device must hold at once: exactly where a compiled program says so, else by a formula."""

import math
import re
from typing import Any

import jax

from jaxlm.distributed.sharding import AnyMesh, num_batch_shards
from jaxlm.experiment import Experiment
from jaxlm.losses import MAX_CHUNK_LOGITS, MAX_CHUNK_LOGITS_WIDE, Loss
from jaxlm.perf.chips import GIB, Chip
from jaxlm.training.state import TrainState
from jaxlm.types import Batch, Params

OOM_MESSAGE = re.compile(r"\(?([\d.]+)([KMGT])i?B?\)? exceeds available|[Uu]sed ([\d.]+)([KMGT])i?B? of")
"""How XLA for TPUs says that a program needs more than there is."""


def shard_bytes(state: Any) -> int:
    """Bytes of a tree's part on one device, of shapes that know their places."""

    def part(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(part, jax.tree.leaves(state)))


def state_memory(state: TrainState, batch: Batch) -> dict[str, int]:
    """Bytes a device: parameters, the optimizer's state (with averages), carried state, and a batch."""
    return {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes((state.opt_state, state.ema)),
        "carried": shard_bytes(state.carry),
        "batch": shard_bytes(batch),
    }


def activation_bytes(experiment: Experiment, params: Params, batch: Batch) -> int:
    """Bytes, of all devices, that the forward pass of a whole batch keeps for the backward pass. By shapes alone."""
    key = jax.random.key(0)

    def pull(params: Params, batch: Batch) -> Any:
        def total(params: Params) -> tuple[jax.Array, Loss]:
            loss = experiment.objective(experiment.model, params, batch, key)
            return loss.total, loss

        return jax.vjp(total, params, has_aux=True)[1]

    kept = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(pull, params, batch))]
    for leaf in jax.tree.leaves(params):  # they lie there anyway
        if (leaf.shape, leaf.dtype) in kept:
            kept.remove((leaf.shape, leaf.dtype))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in kept)


def analytic_memory(
    experiment: Experiment, state: TrainState, batch: Batch, total_activation_bytes: int, mesh: AnyMesh
) -> dict[str, int]:
    """Bytes a device: the state, gradients, activations (`kept`, of a whole batch, divided among the devices that share
    rows and positions, and by micro-batches), and the greatest temporaries: logits and gathered parameters.

    Good to a third: what a compiler fuses or copies is not known.
    """
    found = state_memory(state, batch)
    found["activations"] = total_activation_bytes // (
        experiment.grad_accum * num_batch_shards(mesh) * mesh.shape["sequence"]
    )
    found["gradients"] = found["parameters"]
    widest = max((math.prod(leaf.shape[-2:]) * 4 for leaf in jax.tree.leaves(state.params)), default=0)
    vocab = getattr(experiment.model, "vocab", 0)
    width = getattr(experiment.model, "width", 0)
    logits = 3 * 4 * max(MAX_CHUNK_LOGITS, min(width * vocab, MAX_CHUNK_LOGITS_WIDE))
    found["temporaries"] = 2 * widest + (logits if vocab else 0)
    found["total"] = sum(found.values())
    return found


def compiled_memory(experiment: Experiment, state: TrainState, batch: Batch, analysis: Any) -> dict[str, int]:
    """Bytes a device of a compiled step, of which the state's arguments are updated in place."""
    found = state_memory(state, batch)
    found["temporaries"] = analysis.temp_size_in_bytes
    found["total"] = program_bytes(analysis)
    return found


def program_bytes(analysis: Any) -> int:
    """Of a compiled program: arguments, results that are not updated in place, temporaries and code."""
    arguments = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return arguments + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes


def compile_or_bytes_needed(lowered: Any) -> tuple[Any | None, int]:
    """The compiled program and 0; or None and the bytes that it wanted, where the compiler says that they are not there
    (0: it does not say how many)."""
    try:
        return lowered.compile(), 0
    except Exception as error:
        if (wanted := oom_bytes(error)) is None:
            raise
        return None, wanted


def oom_bytes(error: Exception) -> int | None:
    """Bytes that a program wanted that did not fit, by XLA's message; None where the error is another one."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "exceeds available" not in text:
        return None
    if not (found := OOM_MESSAGE.search(text)):
        return 0
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def available_memory(chip: Chip | None) -> int | None:
    """Bytes a device that a program may take; None where that is not known."""
    return None if chip is None else int(chip.memory * chip.usable_fraction / chip.cores)


def format_gib(size: float) -> str:
    """`1.25`, in GiB."""
    return f"{size / GIB:,.2f}"

"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes the body of a loop once, however often it runs. Here a scan counts as often as it is long, and a
loop whose length is known only at run time (the loss's walk over its chunks) as often as its slices cover what they are
cut from, which is its length when no token is padding. A multiplication and the addition to its sum are two operations;
only products of matrices and convolutions count, as is the custom: the rest is a few per cent.

Model-FLOPs utilisation (Chowdhery et al. 2022, appendix B): what the model's arithmetic takes of the chips' peak.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlm.experiment import Experiment
from jaxlm.losses import Loss
from jaxlm.models.properties import abstract_params
from jaxlm.perf.chips import chip_for_device_kind
from jaxlm.perf.dummy_batch import num_positions, shape_structs, synthetic_batch
from jaxlm.types import Batch, Params


def count_flops(function: Callable, *arguments: Any) -> int:
    """Of one call, on arguments that may be ShapeDtypeStructs; nothing is computed."""
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_flops(jaxpr: Any) -> int:
    """Of a jaxpr and of all that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot_flops(equation)
        elif name == "conv_general_dilated":
            total += _conv_flops(equation)
        elif name == "cond":
            total += max(jaxpr_flops(branch) for branch in _inner_jaxprs(equation))
        elif name == "custom_vjp_call" or name == "custom_jvp_call":
            total += jaxpr_flops(next(_inner_jaxprs(equation)))
        else:
            total += loop_trip_count(equation) * sum(jaxpr_flops(inner) for inner in _inner_jaxprs(equation))
    return total


def model_flops(model: Any, objective: Any, params: Params, batch: Batch) -> int:
    """Of one update: three times the products of the forward pass (the backward pass has two for each of them).

    What is recomputed does not count, attention does in full. Shapes suffice for `params` and `batch`.
    """

    def loss(params: Params, batch: Batch) -> Loss:
        return objective(model, params, batch, None)

    return 3 * count_flops(loss, params, batch)


def loop_trip_count(equation: Any) -> int:
    """How often a loop's body runs; 1 for what is no loop."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name != "while":
        return 1
    body = equation.params["body_jaxpr"].jaxpr
    return max((_num_slices(one) for one in body.eqns), default=1)


def unknown_trip_count(jaxpr: Any) -> int:
    """How often the longest loop runs whose length is known only at run time; 1 where there is none."""
    found = [loop_trip_count(one) if one.primitive.name == "while" else 1 for one in jaxpr.eqns]
    return max([1, *found, *(unknown_trip_count(inner) for one in jaxpr.eqns for inner in _inner_jaxprs(one))])


def _num_slices(equation: Any) -> int:
    if equation.primitive.name != "dynamic_slice":
        return max((_num_slices(one) for inner in _inner_jaxprs(equation) for one in inner.eqns), default=1)
    whole, part = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    return math.prod(-(-a // b) for a, b in zip(whole, part, strict=True))


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation has in it."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _dot_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[at] for at in contracted)


def _conv_flops(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = equation.params["dimension_numbers"].rhs_spec[0]
    sums = math.prod(size for at, size in enumerate(kernel) if at != out_features)
    return 2 * math.prod(equation.outvars[0].aval.shape) * sums


def flops_per_token(experiment: Experiment, batch: Batch | None = None) -> float:
    """FLOPs of an update for each token, of the shape of `batch` or else of the experiment's fullest one.

    Counted by `jaxlm.perf.flops.model_flops`: attention in full, nothing twice.
    """
    batch = shape_structs(synthetic_batch(experiment) if batch is None else batch)
    params = abstract_params(experiment.model)
    return model_flops(experiment.model, experiment.objective, params, batch) / num_positions(batch)


def make_mfu_fn(experiment: Experiment, mesh: Mesh) -> Callable[[float], float] | None:
    """Real tokens/s -> MFU, on devices whose peak is known; None elsewhere (a CPU)."""
    device: Any = mesh.devices.flat[0]
    chip = chip_for_device_kind(device.device_kind)
    if chip is None:
        return None
    peak = chip.peak_flops(getattr(experiment.model, "dtype", "float32")) * mesh.size
    share = flops_per_token(experiment) / peak
    return lambda tokens_per_second: share * tokens_per_second

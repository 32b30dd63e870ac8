"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes the body of a loop once, however often it runs. Here a scan counts as often as it is long, and a
loop whose length is known only at run time (the loss's walk over its chunks) as often as its slices cover what they are
cut from, which is its length when no token is padding. A multiplication and the addition to its sum are two operations;
only products of matrices and convolutions count, as is the custom: the rest is a few per cent.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxlm.losses import Loss
from jaxlm.types import Batch, Params


def flops(function: Callable, *arguments: Any) -> int:
    """Of one call, on arguments that may be ShapeDtypeStructs; nothing is computed."""
    return flops_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def flops_of(jaxpr: Any) -> int:
    """Of a jaxpr and of all that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(flops_of(branch) for branch in _inner(equation))
        elif name == "custom_vjp_call" or name == "custom_jvp_call":
            total += flops_of(next(_inner(equation)))
        else:
            total += times(equation) * sum(flops_of(inner) for inner in _inner(equation))
    return total


def model_flops(model: Any, objective: Any, params: Params, batch: Batch) -> int:
    """Of one update: three times the products of the forward pass (the backward pass has two for each of them).

    What is recomputed does not count, attention does in full. Shapes suffice for `params` and `batch`.
    """

    def loss(params: Params, batch: Batch) -> Loss:
        return objective(model, params, batch, None)

    return 3 * flops(loss, params, batch)


def times(equation: Any) -> int:
    """How often a loop's body runs; 1 for what is no loop."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name != "while":
        return 1
    body = equation.params["body_jaxpr"].jaxpr
    return max((_cover(one) for one in body.eqns), default=1)


def open_loops(jaxpr: Any) -> int:
    """How often the longest loop runs whose length is known only at run time; 1 where there is none."""
    found = [times(one) if one.primitive.name == "while" else 1 for one in jaxpr.eqns]
    return max([1, *found, *(open_loops(inner) for one in jaxpr.eqns for inner in _inner(one))])


def _cover(equation: Any) -> int:
    if equation.primitive.name != "dynamic_slice":
        return max((_cover(one) for inner in _inner(equation) for one in inner.eqns), default=1)
    whole, part = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    return math.prod(-(-a // b) for a, b in zip(whole, part, strict=True))


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation has in it."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[at] for at in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = equation.params["dimension_numbers"].rhs_spec[0]
    sums = math.prod(size for at, size in enumerate(kernel) if at != out_features)
    return 2 * math.prod(equation.outvars[0].aval.shape) * sums

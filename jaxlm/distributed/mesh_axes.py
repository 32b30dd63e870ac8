"""The axes of a mesh of devices, and the option that sets their sizes: `--mesh data=2,fsdp=4`. Needs no JAX.

| axis       | dimensions that it splits                                                                      |
|------------|------------------------------------------------------------------------------------------------|
| `data`     | rows of the batch; every device holds all parameters                                           |
| `fsdp`     | rows of the batch too; parameters and optimizer state, which are gathered when they are used   |
| `sequence` | positions of the batch; attention gathers keys and values                                      |
| `tensor`   | heads, the hidden width of the feed-forward net, gates, the vocabulary (Shoeybi et al. 2019)   |

In this order, neighbors along `tensor`, the last axis, are closest in the network: they communicate most.
"""

import math
from collections.abc import Collection, Mapping

from jaxlm.errors import UserError

AXES = DATA, FSDP, SEQUENCE, TENSOR = "data", "fsdp", "sequence", "tensor"
REMAINING = -1  # the size of an axis that takes the remaining devices


def parse_mesh_axes(text: str) -> dict[str, int]:
    """`fsdp=4,data=2` -> {"fsdp": 4, "data": 2}, in any order. Raises UserError for an unknown axis or a wrong size."""
    sizes: dict[str, int] = {}
    for name, number in split_pairs("--mesh", text, "AXIS=SIZE with an axis", AXES).items():
        if not number.removeprefix("-").isdigit() or not (int(number) == REMAINING or int(number) > 0):
            raise UserError(
                f"--mesh {text}: found the size {number!r} of {name}, expected 1 or more, or -1 (the remaining devices)"
            )
        sizes[name] = int(number)
    if list(sizes.values()).count(REMAINING) > 1:
        raise UserError(f"--mesh {text}: only one axis can be -1 and take the remaining devices")
    return sizes


def split_pairs(option: str, text: str, form: str, names: Collection[str]) -> dict[str, str]:
    """`a=1, b=x` -> {"a": "1", "b": "x"}. Raises UserError for an unknown name, or one that is there twice."""
    pairs: dict[str, str] = {}
    for part in text.replace(" ", "").split(","):
        name, equals, value = part.partition("=")
        if name not in names or not equals:
            raise UserError(f"{option} {text}: found {part!r}, expected {form} of {', '.join(names)}")
        if name in pairs:
            raise UserError(f"{option} {text}: {name} is there twice, expected once")
        pairs[name] = value
    return pairs


def resolve_mesh_shape(axis_sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """The size of every axis, in the order of AXES.

    A missing axis has size 1; -1 takes the remaining devices, and so does `data` if it is missing and no other axis is
    -1. Raises UserError if the product exceeds the number of devices, or does not divide it where it must.
    """
    sizes = dict.fromkeys(AXES, 1) | {DATA: REMAINING} | dict(axis_sizes)
    if list(sizes.values()).count(REMAINING) > 1:
        sizes[DATA] = 1
    fixed = math.prod(size for size in sizes.values() if size != REMAINING)
    must_divide = REMAINING in sizes.values()
    if fixed > devices or (must_divide and devices % fixed):
        option = ",".join(f"{name}={size}" for name, size in axis_sizes.items())
        divides = " or a divisor of it" if must_divide else " or less"
        raise UserError(
            f"--mesh {option} asks for {fixed} devices, and there are {devices}: make the product {devices}{divides}"
        )
    return {name: devices // fixed if size == REMAINING else size for name, size in sizes.items()}

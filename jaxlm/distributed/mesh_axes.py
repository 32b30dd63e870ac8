"""The axes of a mesh of devices, and how a user writes one: `data=2,fsdp=4`. Knows no JAX.

| axis       | what is split over it                                                                          |
|------------|------------------------------------------------------------------------------------------------|
| `data`     | rows of the batch; every device holds all parameters                                           |
| `fsdp`     | rows of the batch too, and parameters and optimizer state, gathered where they are used        |
| `sequence` | positions of the batch: keys and values are gathered, everything else stays                    |
| `tensor`   | heads, the hidden width of the feed-forward net, gates, the vocabulary (Shoeybi et al. 2019)   |

The order is that of the network: neighbours along `tensor` talk most and lie closest, along `data` least.
"""

import math
from collections.abc import Mapping

from jaxlm.errors import UserError

AXES = DATA, FSDP, SEQUENCE, TENSOR = "data", "fsdp", "sequence", "tensor"

REMAINING = -1
"""The size of an axis that takes the devices that are left."""


def parse_mesh_axes(text: str) -> dict[str, int]:
    """`fsdp=4,data=2` -> {"fsdp": 4, "data": 2}, in any order. Raises UserError on what is no axis or no size."""
    sizes: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        name, equals, number = part.partition("=")
        if name not in AXES or not equals:
            raise UserError(f"--mesh {text}: found {part!r}, expected AXIS=SIZE with an axis of {', '.join(AXES)}")
        if name in sizes:
            raise UserError(f"--mesh {text}: the axis {name} is there twice, expected once")
        if not number.removeprefix("-").isdigit() or not (int(number) == REMAINING or int(number) > 0):
            raise UserError(f"--mesh {text}: found the size {number!r} of {name}, expected 1 or more, or -1 (the rest)")
        sizes[name] = int(number)
    if list(sizes.values()).count(REMAINING) > 1:
        raise UserError(f"--mesh {text}: only one axis can be -1 and take the rest of the devices")
    return sizes


def resolve_mesh_shape(axis_sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """The size of every axis, in the order of AXES, on so many devices.

    Axes that are not asked for are 1; one that is -1 takes the rest, and `data` does where neither it nor another says
    so. Raises UserError where the product is more than the devices, or the rest is no whole number.
    """
    sizes = dict.fromkeys(AXES, 1) | {DATA: REMAINING} | dict(axis_sizes)
    if list(sizes.values()).count(REMAINING) > 1:
        sizes[DATA] = 1
    fixed = math.prod(size for size in sizes.values() if size != REMAINING)
    said = ",".join(f"{name}={size}" for name, size in axis_sizes.items())
    fits = devices % fixed == 0 if REMAINING in sizes.values() else fixed <= devices
    if not fits:
        divides = " or a divisor of it" if REMAINING in sizes.values() else " or less"
        raise UserError(
            f"--mesh {said} asks for {fixed} devices, and there are {devices}: make the product {devices}{divides}"
        )
    return {name: devices // fixed if size == REMAINING else size for name, size in sizes.items()}

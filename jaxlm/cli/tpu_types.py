"""Chips, hosts and topology of a TPU slice, by its accelerator type on Google Cloud.

The number in a type counts chips for v5e (`v5litepod`) and v6e; for v5p and older types it counts cores, two per chip.
Sources: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation.
"""

import math
import re
from dataclasses import dataclass

from jaxlm.errors import UserError

GKE_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5litepod": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
"""Generation -> its name on GKE, in the label `cloud.google.com/gke-tpu-accelerator`."""

TOPOLOGIES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

TOPOLOGIES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

DEFAULT_TOPOLOGIES = {"v4": TOPOLOGIES_3D, "v5p": TOPOLOGIES_3D, "v5litepod": TOPOLOGIES_2D, "v6e": TOPOLOGIES_2D}
"""Generation -> default topologies, one for each number of chips."""


@dataclass(frozen=True)
class TPUSlice:
    """`hosts` machines with `chips // hosts` chips each; `topology` is "" if it is unknown."""

    generation: str
    chips: int
    hosts: int
    topology: str


def parse_tpu_type(name: str, topology: str = "") -> TPUSlice:
    """The slice of an accelerator type of gcloud (`v5litepod-16`). Raises UserError for an unknown type."""
    match = re.fullmatch(r"(v[234]|v5litepod|v5p|v6e)-([1-9]\d*)", name)
    if match is None:
        hint = f": gcloud names it v5litepod-{name[4:]}" if name.startswith("v5e-") else ""
        raise UserError(f"no TPU type {name!r}{hint} (expected a type such as v4-8, v5litepod-16, v5p-8 or v6e-8)")
    generation, count = match[1], int(match[2])
    is_2d = generation in ("v5litepod", "v6e")
    chips = count if is_2d else count // 2
    default = (shape for shape in DEFAULT_TOPOLOGIES.get(generation, ()) if _num_chips(shape) == chips)
    shape = topology or next(default, "")
    if shape and _num_chips(shape) != chips:
        problem = f"--topology {topology} does not have the {chips} chips of {name}"
        raise UserError(f"{problem}: expected a product of {chips}")
    hosts = 1 if is_2d and chips <= 8 else math.ceil(chips / 4)
    return TPUSlice(generation, chips, hosts, shape)


def _num_chips(topology: str) -> int:
    return math.prod(map(int, re.findall(r"\d+", topology)))

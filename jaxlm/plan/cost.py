"""Seconds, model-FLOPs utilisation, hours and money of a run, from what a step computes, moves and sends.

A roofline: arithmetic at the chip's dense peak, memory and links at their bandwidth. Where all three overlap perfectly
a step takes as long as the longest of them, where nothing overlaps as long as their sum; a real one lies between, or
above, for nothing reaches its peak. Collectives are rings over all links of a chip.
"""

from dataclasses import dataclass
from typing import Any

from jaxlm.chips import Chip
from jaxlm.collectives import Collective

SHARE = {"all-gather": 1.0, "all-reduce": 2.0, "all-to-all": 1.0, "collective-broadcast": 1.0}
"""Bytes that pass through a device in a ring of n, over (n - 1) / n of the bytes of its result."""


@dataclass(frozen=True)
class Seconds:
    """Of one step: arithmetic, memory, links between chips, network between slices or nodes."""

    compute: float
    memory: float
    links: float
    network: float

    @property
    def least(self) -> float:
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def most(self) -> float:
        return self.compute + self.memory + self.links + self.network


def step_seconds(
    chip: Chip, dtype: str, flops: float, moved: float, found: list[Collective], devices: int, slice_of: list[int]
) -> Seconds:
    """Of one step of one device, `flops` and `moved` being its share. slice_of: the slice of each place of the mesh."""
    links = network = 0.0
    for one in found:
        group = one.group or tuple(range(devices))
        if one.across:
            network += wire_bytes(one, len(set(slice_of)))
        elif len({slice_of[place] for place in group}) > 1:
            network += wire_bytes(one, len(group))
        else:
            links += wire_bytes(one, len(group))
    bandwidth = chip.memory_bandwidth / chip.cores
    return Seconds(
        flops / chip.peak(dtype), moved / bandwidth, links * chip.cores / chip.link, network * chip.cores / chip.network
    )


def wire_bytes(one: Collective, size: int) -> float:
    """Bytes that one device sends in all runs of a collective, in a ring of `size`."""
    if one.kind == "collective-permute":
        return one.bytes
    if one.kind == "reduce-scatter":
        return one.bytes * (size - 1)
    return SHARE[one.kind] * one.bytes * (size - 1) / size


def whole_run(seconds: float, steps: int, chips: int, price: float | None) -> dict[str, Any]:
    """Hours and chip hours of all steps, and what they cost at so much a chip and hour."""
    hours = seconds * steps / 3600
    return {"hours": hours, "chip_hours": hours * chips, "cost": None if price is None else hours * chips * price}

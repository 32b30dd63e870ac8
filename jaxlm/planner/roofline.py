"""Seconds, model-FLOPs utilisation, hours and money of a run, from what a step computes, moves and sends.

A roofline: arithmetic at the chip's dense peak, memory and links at their bandwidth. Where all three overlap perfectly
a step takes as long as the longest of them, where nothing overlaps as long as their sum; a real one lies between, or
above, for nothing reaches its peak. Collectives are rings over all links of a chip.
"""

from dataclasses import dataclass
from typing import Any

from jaxlm.perf.chips import Chip
from jaxlm.perf.collectives import Collective

RING_TRAFFIC = {"all-gather": 1.0, "all-reduce": 2.0, "all-to-all": 1.0, "collective-broadcast": 1.0}
"""Bytes that pass through a device in a ring of n, over (n - 1) / n of the bytes of its result."""


@dataclass(frozen=True)
class StepTime:
    """Of one step: arithmetic, memory, links between chips, network between slices or nodes."""

    compute: float
    memory: float
    links: float
    network: float

    @property
    def lower_bound(self) -> float:
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def upper_bound(self) -> float:
        return self.compute + self.memory + self.links + self.network


def step_seconds(
    chip: Chip,
    dtype: str,
    flops: float,
    bytes_moved: float,
    collectives: list[Collective],
    devices: int,
    slice_ids: list[int],
) -> StepTime:
    """Of one step of one device, `flops` and `moved` being its share. slice_of: the slice of each place of the mesh."""
    links = network = 0.0
    for one in collectives:
        group = one.replica_group or tuple(range(devices))
        if one.across_slices:
            network += wire_bytes(one, len(set(slice_ids)))
        elif len({slice_ids[place] for place in group}) > 1:
            network += wire_bytes(one, len(group))
        else:
            links += wire_bytes(one, len(group))
    bandwidth = chip.memory_bandwidth / chip.cores
    return StepTime(
        flops / chip.peak_flops(dtype),
        bytes_moved / bandwidth,
        links * chip.cores / chip.link_bandwidth,
        network * chip.cores / chip.network_bandwidth,
    )


def wire_bytes(collective: Collective, ring_size: int) -> float:
    """Bytes that one device sends in all runs of a collective, in a ring of `size`."""
    if collective.kind == "collective-permute":
        return collective.bytes
    if collective.kind == "reduce-scatter":
        return collective.bytes * (ring_size - 1)
    return RING_TRAFFIC[collective.kind] * collective.bytes * (ring_size - 1) / ring_size


def run_cost(seconds: float, steps: int, chips: int, price: float | None) -> dict[str, Any]:
    """Hours and chip hours of all steps, and what they cost at so much a chip and hour."""
    hours = seconds * steps / 3600
    return {"hours": hours, "chip_hours": hours * chips, "cost": None if price is None else hours * chips * price}

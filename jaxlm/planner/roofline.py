"""Roofline estimate: the time and cost of a step from its FLOPs, its memory traffic and its collectives.

Arithmetic runs at the chip's dense peak, memory and links at their bandwidth. If all of them overlap perfectly, a step
takes as long as the longest; if nothing overlaps, as long as their sum. A real step lies in between, or above, since
nothing reaches its peak. Collectives are rings over all links of a chip.
"""

from dataclasses import dataclass
from typing import Any

from jaxlm.perf.chips import Chip
from jaxlm.perf.collectives import Collective

RING_TRAFFIC = {"all-gather": 1.0, "all-reduce": 2.0, "all-to-all": 1.0, "collective-broadcast": 1.0}
"""Bytes that a device sends in a ring of n devices, in units of (n - 1) / n of the bytes of its result."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: arithmetic, memory, links between chips, network between slices or nodes."""

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
    chip: Chip, dtype: str, flops: float, bytes_moved: float, collectives: list[Collective], slice_ids: list[int]
) -> StepTime:
    """The time of a step whose `flops` and `bytes_moved` are those of one device; `slice_ids`: the slice of each device
    in the order of the mesh."""
    links = network = 0.0
    for collective in collectives:
        group = collective.replica_group or tuple(range(len(slice_ids)))
        if collective.across_slices:
            network += wire_bytes(collective, len(set(slice_ids)))
        elif len({slice_ids[device] for device in group}) > 1:
            network += wire_bytes(collective, len(group))
        else:
            links += wire_bytes(collective, len(group))
    return StepTime(
        flops / chip.peak_flops(dtype),
        bytes_moved * chip.cores / chip.memory_bandwidth,
        links * chip.cores / chip.link_bandwidth,
        network * chip.cores / chip.network_bandwidth,
    )


def wire_bytes(collective: Collective, ring_size: int) -> float:
    """Bytes that one device sends in all runs of a collective."""
    if collective.kind == "collective-permute":
        return collective.bytes
    if collective.kind == "reduce-scatter":
        return collective.bytes * (ring_size - 1)
    return RING_TRAFFIC[collective.kind] * collective.bytes * (ring_size - 1) / ring_size


def run_cost(seconds: float, steps: int, chips: int, price: float | None) -> dict[str, Any]:
    """Hours, chip hours and cost of all steps; `price`: per chip and hour."""
    hours = seconds * steps / 3600
    return {"hours": hours, "chip_hours": hours * chips, "cost": None if price is None else hours * chips * price}

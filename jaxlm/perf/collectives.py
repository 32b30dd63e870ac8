"""Collectives of a compiled program, read from its text (optimized HLO).

Three traps of that text: the body of a loop is written once and runs many times; an asynchronous collective is a pair,
of which the first half has its operand next to its result; and compilers repeat one collective, under one channel, in
several fusions.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.perf.hlo import HloProgram, Instruction, parse_hlo, parse_ints

COLLECTIVE_KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast"
)  # fmt: skip
"""XLA's names; "ragged-all-to-all" counts as "all-to-all"."""

_SLICE_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_FUSED_START, _FUSED_DONE = "async-collective-start", "async-collective-done"  # fusions of a TPU
_NO_WORK = {"parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "copy", "after-all"}


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      shapes: of its results on one device.
      count: how often it runs in one run of the program.
      bytes: of its results on one device, in all these times.
      replica_group: the devices of the first group that takes part, by their indices in the mesh (empty: all).
      across_slices: whether it connects slices of TPUs, through their hosts.
      overlaps: whether the program computes between its start and its end.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    count: int
    bytes: int
    replica_group: tuple[int, ...] = ()
    across_slices: bool = False
    overlaps: bool = False


def find_collectives(compiled: Any, unknown_trip_count: int = 1) -> list[Collective]:
    """The collectives of `jax.jit(f).lower(...).compile()`, or of its text, in its order; a loop whose length the text
    does not have runs `unknown_trip_count` times."""
    program = parse_hlo(compiled if isinstance(compiled, str) else compiled.as_text(), unknown_trip_count)
    return list(_iter_collectives(program, program.entry, 1, set()))


def bytes_by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> {"count": runs, "bytes": of the results on one device, "overlapped": runs during which it computes}."""
    totals: dict[str, dict[str, int]] = {}
    for kind in COLLECTIVE_KINDS:
        if same := [collective for collective in collectives if collective.kind == kind]:
            totals[kind] = {"count": sum(c.count for c in same), "bytes": sum(c.bytes for c in same)}
            totals[kind]["overlapped"] = sum(c.count for c in same if c.overlaps)
    return totals


def _iter_collectives(
    program: HloProgram, name: str, count: int, seen: set[str], overlaps: bool = False
) -> Iterator[Collective]:
    """Those of a computation that runs `count` times (`overlaps`: as the start of one), and of what it calls."""
    instructions = program.computations.get(name, {}).values()
    starts = _overlapping_starts(instructions)
    for one in instructions:
        kind, in_use = one.op.removesuffix("-start").removeprefix("ragged-"), one.name in starts
        if one.op == "send" and (transfer := _SLICE_TRANSFER.search(one.line)):
            sent = _make_collective(transfer[1].lower().replace("_", "-"), one, count)
            yield dataclasses.replace(sent, across_slices=True)
        elif kind in COLLECTIVE_KINDS:
            channel = re.search(r"channel_id=(\d+)", one.line)
            key = f"{kind} {channel[1]}" if channel else ""
            if key not in seen:
                seen |= {key} - {""}
                group, collective = _first_replica_group(one.line), _make_collective(kind, one, count)
                yield dataclasses.replace(collective, replica_group=group, overlaps=overlaps or in_use)
            continue
        repeats = program.trip_count(one) if one.op == "while" else 1
        for called in one.called:
            yield from _iter_collectives(program, called, count * repeats, seen, in_use)


def _overlapping_starts(instructions: Iterable[Instruction]) -> set[str]:
    """The instructions of a computation, in its order, that start what ends after some computing."""
    waiting, overlapping = set[str](), set[str]()
    for one in instructions:
        if one.op.endswith("-start") or one.name.startswith(_FUSED_START):
            waiting.add(one.name)
        elif one.op.endswith("-done"):
            waiting -= set(one.operands)
        elif one.name.startswith(_FUSED_DONE):
            waiting.discard(one.name.replace(_FUSED_DONE, _FUSED_START))
        elif one.op not in _NO_WORK:
            overlapping |= waiting
    return overlapping


def _make_collective(kind: str, one: Instruction, count: int) -> Collective:
    arrays = one.arrays
    if one.op in ("all-gather-start", "collective-permute-start"):  # operands first, then results
        arrays = arrays[1:2] if len(arrays) <= 2 or kind == "collective-permute" else arrays[len(arrays) // 2 :]
    return Collective(kind, tuple(shape for shape, *_ in arrays), count, count * sum(size for _, size, _ in arrays))


def _first_replica_group(line: str) -> tuple[int, ...]:
    """The first group in any of its forms; of a permutation, the first pair that differs."""
    if group := re.search(r"replica_groups=\{\{([\d,]+)\}", line):  # {{0,1},{2,3}}
        return parse_ints(group[1])
    if group := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):  # [2,2]<=[2,2]T(1,0)
        shape, box, permutation = (parse_ints(part or "") for part in group.groups())
        places = np.arange(math.prod(box)).reshape(box).transpose(permutation or None)
        return tuple(places.reshape(shape)[0].tolist())
    if group := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):  # mesh['a'=2,'b'=2] {'b'}
        sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", group[1])}
        places = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        return tuple(places[tuple(slice(None) if axis in group[2] else 0 for axis in sizes)].ravel().tolist())
    pairs = re.findall(r"\{(\d+),(\d+)\}", line.partition("source_target_pairs=")[2].partition("}}")[0] + "}")
    return next(((int(a), int(b)) for a, b in pairs if a != b), ())

"""Collectives of a compiled program, read from its text (optimized HLO).

Three traps of that text: the body of a loop is written once and runs many times; an asynchronous collective is a pair,
of which the first half has its operand next to its result; and compilers repeat one collective, under one channel, in
several fusions.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

COLLECTIVE_KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast"
)  # fmt: skip
"""XLA's names; "ragged-all-to-all" counts as "all-to-all"."""

ARRAY_PATTERN = re.compile(r"\b(?P<dtype>pred|bf16|f8\w*|[suf]\d+|c64|c128)\[(?P<shape>[\d,]*)\](?P<layout>\{[^}]*\})?")

INSTRUCTION_PATTERN = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<result>.*?) (?P<op>[\w-]+)\((?P<operands>[^)]*)"
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALLED_COMPUTATION = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SLICE_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_LOOP_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_FUSED_START, _FUSED_DONE = "async-collective-start", "async-collective-done"  # fusions of a TPU
_NO_WORK = {"parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "copy", "after-all"}
_KNOWN_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')


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


@dataclass(frozen=True)
class HloProgram:
    """The lines of each computation by name, the entry's name, and the trip count of loops of unknown length."""

    computations: dict[str, list[str]]
    entry: str
    unknown_trip_count: int

    def trip_count(self, line: str) -> int:
        """The trip count of a `while`: as the compiler noted it, or the number that its condition compares with."""
        if known := _KNOWN_TRIP_COUNT.search(line):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.-]+)", line)
        lines = self.computations.get(condition[1] if condition else "", ())
        limits = [int(limit[1]) for limit in map(_LOOP_LIMIT.search, lines) if limit]
        return limits[0] if len(limits) == 1 else self.unknown_trip_count

    def has_known_length(self, line: str) -> bool:
        """True if the compiler noted the trip count of a `while`."""
        return bool(_KNOWN_TRIP_COUNT.search(line))


def parse_hlo(text: str, unknown_trip_count: int = 1) -> HloProgram:
    """The computations of the text of a compiled program."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name:
            computations[name].append(line)
    return HloProgram(computations, entry, unknown_trip_count)


def branch_names(line: str) -> list[str]:
    """The computations of the branches of a `conditional`."""
    return [name.strip().lstrip("%") for names in _BRANCHES.findall(line) for name in names.split(",")]


def array_bytes(dtype: str, shape: str) -> int:
    """Bytes of an array by its HLO dtype and shape: `bf16`, `8,64`."""
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.ceil(bits * math.prod(_parse_shape(shape)) / 8)


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
    lines = program.computations.get(name, [])
    starts = _overlapping_starts(lines)
    for line in lines:
        if not (instruction := INSTRUCTION_PATTERN.match(line)):
            continue
        op, result = instruction["op"], instruction["result"]
        kind = op.removesuffix("-start").removeprefix("ragged-")
        if op == "send" and (transfer := _SLICE_TRANSFER.search(line)):
            sent = _make_collective(transfer[1].lower().replace("_", "-"), result, count)
            yield dataclasses.replace(sent, across_slices=True)
        elif kind in COLLECTIVE_KINDS:
            channel = re.search(r"channel_id=(\d+)", line)
            key = f"{kind} {channel[1]}" if channel else ""
            if key not in seen:
                seen |= {key} - {""}
                collective = _make_collective(kind, result, count, is_async_start=op.endswith("-start"))
                in_use = overlaps or instruction["name"] in starts
                yield dataclasses.replace(collective, replica_group=_first_replica_group(line), overlaps=in_use)
            continue
        repeats = program.trip_count(line) if op == "while" else 1
        for called in [*_CALLED_COMPUTATION.findall(line), *branch_names(line)]:
            yield from _iter_collectives(program, called, count * repeats, seen, instruction["name"] in starts)


def _overlapping_starts(lines: list[str]) -> set[str]:
    """The instructions of a computation, in its order, that start what ends after some computing."""
    waiting, overlapping = set[str](), set[str]()
    for instruction in filter(None, map(INSTRUCTION_PATTERN.match, lines)):
        name, op = instruction["name"], instruction["op"]
        if op.endswith("-start") or name.startswith(_FUSED_START):
            waiting.add(name)
        elif op.endswith("-done"):
            waiting -= set(re.findall(r"[\w.-]+", instruction["operands"]))
        elif name.startswith(_FUSED_DONE):
            waiting.discard(name.replace(_FUSED_DONE, _FUSED_START))
        elif op not in _NO_WORK:
            overlapping |= waiting
    return overlapping


def _make_collective(kind: str, result: str, count: int, is_async_start: bool = False) -> Collective:
    arrays = [(dtype, shape) for dtype, shape, _ in ARRAY_PATTERN.findall(result)]
    if is_async_start and kind in ("all-gather", "collective-permute"):  # operands first, then results
        arrays = arrays[1:2] if len(arrays) <= 2 or kind == "collective-permute" else arrays[len(arrays) // 2 :]
    size = sum(array_bytes(dtype, shape) for dtype, shape in arrays)
    return Collective(kind, tuple(_parse_shape(shape) for _, shape in arrays), count, count * size)


def _parse_shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _first_replica_group(line: str) -> tuple[int, ...]:
    """The first group in any of its forms; of a permutation, the first pair that differs."""
    if group := re.search(r"replica_groups=\{\{([\d,]+)\}", line):  # {{0,1},{2,3}}
        return _parse_shape(group[1])
    if group := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):  # [2,2]<=[2,2]T(1,0)
        shape, box, permutation = (_parse_shape(part or "") for part in group.groups())
        places = np.arange(math.prod(box)).reshape(box).transpose(permutation or None)
        return tuple(places.reshape(shape)[0].tolist())
    if group := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):  # mesh['a'=2,'b'=2] {'b'}
        sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", group[1])}
        places = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        return tuple(places[tuple(slice(None) if axis in group[2] else 0 for axis in sizes)].ravel().tolist())
    pairs = re.findall(r"\{(\d+),(\d+)\}", line.partition("source_target_pairs=")[2].partition("}}")[0] + "}")
    return next(((int(a), int(b)) for a, b in pairs if a != b), ())

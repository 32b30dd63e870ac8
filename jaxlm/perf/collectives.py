"""What devices tell each other in one run of a compiled program, read from its text (HLO after optimisation).

Traps of that text: the body of a loop is written once and run many times; an asynchronous collective is a pair, whose
first half has its operand beside its result; compilers repeat one collective, under one channel, in several fusions.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

COLLECTIVE_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""As XLA calls them; "ragged-all-to-all" counts as "all-to-all"."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")

INSTRUCTION_PATTERN = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<result>.*?) (?P<op>[\w-]+)\(")

_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[suf]\d+|c64|c128)\[([\d,]*)\]")

_CALLED_COMPUTATION = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")

_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")

_SLICE_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')

_LOOP_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")

_KNOWN_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Collective:
    """One collective of a program: of which kind, the shapes of its results on one device, how often it runs in one
    run of the program, the bytes of its results in all these times, and the devices of the first group that takes part,
    by their places in the mesh (none: all of them)."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    count: int
    bytes: int
    replica_group: tuple[int, ...] = ()
    across_slices: bool = False
    """Between slices of TPUs, by way of their hosts."""


def find_collectives(compiled: Any, unknown_trip_count: int = 1) -> list[Collective]:
    """The collectives of `jax.jit(f).lower(...).compile()`, or of its text, in the order of the text.

    `open_loops`: how often a loop runs whose length the text does not know.
    """
    known, entry = parse_computations(compiled if isinstance(compiled, str) else compiled.as_text())
    return list(_iter_collectives(known, entry, 1, set(), unknown_trip_count))


def bytes_by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> {"count": runs, "bytes": of the results on one device}."""
    return {
        kind: {"count": sum(one.count for one in same), "bytes": sum(one.bytes for one in same)}
        for kind in COLLECTIVE_KINDS
        if (same := [one for one in collectives if one.kind == kind])
    }


def parse_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the one that is run."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            found[name], entry = [], name if head[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def while_trip_count(computations: dict[str, list[str]], line: str, unknown_trip_count: int = 1) -> int:
    """How often a `while` runs: what the compiler noted, else the number that its condition compares the counter to."""
    if found := _KNOWN_TRIP_COUNT.search(line):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    limits = [
        found[1]
        for one in computations.get(condition[1] if condition else "", ())
        if (found := _LOOP_LIMIT.search(one))
    ]
    return int(limits[0]) if len(limits) == 1 else unknown_trip_count


def _iter_collectives(
    computations: dict[str, list[str]], name: str, count: int, seen: set[str], unknown_trip_count: int
) -> Iterator[Collective]:
    """The collectives of a computation that is run so often, and of those that it calls."""
    for line in computations.get(name, ()):
        if not (instruction := INSTRUCTION_PATTERN.match(line)):
            continue
        op = instruction["op"]
        kind = op.removesuffix("-start").removeprefix("ragged-")
        if op == "send" and (between := _SLICE_TRANSFER.search(line)):
            found = _make_collective(between[1].lower().replace("_", "-"), instruction["result"], False, count, ())
            yield dataclasses.replace(found, across_slices=True)
        elif kind in COLLECTIVE_KINDS:
            channel = re.search(r"channel_id=(\d+)", line)
            key = f"{kind} {channel[1]}" if channel else ""
            if key not in seen:
                seen |= {key} - {""}
                yield _make_collective(
                    kind, instruction["result"], op.endswith("-start"), count, _first_replica_group(line)
                )
            continue
        again = while_trip_count(computations, line, unknown_trip_count) if op == "while" else 1
        branches = [part.strip().lstrip("%") for part in (_BRANCHES.findall(line) or [""])[0].split(",")]
        for called in [*_CALLED_COMPUTATION.findall(line), *branches]:
            yield from _iter_collectives(computations, called, count * again, seen, unknown_trip_count)


def _make_collective(
    kind: str, result: str, is_async_start: bool, count: int, replica_group: tuple[int, ...]
) -> Collective:
    arrays = [(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _ARRAY.findall(result)]
    if is_async_start and kind in ("all-gather", "collective-permute"):
        arrays = arrays[1:2] if len(arrays) <= 2 or kind == "collective-permute" else arrays[len(arrays) // 2 :]
    size = sum(math.ceil(_dtype_bits(dtype) * math.prod(shape) / 8) for dtype, shape in arrays)
    return Collective(kind, tuple(shape for _, shape in arrays), count, count * size, replica_group)


def _first_replica_group(line: str) -> tuple[int, ...]:
    """The first group: written out, `{{0,1},{2,3}}`, as a turned box of numbers, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`, or
    as axes of one, `mesh['a'=2,'b'=2] {'b'}`. Of a permutation, the first pair that differs."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return tuple(map(int, found[1].split(",")))
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, box, turn = ([int(size) for size in part.split(",")] if part else [] for part in found.groups())
        places = np.arange(math.prod(box)).reshape(box).transpose(turn or None)
        return tuple(places.reshape(shape)[0].tolist())
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
        places = np.arange(math.prod(map(int, sizes.values()))).reshape([int(size) for size in sizes.values()])
        return tuple(places[tuple(slice(None) if axis in found[2] else 0 for axis in sizes)].ravel().tolist())
    pairs = re.findall(r"\{(\d+),(\d+)\}", line.partition("source_target_pairs=")[2].partition("}}")[0] + "}")
    return next(((int(a), int(b)) for a, b in pairs if a != b), ())


def _dtype_bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])

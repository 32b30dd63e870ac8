"""What devices tell each other in one run of a compiled program, read from its text (HLO after optimisation).

Traps of that text: the body of a loop is written once and run many times; an asynchronous collective is a pair, whose
first half has its operand beside its result; compilers repeat one collective, under one channel, in several fusions.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
"""As XLA calls them; "ragged-all-to-all" counts as "all-to-all"."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<result>.*?) (?P<op>[\w-]+)\(")
_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[suf]\d+|c64|c128)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Collective:
    """One collective of a program: of which kind, the shapes of its results on one device, how often it runs in one
    run of the program (loops of unknown length count once), and the bytes of its results in all these times."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    times: int
    bytes: int


def collectives(compiled: Any) -> list[Collective]:
    """The collectives of `jax.jit(f).lower(...).compile()`, or of its text, in the order of the text."""
    computations, entry = _computations(compiled if isinstance(compiled, str) else compiled.as_text())
    return list(_walk(computations, entry, 1, set()))


def traffic(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> {"count": runs, "bytes": of the results on one device}."""
    return {
        kind: {"count": sum(one.times for one in same), "bytes": sum(one.bytes for one in same)}
        for kind in KINDS
        if (same := [one for one in found if one.kind == kind])
    }


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
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


def _walk(computations: dict[str, list[str]], name: str, times: int, seen: set[str]) -> Iterator[Collective]:
    """The collectives of a computation that is run so often, and of those that it calls."""
    for line in computations.get(name, ()):
        if not (instruction := _INSTRUCTION.match(line)):
            continue
        op = instruction["op"]
        kind = op.removesuffix("-start").removeprefix("ragged-")
        if kind in KINDS:
            channel = re.search(r"channel_id=(\d+)", line)
            key = f"{kind} {channel[1]}" if channel else ""
            if key not in seen:
                seen |= {key} - {""}
                yield _collective(kind, instruction["result"], op.endswith("-start"), times)
            continue
        trips = int(found[1]) if op == "while" and (found := _TRIPS.search(line)) else 1
        branches = [part.strip().lstrip("%") for part in (_BRANCHES.findall(line) or [""])[0].split(",")]
        for called in [*_CALLED.findall(line), *branches]:
            yield from _walk(computations, called, times * trips, seen)


def _collective(kind: str, result: str, started: bool, times: int) -> Collective:
    arrays = [(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _ARRAY.findall(result)]
    if started and kind in ("all-gather", "collective-permute"):
        arrays = arrays[1:2] if len(arrays) <= 2 or kind == "collective-permute" else arrays[len(arrays) // 2 :]
    size = sum(math.ceil(_bits(dtype) * math.prod(shape) / 8) for dtype, shape in arrays)
    return Collective(kind, tuple(shape for _, shape in arrays), times, times * size)


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])

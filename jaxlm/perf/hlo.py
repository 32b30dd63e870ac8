"""The text of a compiled program (optimized HLO), parsed: the source of figures of its collectives and its costs."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[suf]\d+|c64|c128)\[([\d,]*)\](\{[^}]*\})?")
_FAST_MEMORY = re.compile(r"S\(\d+\)")  # in the layout of an array
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\(([^)]*)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LOOP_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_KNOWN_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """One line of a computation; `result` and `operand_text` are parts of it."""

    line: str
    name: str
    result: str
    op: str
    operand_text: str

    @property
    def arrays(self) -> list[tuple[tuple[int, ...], int, bool]]:
        """Of each array of the result its shape, its bytes, and whether it stays in the chip's own fast memory."""
        arrays = [(dtype, parse_ints(shape), layout) for dtype, shape, layout in _ARRAY.findall(self.result)]
        return [(shape, _num_bytes(dtype, shape), bool(_FAST_MEMORY.search(layout))) for dtype, shape, layout in arrays]

    @property
    def bytes(self) -> int:
        """Bytes of the result in memory: without arrays in fast memory."""
        return sum(size for _, size, is_fast in self.arrays if not is_fast)

    @property
    def operands(self) -> list[str]:
        """The names of the instructions that compute the operands."""
        return re.findall(r"%?([\w.-]+)(?:,|$)", re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", self.operand_text))

    @property
    def called(self) -> list[str]:
        """The computations that it runs: the body of a loop, the branches of a conditional, the content of a fusion."""
        branches = [name.strip().lstrip("%") for names in _BRANCHES.findall(self.line) for name in names.split(",")]
        return _CALLED.findall(self.line) + branches

    @property
    def known_trip_count(self) -> int | None:
        """The trip count of a `while` as the compiler noted it."""
        return int(known[1]) if (known := _KNOWN_TRIP_COUNT.search(self.line)) else None


@dataclass(frozen=True)
class HloProgram:
    """The instructions of each computation by name, the entry's name, and the trip count of loops of unknown length."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    unknown_trip_count: int

    def trip_count(self, loop: Instruction) -> int:
        """The trip count of a `while`: as the compiler noted it, or the number that its condition compares with."""
        condition = re.search(r"condition=%?([\w.-]+)", loop.line)
        lines = self.computations.get(condition[1] if condition else "", {}).values()
        limits = [int(limit[1]) for limit in (_LOOP_LIMIT.search(one.line) for one in lines) if limit]
        return loop.known_trip_count or (limits[0] if len(limits) == 1 else self.unknown_trip_count)


def parse_hlo(text: str, unknown_trip_count: int = 1) -> HloProgram:
    """The computations of the text of a compiled program."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = {}
            entry = name if head[1] else entry
        elif name and (parts := _INSTRUCTION.match(line)):
            computations[name][parts[1]] = Instruction(line, *parts.groups())
    return HloProgram(computations, entry, unknown_trip_count)


def parse_ints(text: str) -> tuple[int, ...]:
    """`8,64` -> (8, 64)."""
    return tuple(int(size) for size in text.split(",") if size)


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.ceil(bits * math.prod(shape) / 8)

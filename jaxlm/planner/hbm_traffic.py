"""Costs of one run of a compiled program other than arithmetic, estimated from its text: bytes that it moves between a
device and its memory (HBM), launches, and turns that wait for the host.

Every array that an instruction outside a fusion leaves in memory is written once and read once, and every argument is
read once; inside a fusion nothing is moved. An update in place moves the updated part. The estimate counts an array
that is read several times once, and an array that stays in a cache in full.
"""

import re
from typing import NamedTuple

from jaxlm.perf.collectives import ARRAY_PATTERN, INSTRUCTION_PATTERN, HloProgram, array_bytes, branch_names, parse_hlo

NO_TRAFFIC_OPS = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all while conditional call partition-id replica-id "
    "optimization-barrier copy-start opt-barrier".split()
)

_FAST_MEMORY = re.compile(r"S\(\d+\)")
"""The mark of an array in the chip's own fast memory."""


class ProgramCosts(NamedTuple):
    """One run of a program on one device: bytes moved, kernels and copies launched (before a GPU's runtime records
    them in graphs), and turns of loops of unknown length, before each of which a GPU's host waits for the device."""

    bytes_moved: int = 0
    launches: int = 0
    host_turns: int = 0

    def plus(self, other: "ProgramCosts", times: int = 1) -> "ProgramCosts":
        """The costs of this and of `times` runs of another program."""
        return ProgramCosts(*(a + times * b for a, b in zip(self, other, strict=True)))


def program_costs(text: str, unknown_trip_count: int = 1) -> ProgramCosts:
    """The costs by a program's text; `unknown_trip_count`: how often a loop of unknown length runs."""
    program = parse_hlo(text, unknown_trip_count)
    arguments = sum(_result_bytes(line) for line in program.computations[program.entry] if " parameter(" in line)
    return ProgramCosts(arguments).plus(_computation_costs(program, program.entry))


def _computation_costs(program: HloProgram, name: str) -> ProgramCosts:
    total, lines = ProgramCosts(), program.computations.get(name, [])
    for line in lines:
        if not (instruction := INSTRUCTION_PATTERN.match(line)):
            continue
        op = instruction["op"]
        if op == "while":
            if body := re.search(r"body=%?([\w.-]+)", line):
                turns = program.trip_count(line)
                total = total.plus(_computation_costs(program, body[1]), turns)
                total = total.plus(ProgramCosts(host_turns=0 if program.has_known_length(line) else turns))
        elif op in ("conditional", "call"):
            called = re.findall(r"(?:to_apply|true_computation|false_computation)=%?([\w.-]+)", line)
            branches = [_computation_costs(program, name) for name in called + branch_names(line)]
            total = total.plus(max(branches, default=ProgramCosts()))
        elif op not in NO_TRAFFIC_OPS and not op.endswith("-start") and "AllocateBuffer" not in line:
            total = total.plus(ProgramCosts(2 * _bytes_written(program, lines, line, op), launches=1))
    return total


def _bytes_written(program: HloProgram, lines: list[str], line: str, op: str) -> int:
    """Bytes of the result, or of the part that is updated in place."""
    if op == "dynamic-update-slice":
        return _update_bytes(lines, line)
    caller = _defining_line(lines, line, 0) if op == "fusion-done" else line  # its other half names the computation
    if op in ("fusion", "fusion-done") and (called := re.search(r"calls=%?([\w.-]+)", caller)):
        fused = program.computations.get(called[1], [])
        root = next((inner for inner in fused if inner.lstrip().startswith("ROOT ")), "")
        updates = [inner for inner in fused if " dynamic-update-slice(" in inner]
        if updates and ("tuple(" in root or _result_bytes(root) == max(map(_result_bytes, updates))):
            whole = sum(map(_result_bytes, updates))
            return max(_result_bytes(line) - whole, 0) + sum(_update_bytes(fused, inner) for inner in updates)
    return _result_bytes(line)


def _update_bytes(lines: list[str], line: str) -> int:
    """Bytes of the update, the second operand of a dynamic-update-slice, by the line that computes it."""
    return _result_bytes(_defining_line(lines, line, 1))


def _defining_line(lines: list[str], line: str, operand: int) -> str:
    """The line that computes an operand of an instruction; "" if there is none."""
    instruction = INSTRUCTION_PATTERN.match(line)
    operands = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", instruction["operands"] if instruction else "")
    names = re.findall(r"%?([\w.-]+)(?:,|$)", operands)
    result = re.compile(rf"\s*(?:ROOT )?%?{re.escape(names[operand]) if len(names) > operand else ''} = ")
    return next((other for other in lines if result.match(other)), "")


def _result_bytes(line: str) -> int:
    """Bytes of the result of a line, without arrays in fast memory."""
    instruction = INSTRUCTION_PATTERN.match(line)
    arrays = ARRAY_PATTERN.findall(instruction["result"] if instruction else "")
    return sum(array_bytes(dtype, shape) for dtype, shape, layout in arrays if not _FAST_MEMORY.search(layout))

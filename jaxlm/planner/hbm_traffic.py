"""Bytes that one run of a compiled program moves between a device and its memory (HBM), estimated from its text.

Every array that an instruction outside a fusion leaves in memory is written once and read once, and every argument is
read once; inside a fusion nothing is moved. An update in place moves the updated part. The estimate counts an array
that is read several times once, and an array that stays in a cache in full.
"""

import re

from jaxlm.perf.collectives import ARRAY_PATTERN, INSTRUCTION_PATTERN, HloProgram, array_bytes, branch_names, parse_hlo

NO_TRAFFIC_OPS = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all while conditional call partition-id replica-id "
    "optimization-barrier copy-start opt-barrier".split()
)

_FAST_MEMORY = re.compile(r"S\(\d+\)")
"""The mark of an array in the chip's own fast memory."""


def bytes_moved(text: str, unknown_trip_count: int = 1) -> int:
    """Bytes per device; `unknown_trip_count`: how often a loop of unknown length runs."""
    program = parse_hlo(text, unknown_trip_count)
    arguments = sum(_result_bytes(line) for line in program.computations[program.entry] if " parameter(" in line)
    return arguments + _computation_bytes(program, program.entry)


def _computation_bytes(program: HloProgram, name: str) -> int:
    total, lines = 0, program.computations.get(name, [])
    for line in lines:
        if not (instruction := INSTRUCTION_PATTERN.match(line)):
            continue
        op = instruction["op"]
        if op == "while":
            if body := re.search(r"body=%?([\w.-]+)", line):
                total += program.trip_count(line) * _computation_bytes(program, body[1])
        elif op in ("conditional", "call"):
            called = re.findall(r"(?:to_apply|true_computation|false_computation)=%?([\w.-]+)", line)
            total += max((_computation_bytes(program, name) for name in called + branch_names(line)), default=0)
        elif op not in NO_TRAFFIC_OPS and not op.endswith("-start") and "AllocateBuffer" not in line:
            total += 2 * _bytes_written(program, lines, line, op)
    return total


def _bytes_written(program: HloProgram, lines: list[str], line: str, op: str) -> int:
    """Bytes of the result, or of the part that is updated in place."""
    if op == "dynamic-update-slice":
        return _update_bytes(lines, line)
    if op == "fusion" and (called := re.search(r"calls=%?([\w.-]+)", line)):
        fused = program.computations.get(called[1], [])
        root = next((inner for inner in fused if inner.lstrip().startswith("ROOT ")), "")
        updates = [inner for inner in fused if " dynamic-update-slice(" in inner]
        if updates and ("tuple(" in root or _result_bytes(root) == max(map(_result_bytes, updates))):
            whole = sum(map(_result_bytes, updates))
            return max(_result_bytes(line) - whole, 0) + sum(_update_bytes(fused, inner) for inner in updates)
    return _result_bytes(line)


def _update_bytes(lines: list[str], line: str) -> int:
    """Bytes of the update, the second operand of a dynamic-update-slice, by the line that computes it."""
    instruction = INSTRUCTION_PATTERN.match(line)
    operands = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", instruction["operands"] if instruction else "")
    names = re.findall(r"%?([\w.-]+)(?:,|$)", operands)
    result = re.compile(rf"\s*(?:ROOT )?%?{re.escape(names[1]) if len(names) > 1 else ''} = ")
    return next((_result_bytes(other) for other in lines if result.match(other)), 0)


def _result_bytes(line: str) -> int:
    """Bytes of the result of a line, without arrays in fast memory."""
    instruction = INSTRUCTION_PATTERN.match(line)
    arrays = ARRAY_PATTERN.findall(instruction["result"] if instruction else "")
    return sum(array_bytes(dtype, shape) for dtype, shape, layout in arrays if not _FAST_MEMORY.search(layout))

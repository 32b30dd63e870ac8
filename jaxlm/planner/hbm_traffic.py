"""Bytes that one run of a compiled program moves between a device and its memory, read from its text.

Every array that an instruction outside of a fusion leaves in memory is written once and read once, and every argument
is read once; inside a fusion nothing is moved. An update in place moves what is updated. An estimate: what is read
several times counts once, and what stays in a cache counts in full.
"""

import math
import re

from jaxlm.perf.collectives import INSTRUCTION_PATTERN, parse_computations, while_trip_count

NO_TRAFFIC_OPS = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "while",
    "conditional",
    "call",
}


NO_TRAFFIC_OPS |= {"partition-id", "replica-id", "optimization-barrier", "copy-start", "opt-barrier"}

_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[suf]\d+|c64|c128)\[([\d,]*)\](\{[^}]*\})?")

_NAMED_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<result>.*?) (?P<op>[\w-]+)\((?P<operands>[^)]*)\)"
)

_FAST_MEMORY = re.compile(r"S\(\d+\)")
"""The mark of an array that lies in the chip's own fast memory."""


def bytes_moved(text: str, unknown_trip_count: int = 1) -> int:
    """Of the program, per device; `open_loops`: how often a loop of unknown length runs."""
    known, entry = parse_computations(text)
    arguments = sum(_result_bytes(line) for line in known[entry] if " parameter(" in line)
    return arguments + _computation_bytes(known, entry, unknown_trip_count)


def _computation_bytes(computations_by_name: dict[str, list[str]], name: str, unknown_trip_count: int) -> int:
    total, lines = 0, computations_by_name.get(name, [])
    for line in lines:
        if not (found := INSTRUCTION_PATTERN.match(line)):
            continue
        op = found["op"]
        if op == "while":
            body = re.search(r"body=%?([\w.-]+)", line)
            total += (
                while_trip_count(computations_by_name, line, unknown_trip_count)
                * _computation_bytes(computations_by_name, body[1], unknown_trip_count)
                if body
                else 0
            )
        elif op in ("conditional", "call"):
            called = re.findall(r"(?:to_apply|true_computation|false_computation)=%?([\w.-]+)", line)
            branches = re.findall(r"branch_computations=\{([^}]*)\}", line)
            called += [one.strip().lstrip("%") for part in branches for one in part.split(",")]
            total += max(
                (_computation_bytes(computations_by_name, one, unknown_trip_count) for one in called), default=0
            )
        elif op not in NO_TRAFFIC_OPS and not op.endswith("-start") and "AllocateBuffer" not in line:
            total += 2 * _bytes_written(computations_by_name, lines, line)
    return total


def _bytes_written(computations_by_name: dict[str, list[str]], lines: list[str], line: str) -> int:
    """Bytes of the result, or of what is updated in place."""
    found = _NAMED_INSTRUCTION.match(line)
    if found and found["op"] == "dynamic-update-slice":
        return _operand_bytes(lines, found["operands"], 1)
    if found and found["op"] == "fusion" and (called := re.search(r"calls=%?([\w.-]+)", line)):
        inside = computations_by_name.get(called[1], [])
        root = next((one for one in inside if one.lstrip().startswith("ROOT ")), "")
        updates = [one for one in inside if " dynamic-update-slice(" in one]
        if updates and ("tuple(" in root or _result_bytes(root) == max(map(_result_bytes, updates))):
            whole = sum(map(_result_bytes, updates))
            parts = sum(
                _operand_bytes(inside, match["operands"], 1)
                for one in updates
                if (match := _NAMED_INSTRUCTION.match(one))
            )
            return max(_result_bytes(line) - whole, 0) + parts
    return _result_bytes(line)


def _operand_bytes(lines: list[str], operands: str, index: int) -> int:
    """Bytes of an operand: from its own shape where the text has it, else from the line that makes it."""
    names = re.findall(r"%?([\w.-]+)(?:,|$)", re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", operands).replace(" ", " "))
    name = names[index].split()[-1].lstrip("%") if len(names) > index else ""
    return next((_result_bytes(one) for one in lines if re.match(rf"\s*(?:ROOT )?%?{re.escape(name)} = ", one)), 0)


def _result_bytes(line: str) -> int:
    """Bytes of the result of a line, but for what lies in fast memory."""
    found = _NAMED_INSTRUCTION.match(line)
    arrays = _ARRAY.findall(found["result"] if found else "")
    return sum(math.ceil(_dtype_bits(kind) * math.prod(int(n) for n in sizes.split(",") if n) / 8)
               for kind, sizes, layout in arrays if not _FAST_MEMORY.search(layout))  # fmt: skip


def _dtype_bits(kind: str) -> int:
    return 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])

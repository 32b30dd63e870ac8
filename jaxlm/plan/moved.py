"""Bytes that one run of a compiled program moves between a device and its memory, read from its text.

Every array that an instruction outside of a fusion leaves in memory is written once and read once, and every argument
is read once; inside a fusion nothing is moved. An update in place moves what is updated. An estimate: what is read
several times counts once, and what stays in a cache counts in full.
"""

import math
import re

from jaxlm.collectives import INSTRUCTION, computations, trips

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional", "call"}
FREE |= {"partition-id", "replica-id", "optimization-barrier", "copy-start", "opt-barrier"}
_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[suf]\d+|c64|c128)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<result>.*?) (?P<op>[\w-]+)\((?P<operands>[^)]*)\)")
_FAST = re.compile(r"S\(\d+\)")
"""The mark of an array that lies in the chip's own fast memory."""


def bytes_moved(text: str, open_loops: int = 1) -> int:
    """Of the program, per device; `open_loops`: how often a loop of unknown length runs."""
    known, entry = computations(text)
    arguments = sum(_size(line) for line in known[entry] if " parameter(" in line)
    return arguments + _moved(known, entry, open_loops)


def _moved(known: dict[str, list[str]], name: str, open_loops: int) -> int:
    total, lines = 0, known.get(name, [])
    for line in lines:
        if not (found := INSTRUCTION.match(line)):
            continue
        op = found["op"]
        if op == "while":
            body = re.search(r"body=%?([\w.-]+)", line)
            total += trips(known, line, open_loops) * _moved(known, body[1], open_loops) if body else 0
        elif op in ("conditional", "call"):
            called = re.findall(r"(?:to_apply|true_computation|false_computation)=%?([\w.-]+)", line)
            branches = re.findall(r"branch_computations=\{([^}]*)\}", line)
            called += [one.strip().lstrip("%") for part in branches for one in part.split(",")]
            total += max((_moved(known, one, open_loops) for one in called), default=0)
        elif op not in FREE and not op.endswith("-start") and "AllocateBuffer" not in line:
            total += 2 * _written(known, lines, line)
    return total


def _written(known: dict[str, list[str]], lines: list[str], line: str) -> int:
    """Bytes of the result, or of what is updated in place."""
    found = _NAME.match(line)
    if found and found["op"] == "dynamic-update-slice":
        return _operand(lines, found["operands"], 1)
    if found and found["op"] == "fusion" and (called := re.search(r"calls=%?([\w.-]+)", line)):
        inside = known.get(called[1], [])
        root = next((one for one in inside if one.lstrip().startswith("ROOT ")), "")
        updates = [one for one in inside if " dynamic-update-slice(" in one]
        if updates and ("tuple(" in root or _size(root) == max(map(_size, updates))):
            whole = sum(map(_size, updates))
            parts = sum(_operand(inside, match["operands"], 1) for one in updates if (match := _NAME.match(one)))
            return max(_size(line) - whole, 0) + parts
    return _size(line)


def _operand(lines: list[str], operands: str, at: int) -> int:
    """Bytes of an operand: from its own shape where the text has it, else from the line that makes it."""
    names = re.findall(r"%?([\w.-]+)(?:,|$)", re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", operands).replace(" ", " "))
    name = names[at].split()[-1].lstrip("%") if len(names) > at else ""
    return next((_size(one) for one in lines if re.match(rf"\s*(?:ROOT )?%?{re.escape(name)} = ", one)), 0)


def _size(line: str) -> int:
    """Bytes of the result of a line, but for what lies in fast memory."""
    found = _NAME.match(line)
    arrays = _ARRAY.findall(found["result"] if found else "")
    return sum(math.ceil(_bits(kind) * math.prod(int(n) for n in sizes.split(",") if n) / 8)
               for kind, sizes, layout in arrays if not _FAST.search(layout))  # fmt: skip


def _bits(kind: str) -> int:
    return 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])

"""Costs of one run of a compiled program other than arithmetic, estimated from its text: bytes that it moves between a
device and its memory (HBM), launches, and turns that wait for the host.

Every array that an instruction outside a fusion leaves in memory is written once and read once, and every argument is
read once; inside a fusion nothing is moved. An update in place moves the updated part. The estimate counts an array
that is read several times once, and an array that stays in a cache in full.
"""

from typing import NamedTuple

from jaxlm.perf.hlo import HloProgram, Instruction, parse_hlo

NO_TRAFFIC_OPS = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all while conditional call partition-id replica-id "
    "optimization-barrier copy-start opt-barrier".split()
)


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
    arguments = sum(one.bytes for one in program.computations[program.entry].values() if one.op == "parameter")
    return ProgramCosts(arguments).plus(_computation_costs(program, program.entry))


def _computation_costs(program: HloProgram, name: str) -> ProgramCosts:
    total, computation = ProgramCosts(), program.computations.get(name, {})
    for one in computation.values():
        if one.op in ("while", "conditional", "call"):
            costs = max((_computation_costs(program, called) for called in one.called), default=ProgramCosts())
            turns = program.trip_count(one) if one.op == "while" else 1
            waits = one.op == "while" and one.known_trip_count is None
            total = total.plus(costs, turns).plus(ProgramCosts(host_turns=turns * waits))
        elif one.op not in NO_TRAFFIC_OPS and not one.op.endswith("-start") and "AllocateBuffer" not in one.line:
            total = total.plus(ProgramCosts(2 * _bytes_written(program, computation, one), launches=1))
    return total


def _bytes_written(program: HloProgram, computation: dict[str, Instruction], one: Instruction) -> int:
    """Bytes of the result, or of the part that is updated in place: the second operand of a dynamic-update-slice."""
    if one.op == "dynamic-update-slice":
        update = computation.get(one.operands[1]) if len(one.operands) > 1 else None
        return update.bytes if update else 0
    started = one if one.op == "fusion" else computation.get("".join(one.operands[:1]))  # of its two halves, the first
    if one.op in ("fusion", "fusion-done") and started is not None and started.called:
        fused = program.computations.get(started.called[0], {})
        updates = [inner for inner in fused.values() if inner.op == "dynamic-update-slice"]
        root = next((inner for inner in fused.values() if inner.line.lstrip().startswith("ROOT ")), one)
        if updates and (root.op == "tuple" or root.bytes == max(update.bytes for update in updates)):
            whole = sum(update.bytes for update in updates)
            return max(one.bytes - whole, 0) + sum(_bytes_written(program, fused, update) for update in updates)
    return one.bytes

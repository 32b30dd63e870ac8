"""What to change where a step does not fit, and which mesh and batch are best where there is a choice."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from jaxlm.axes import AXES, DATA, FSDP, REST, SEQUENCE, TENSOR, full_shape
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.parallel import Meshed, left_whole, make_mesh
from jaxlm.plan.plan import Plan, make_plan
from jaxlm.plan.topology import Target
from jaxlm.train.machine import Machine
from jaxlm.workdir import abstract_params

COMPILED = 3
"""How many of the best by formula are compiled."""
Change = tuple[str, Experiment, dict[str, int], Machine]
"""The options that say it, and what they change."""


def mesh_for(target: Target, asked: dict[str, int]) -> Meshed:
    """The mesh that `--mesh` asks for, of the target's devices or of none. Raises UserError."""
    if target.devices is not None:
        return make_mesh(asked, target.devices)
    return _absent(asked, target.count)


def changes(experiment: Experiment, asked: dict[str, int], target: Target, machine: Machine) -> Iterator[Change]:
    """What saves memory, from what costs least: parameters cut over the devices, smaller micro-batches, remat."""
    kept = {axis: size for axis, size in asked.items() if axis in (TENSOR, SEQUENCE)}
    split = {FSDP: _widest(experiment, target.count // math.prod(kept.values()))} | kept
    split |= {DATA: REST} if math.prod(split.values()) < target.count else {}
    meshes = [asked] if target.count == 1 or split == asked else [split, asked]
    remats: list[Any] = [machine.remat, "dots", "full"] if hasattr(experiment.model, "remat") else [machine.remat]
    for mesh in meshes:
        for remat in dict.fromkeys(remats):
            for factor in (1, 2, 4, 8, 16, 32):
                changed = dataclasses.replace(experiment, accumulate=experiment.accumulate * factor)
                said = [f"--mesh {written(mesh)}"] * (mesh != asked) + [f"--remat {remat}"] * (remat != machine.remat)
                said += [f"--accumulate {changed.accumulate}"] * (factor > 1)
                if said:
                    yield " ".join(said), changed, mesh, dataclasses.replace(machine, remat=remat)


def cure(
    plan: Plan, experiment: Experiment, asked: dict[str, int], target: Target, note: Callable[[str], None],
    machine: Machine, **options: Any,
) -> tuple[str, Plan] | None:  # fmt: skip
    """The first change by which the step of `plan`, which does not fit, does; None where none of them helps.

    Formulas choose, compilers judge: what was wrong about the last program is taken to be wrong about the next, and at
    most `COMPILED` candidates are compiled, a `note` each.
    """
    name, limit, tried = plan.experiment, plan.available or 0, 0
    formula = options | {"compiles": False}
    same = make_plan(name, experiment, target, mesh_for(target, asked), machine=machine, **formula)
    last = plan.memory["total"], same.memory["total"]
    for said, changed, mesh, settled in changes(experiment, asked, target, machine):
        guess = _tried(name, changed, target, mesh, formula | {"machine": settled})
        if guess is None or _expected(guess.memory["total"], *last) > limit:
            continue
        if target.devices is None or not options.get("compiles", True):
            return said, guess
        note(f"compiling with {said}")
        better = make_plan(name, changed, target, mesh_for(target, mesh), machine=settled, **options)
        if better.fits:
            return said, better
        tried, last = tried + 1, (better.memory["total"], guess.memory["total"])
        if tried == COMPILED:
            return None
    return None


def _expected(guess: int, true: int, formula: int) -> float:
    """Bytes, by a formula that said `formula` of a program of `true` bytes (0: of too many): what was wrong of it was a
    factor or a constant, whichever gives hope."""
    return min(guess * true / formula, guess + true - formula) if true else 1.25 * guess


def sweep(
    name: str, experiment: Experiment, target: Target, note: Callable[[str], None], compile_best: int = 0,
    **options: Any,
) -> list[Plan]:  # fmt: skip
    """Meshes and micro-batches from the fastest step to the slowest, those that fit before those that do not.

    All are computed by formula; the best `compile_best` are then compiled, a `note` each, and come first.
    """
    guesses: dict[tuple, tuple[Plan, Experiment, dict[str, int]]] = {}
    for mesh in _meshes(target.count):
        for accumulate in sorted({max(1, int(experiment.accumulate * factor)) for factor in (0, 0.25, 1, 2, 4)}):
            changed = dataclasses.replace(experiment, accumulate=accumulate)
            plan = _tried(name, changed, target, mesh, options | {"compiles": False})
            if plan is not None:
                guesses[tuple(plan.mesh.items()), plan.accumulate] = plan, changed, mesh
    ranked = sorted(guesses.values(), key=lambda one: _rank(one[0]))
    note(f"{len(ranked)} meshes and micro-batches by formula")
    best = []
    for at, (guess, changed, mesh) in enumerate(ranked[:compile_best], 1):
        note(f"compiling {at} of {compile_best}: --mesh {written(guess.mesh)} --accumulate {guess.accumulate}")
        best.append(make_plan(name, changed, target, mesh_for(target, mesh), **options))
    return sorted(best, key=_rank) + [plan for plan, *_ in ranked[compile_best:]]


def _widest(experiment: Experiment, devices: int) -> int:
    """The most devices along `fsdp` that leave no parameter whole; all of them where none do."""
    params, size = abstract_params(experiment.model), devices
    while size > 1:
        if not left_whole(params, _absent({FSDP: size}, size)):
            return size
        size //= 2
    return devices


def _absent(asked: dict[str, int], devices: int) -> AbstractMesh:
    shape = full_shape(asked, devices)
    return AbstractMesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def written(mesh: dict[str, int]) -> str:
    """As `--mesh` takes it."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.items()) or f"{DATA}=-1"


def _rank(plan: Plan) -> tuple[bool, float]:
    return not plan.fits, plan.seconds.most if plan.seconds else 0.0


def _tried(name: str, experiment: Experiment, target: Target, asked: dict[str, int], options: Any) -> Plan | None:
    try:
        return make_plan(name, experiment, target, mesh_for(target, asked), **options)
    except UserError:  # rows that the devices cannot share
        return None


def _meshes(devices: int) -> Iterator[dict[str, int]]:
    """All ways to share devices out to data, fsdp and tensor (to 8: beyond, links are too slow), in powers of 2."""
    tensor = 1
    while tensor <= min(8, devices):
        fsdp = 1
        while fsdp * tensor <= devices:
            if devices % (fsdp * tensor) == 0:
                shape = {DATA: devices // (fsdp * tensor), FSDP: fsdp, TENSOR: tensor}
                yield {axis: size for axis, size in shape.items() if size > 1 or axis == DATA}
            fsdp *= 2
        tensor *= 2

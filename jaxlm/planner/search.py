"""What to change where a step does not fit, and which mesh and batch are best where there is a choice."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from jaxlm.distributed.mesh_axes import AXES, DATA, FSDP, REMAINING, SEQUENCE, TENSOR, resolve_mesh_shape
from jaxlm.distributed.sharding import AnyMesh, make_mesh, unsharded_params
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.models.properties import abstract_params
from jaxlm.planner.plan import RunPlan, make_plan
from jaxlm.planner.topology import Target
from jaxlm.training.run_options import RunOptions

MAX_COMPILED_FIXES = 3
"""How many of the best by formula are compiled."""

CandidateFix = tuple[str, Experiment, dict[str, int], RunOptions]
"""The options that say it, and what they change."""


def make_target_mesh(target: Target, mesh_shape: dict[str, int]) -> AnyMesh:
    """The mesh that `--mesh` asks for, of the target's devices or of none. Raises UserError."""
    if target.devices is not None:
        return make_mesh(mesh_shape, target.devices)
    return _abstract_mesh(mesh_shape, target.num_devices)


def candidate_fixes(
    experiment: Experiment, mesh_shape: dict[str, int], target: Target, run_options: RunOptions
) -> Iterator[CandidateFix]:
    """What saves memory, from what costs least: parameters cut over the devices, smaller micro-batches, remat."""
    kept = {axis: size for axis, size in mesh_shape.items() if axis in (TENSOR, SEQUENCE)}
    split = {FSDP: _max_fsdp_size(experiment, target.num_devices // math.prod(kept.values()))} | kept
    split |= {DATA: REMAINING} if math.prod(split.values()) < target.num_devices else {}
    meshes = [mesh_shape] if target.num_devices == 1 or split == mesh_shape else [split, mesh_shape]
    remats: list[Any] = (
        [run_options.remat, "dots", "full"] if hasattr(experiment.model, "remat") else [run_options.remat]
    )
    for mesh in meshes:
        for remat in dict.fromkeys(remats):
            for factor in (1, 2, 4, 8, 16, 32):
                changed = dataclasses.replace(experiment, grad_accum=experiment.grad_accum * factor)
                said = [f"--mesh {mesh_flag(mesh)}"] * (mesh != mesh_shape) + [f"--remat {remat}"] * (
                    remat != run_options.remat
                )
                said += [f"--grad-accum {changed.grad_accum}"] * (factor > 1)
                if said:
                    yield " ".join(said), changed, mesh, dataclasses.replace(run_options, remat=remat)


def suggest_fix(
    plan: RunPlan, experiment: Experiment, mesh_shape: dict[str, int], target: Target, status: Callable[[str], None],
    run_options: RunOptions, **options: Any,
) -> tuple[str, RunPlan] | None:  # fmt: skip
    """The first change by which the step of `plan`, which does not fit, does; None where none of them helps.

    Formulas choose, compilers judge: what was wrong about the last program is taken to be wrong about the next, and at
    most `COMPILED` candidates are compiled, a `note` each.
    """
    name, limit, tried = plan.experiment, plan.available_memory or 0, 0
    formula = options | {"use_compiler": False}
    same = make_plan(name, experiment, target, make_target_mesh(target, mesh_shape), run_options=run_options, **formula)
    last = plan.memory["total"], same.memory["total"]
    for said, changed, mesh, settled in candidate_fixes(experiment, mesh_shape, target, run_options):
        guess = _try_plan(name, changed, target, mesh, formula | {"run_options": settled})
        if guess is None or _expected_bytes(guess.memory["total"], *last) > limit:
            continue
        if target.devices is None or not options.get("use_compiler", True):
            return said, guess
        status(f"compiling with {said}")
        better = make_plan(name, changed, target, make_target_mesh(target, mesh), run_options=settled, **options)
        if better.fits:
            return said, better
        tried, last = tried + 1, (better.memory["total"], guess.memory["total"])
        if tried == MAX_COMPILED_FIXES:
            return None
    return None


def _expected_bytes(analytic_bytes: int, last_compiled_bytes: int, last_analytic_bytes: int) -> float:
    """Bytes, by a formula that said `formula` of a program of `true` bytes (0: of too many): what was wrong of it was a
    factor or a constant, whichever gives hope."""
    return (
        min(
            analytic_bytes * last_compiled_bytes / last_analytic_bytes,
            analytic_bytes + last_compiled_bytes - last_analytic_bytes,
        )
        if last_compiled_bytes
        else 1.25 * analytic_bytes
    )


def sweep(
    name: str, experiment: Experiment, target: Target, status: Callable[[str], None], compile_best: int = 0,
    **options: Any,
) -> list[RunPlan]:  # fmt: skip
    """Meshes and micro-batches from the fastest step to the slowest, those that fit before those that do not.

    All are computed by formula; the best `compile_best` are then compiled, a `note` each, and come first.
    """
    guesses: dict[tuple, tuple[RunPlan, Experiment, dict[str, int]]] = {}
    for mesh in _iter_mesh_shapes(target.num_devices):
        for accumulate in sorted({max(1, int(experiment.grad_accum * factor)) for factor in (0, 0.25, 1, 2, 4)}):
            changed = dataclasses.replace(experiment, grad_accum=accumulate)
            plan = _try_plan(name, changed, target, mesh, options | {"use_compiler": False})
            if plan is not None:
                guesses[tuple(plan.mesh.items()), plan.accumulate] = plan, changed, mesh
    ranked = sorted(guesses.values(), key=lambda one: _rank_key(one[0]))
    status(f"{len(ranked)} meshes and micro-batches by formula")
    best = []
    for at, (guess, changed, mesh) in enumerate(ranked[:compile_best], 1):
        status(f"compiling {at} of {compile_best}: --mesh {mesh_flag(guess.mesh)} --grad-accum {guess.accumulate}")
        best.append(make_plan(name, changed, target, make_target_mesh(target, mesh), **options))
    return sorted(best, key=_rank_key) + [plan for plan, *_ in ranked[compile_best:]]


def _max_fsdp_size(experiment: Experiment, devices: int) -> int:
    """The most devices along `fsdp` that leave no parameter whole; all of them where none do."""
    params, size = abstract_params(experiment.model), devices
    while size > 1:
        if not unsharded_params(params, _abstract_mesh({FSDP: size}, size)):
            return size
        size //= 2
    return devices


def _abstract_mesh(mesh_shape: dict[str, int], devices: int) -> AbstractMesh:
    shape = resolve_mesh_shape(mesh_shape, devices)
    return AbstractMesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_flag(mesh: dict[str, int]) -> str:
    """As `--mesh` takes it."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.items()) or f"{DATA}=-1"


def _rank_key(plan: RunPlan) -> tuple[bool, float]:
    return not plan.fits, plan.seconds.upper_bound if plan.seconds else 0.0


def _try_plan(
    name: str, experiment: Experiment, target: Target, mesh_shape: dict[str, int], options: Any
) -> RunPlan | None:
    try:
        return make_plan(name, experiment, target, make_target_mesh(target, mesh_shape), **options)
    except UserError:  # rows that the devices cannot share
        return None


def _iter_mesh_shapes(devices: int) -> Iterator[dict[str, int]]:
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

"""Search over meshes, micro-batches and rematerialization: fixes for a step that does not fit, and a ranking."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxlm.distributed.mesh_axes import DATA, FSDP, REMAINING, SEQUENCE, TENSOR
from jaxlm.distributed.sharding import unsharded_params
from jaxlm.errors import UserError
from jaxlm.models.properties import abstract_params
from jaxlm.planner.plan import PlanRequest, RunPlan, abstract_mesh, make_plan

MAX_COMPILED_FIXES = 3
"""Compiled candidates of `suggest_fix`."""

MAX_VARIED = 6
"""Meshes and micro-batches of a sweep for which other ways to run the layers are estimated too."""

MAX_UNROLLED = 1000
"""More layers than any model has."""

MAX_TENSOR_SIZE = 8
"""Devices along `tensor` in a sweep: beyond a node, links are too slow."""


def candidate_fixes(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """Changes that save memory, the cheapest first (sharded parameters, remat, smaller micro-batches): the options that
    make the change, and the request with it."""
    experiment, run_options, num_devices = request.experiment, request.run_options, request.target.num_devices
    kept = {axis: size for axis, size in request.mesh_shape.items() if axis in (TENSOR, SEQUENCE)}
    params, fsdp = abstract_params(experiment.model), num_devices // math.prod(kept.values())
    halved = (fsdp >> shift for shift in range(fsdp.bit_length() - 1))
    # The largest that shards every parameter, or all.
    fsdp = next((n for n in halved if not unsharded_params(params, abstract_mesh({FSDP: n}, n))), fsdp)
    sharded = {FSDP: fsdp} | kept
    sharded |= {DATA: REMAINING} if math.prod(sharded.values()) < num_devices else {}
    meshes: list[Mapping[str, int]] = [sharded] if num_devices > 1 and sharded != request.mesh_shape else []
    meshes.append(request.mesh_shape)
    remats: list[Any] = [run_options.remat, *(["dots", "full"] if hasattr(experiment.model, "remat") else [])]
    for mesh, remat, factor in itertools.product(meshes, dict.fromkeys(remats), (1, 2, 4, 8, 16, 32)):
        grad_accum = experiment.grad_accum * factor
        options = [f"--mesh {mesh_flag(mesh)}"] if mesh != request.mesh_shape else []
        options += [f"--remat {remat}"] if remat != run_options.remat else []
        options += [f"--grad-accum {grad_accum}"] if factor > 1 else []
        if options:
            varied = dataclasses.replace(run_options, remat=remat)
            yield " ".join(options), _with_accumulation(request, grad_accum, mesh_shape=mesh, run_options=varied)


def suggest_fix(plan: RunPlan, request: PlanRequest, status: Callable[[str], None]) -> tuple[str, RunPlan] | None:
    """The options and the plan of the first change by which `plan`, which does not fit, fits; None if there is none.

    The analytic estimate, corrected by its error on the last compiled program, selects the candidates to compile.
    """
    limit, num_compiled = plan.available_memory or 0, 0
    last_plan, last_estimate = plan, _estimate(request) or plan
    for options, changed in candidate_fixes(request):
        estimate = _estimate(changed)
        if estimate is None or _expected_bytes(estimate, last_plan, last_estimate) > limit:
            continue
        if not request.compiles:
            return options, estimate
        status(f"compiling with {options}")
        last_plan, last_estimate = make_plan(changed), estimate
        if last_plan.fits:
            return options, last_plan
        num_compiled += 1
        if num_compiled == MAX_COMPILED_FIXES:
            break
    return None


def _estimate(request: PlanRequest) -> RunPlan | None:
    """The plan without compiling; None if the devices cannot share the rows."""
    with contextlib.suppress(UserError):
        return make_plan(dataclasses.replace(request, use_compiler=False))
    return None


def _expected_bytes(estimate: RunPlan, last_plan: RunPlan, last_estimate: RunPlan) -> float:
    """The estimated bytes corrected by the last error, as a factor or an offset, the more hopeful of the two."""
    size, compiled, estimated = (plan.memory["total"] for plan in (estimate, last_plan, last_estimate))
    if not compiled:  # the compiler gave no size of a program that did not fit
        return 1.25 * size
    return min(size * compiled / estimated, size + compiled - estimated)


Entry = tuple[RunPlan, PlanRequest]


def sweep(request: PlanRequest, status: Callable[[str], None], compile_best: int = 0) -> list[RunPlan]:
    """Plans of all meshes and micro-batches, the best also with other ways to run the layers: first `compile_best` of
    them compiled, with the settings of the request on their best mesh, then the other estimates; in each part first
    those that fit, from the fastest step to the slowest."""
    grad_accum = request.experiment.grad_accum
    ranked = _ranked(
        _with_accumulation(request, max(1, int(grad_accum * factor)), mesh_shape=mesh)
        for mesh in _iter_mesh_shapes(request.target.num_devices)
        for factor in (0, 0.25, 1, 2, 4)
    )
    best = [candidate for _, candidate in ranked[:MAX_VARIED]]
    ranked = _ranked([candidate for _, candidate in ranked] + [v for c in best for v in _layer_variants(c)])
    status(f"{len(ranked)} meshes, micro-batches and ways to run the layers, estimated analytically")
    given = grad_accum, request.run_options
    as_given = [entry for entry in ranked if (entry[1].experiment.grad_accum, entry[1].run_options) == given]
    chosen = ranked[:compile_best]
    chosen += [entry for entry in as_given[:1] if compile_best and entry not in chosen]
    compiled = []
    for number, (plan, candidate) in enumerate(chosen, 1):
        status(f"compiling {number} of {len(chosen)}: {plan_options(plan)}")
        compiled.append(make_plan(candidate))
    return sorted(compiled, key=_rank_key) + [entry[0] for entry in ranked if entry not in chosen]


def plan_options(plan: RunPlan) -> str:
    """The options that give a plan."""
    return " ".join([f"--mesh {mesh_flag(plan.mesh)} --grad-accum {plan.accumulate}", *plan.memory_options])


def _ranked(requests: Iterable[PlanRequest]) -> list[Entry]:
    """The estimates, the best first; of requests with the same programs the first."""
    entries: dict[Any, Entry] = {}
    for candidate in requests:
        if (plan := _estimate(candidate)) is not None:
            entries.setdefault((tuple(plan.mesh.items()), plan.accumulate, plan.layers), (plan, candidate))
    return sorted(entries.values(), key=lambda entry: _rank_key(entry[0]))


def _with_accumulation(request: PlanRequest, grad_accum: int, **fields: Any) -> PlanRequest:
    experiment = dataclasses.replace(request.experiment, grad_accum=grad_accum)
    return dataclasses.replace(request, experiment=experiment, **fields)


def _layer_variants(request: PlanRequest) -> Iterator[PlanRequest]:
    """The request with every recomputation, scanned and unrolled."""
    model, options = request.experiment.model, request.run_options
    if not hasattr(model, "remat"):
        return
    limits: list[dict[str, int]] = [{"unrolled_depth": n} for n in (0, MAX_UNROLLED)] if model.scan else [{}]
    remats: tuple[Any, ...] = ("none", "dots", "full")
    for remat, limit in itertools.product(remats, limits):
        varied = dataclasses.replace(options, remat=remat, choices={**options.choices, **limit})
        yield dataclasses.replace(request, run_options=varied)


def mesh_flag(mesh: Mapping[str, int]) -> str:
    """The value of `--mesh`."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.items()) or f"{DATA}=-1"


def _rank_key(plan: RunPlan) -> tuple[bool, float]:
    return not plan.fits, plan.seconds.upper_bound if plan.seconds else 0.0


def _iter_mesh_shapes(num_devices: int) -> Iterator[dict[str, int]]:
    """All meshes of data, fsdp and tensor, of powers of 2 along fsdp and tensor."""
    powers = [2**exponent for exponent in range(num_devices.bit_length())]
    for tensor, fsdp in itertools.product(powers, powers):
        if tensor <= MAX_TENSOR_SIZE and num_devices % (fsdp * tensor) == 0:
            shape = {DATA: num_devices // (fsdp * tensor), FSDP: fsdp, TENSOR: tensor}
            yield {axis: size for axis, size in shape.items() if size > 1 or axis == DATA}

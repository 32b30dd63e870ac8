"""One plan: the real train step of an experiment, compiled for devices that need not be present, and its costs."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from jaxlm.config.serialization import to_json
from jaxlm.distributed import sharding
from jaxlm.distributed.mesh_axes import AXES, resolve_mesh_shape
from jaxlm.distributed.placement import batch_shardings
from jaxlm.distributed.platforms import tracing_for
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.models.properties import model_dtype
from jaxlm.perf.collectives import Collective, bytes_by_kind, find_collectives
from jaxlm.perf.flops import (
    StepFlops,
    adapt_batching,
    batch_summary,
    count_step,
    jaxpr_flops,
    peak_flops,
    shape_structs,
    synthetic_batch,
    unknown_trip_count,
)
from jaxlm.planner import estimates
from jaxlm.planner.estimates import StackMode, StepTime, run_cost, step_seconds
from jaxlm.planner.hbm_traffic import ProgramCosts, program_costs
from jaxlm.planner.topology import Target
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.setup import check_batch_divisible
from jaxlm.training.step import CompiledStep, build_compiled_step, make_init_fn
from jaxlm.types import Batch


@dataclass(frozen=True)
class PlanRequest:
    """The inputs of a plan; `price`: of a chip and hour; `use_compiler`: if something here compiles for the target."""

    name: str
    experiment: Experiment
    target: Target
    mesh_shape: Mapping[str, int] = field(default_factory=dict)
    price: float | None = None
    run_options: RunOptions = DEFAULT_RUN_OPTIONS
    use_compiler: bool = True

    @property
    def compiles(self) -> bool:
        return self.use_compiler and self.target.devices is not None

    def make_mesh(self) -> sharding.AnyMesh:
        """A mesh of the target's devices; an abstract mesh if nothing here can compile for them."""
        if self.target.devices is not None:
            return sharding.make_mesh(self.mesh_shape, self.target.devices)
        return abstract_mesh(self.mesh_shape, self.target.num_devices)


@dataclass(frozen=True)
class RunPlan:
    """Costs of a run. Bytes are of one device, FLOPs and tokens of all. `seconds` is None for an unknown chip."""

    experiment: str
    topology: str
    devices: int
    chips: int
    chip: str
    mesh: dict[str, int]
    changed_options: list[str]
    compiler: str
    compile_seconds: float | None
    batch: str
    tokens: int
    accumulate: int
    layers: str
    memory_options: list[str]
    memory: dict[str, int]
    available_memory: int | None
    fits: bool | None
    model_flops: int
    causal_halved_flops: int
    step_flops: int
    bytes_moved: int | None
    launches: int | None
    host_turns: int | None
    collectives: dict[str, dict[str, int]]
    seconds: StepTime | None
    peak_flops: float | None
    steps: int
    run_costs: list[dict[str, Any]]
    unsharded_params: list[str]

    def mfu(self, seconds: float) -> float | None:
        """Model-FLOPs utilization of a step of that time."""
        return None if self.peak_flops is None else self.model_flops / seconds / self.peak_flops

    def to_json(self) -> dict[str, Any]:
        """The fields as one object; `seconds` with its bounds, and with the figures that follow from them."""
        fields = dataclasses.asdict(self)
        if self.seconds is not None:
            lower, upper = self.seconds.lower_bound, self.seconds.upper_bound
            fields["seconds"] |= {"lower_bound": lower, "upper_bound": upper}
            fields["mfu"] = {"lower_bound": self.mfu(upper), "upper_bound": self.mfu(lower)}
            fields["tokens_per_second"] = {"lower_bound": self.tokens / upper, "upper_bound": self.tokens / lower}
        return fields


@dataclass(frozen=True)
class Workload:
    """The part of a plan that does not depend on the mesh: FLOPs of the model and of the step (with recomputation), the
    trip count of the longest loop of unknown length, and the bytes of activations of a whole batch (0: not requested).
    """

    experiment: Experiment
    batch: Batch
    new_state: Any
    flops: StepFlops
    step_flops: int
    unknown_trip_count: int
    activation_bytes: int


class _StepCosts(NamedTuple):
    memory: dict[str, int]
    collectives: list[Collective]
    program: ProgramCosts | None
    compile_seconds: float | None


def make_plan(request: PlanRequest) -> RunPlan:
    """Count a step, compile it if something here can, and derive its costs."""
    with tracing_for(request.target.chip, request.run_options.choices):
        mesh = request.make_mesh()
        experiment, changed_options = adapt_batching(request.experiment, sharding.num_batch_shards(mesh))
        experiment = dataclasses.replace(experiment, model=request.run_options.with_remat(experiment.model))
        workload = count_workload(experiment) if request.compiles else _cached_workload(experiment, request)
        rows = len(jax.tree.leaves(workload.batch)[0])
        check_batch_divisible(rows, experiment.grad_accum, sharding.num_batch_shards(mesh))
        step = build_compiled_step(experiment, workload.new_state, mesh, request.run_options)
        batch = sharding.with_shardings(workload.batch, batch_shardings(workload.batch, mesh))
        positions = workload.flops.positions / sharding.num_token_shards(mesh)
        modes = estimates.stack_modes(experiment.model, positions / experiment.grad_accum)
        parts = workload, step, batch, mesh
        costs = _compiled_costs(*parts) if request.compiles else _analytic_costs(*parts, positions, modes)
        fields = {"changed_options": changed_options, "memory_options": request.run_options.memory_options()}
        fields["unsharded_params"] = sharding.unsharded_params(step.abstract_state.params, mesh)
        texts = [f"{'scanned' if scan else 'unrolled'}, remat {remat or 'none'}" for _, scan, remat in modes]
        return _assemble_plan(workload, request, mesh, costs, layers="; ".join(dict.fromkeys(texts)), **fields)


def abstract_mesh(mesh_shape: Mapping[str, int], num_devices: int) -> AbstractMesh:
    """A mesh without devices, for shapes and shardings."""
    shape = resolve_mesh_shape(mesh_shape, num_devices)
    return AbstractMesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_has_steps(experiment: Experiment) -> None:
    """Raises UserError for a model that is not trained by steps, and for parts that do not fit together."""
    if hasattr(experiment.model, "fit"):
        raise UserError("this model is fitted in closed form, in one pass over the data: no step to plan or time")
    experiment.check_parts()


def count_workload(experiment: Experiment, with_activations: bool = False) -> Workload:
    """Trace the step for one device. Raises UserError if the model is not trained by steps."""
    check_has_steps(experiment)
    batch, new_state = shape_structs(synthetic_batch(experiment)), make_init_fn(experiment)
    step = build_compiled_step(experiment, new_state, None)
    jaxpr = jax.make_jaxpr(step.train_step)(step.abstract_state, batch).jaxpr
    carried_batch, params = dataclasses.replace(batch, state=step.abstract_state.carry), step.abstract_state.params
    residuals = estimates.activation_bytes(experiment, params, carried_batch) if with_activations else 0
    flops = count_step(experiment, carried_batch)
    return Workload(experiment, batch, new_state, flops, jaxpr_flops(jaxpr), unknown_trip_count(jaxpr), residuals)


def _cached_workload(experiment: Experiment, request: PlanRequest) -> Workload:
    """The workload for analytic estimates, which does not depend on micro-batches: counted once for all meshes."""
    whole = dataclasses.replace(experiment, grad_accum=1)
    chip = request.target.chip
    key = json.dumps([to_json(whole), chip and chip.name, dict(request.run_options.choices)])
    if key not in _WORKLOADS:
        _WORKLOADS[key] = count_workload(whole, with_activations=True)
    return dataclasses.replace(_WORKLOADS[key], experiment=experiment)


_WORKLOADS: dict[str, Workload] = {}


def _compiled_costs(workload: Workload, step: CompiledStep, batch: Batch, mesh: sharding.AnyMesh) -> _StepCosts:
    sizes = estimates.state_memory(step.abstract_state, batch)
    compiled, total, seconds = estimates.compile_program(step.train_step, step.abstract_state, batch)
    if compiled is None:
        return _StepCosts(sizes | {"total": total}, [], None, seconds)
    text = compiled.as_text()
    sizes |= {"temporaries": compiled.memory_analysis().temp_size_in_bytes, "total": total}
    # The loss loops over the tokens of one device; the trip count is that of the tokens of all devices.
    rounds = math.ceil(workload.unknown_trip_count / sharding.num_token_shards(mesh))
    return _StepCosts(sizes, find_collectives(text, rounds), program_costs(text, rounds), seconds)


def _analytic_costs(
    workload: Workload, step: CompiledStep, batch: Batch, mesh: sharding.AnyMesh, positions: float,
    modes: list[StackMode],
) -> _StepCosts:  # fmt: skip
    experiment, state = workload.experiment, step.abstract_state
    activations = workload.activation_bytes // (experiment.grad_accum * sharding.num_token_shards(mesh))
    if modes and not any(scan or remat for _, scan, remat in modes):  # XLA keeps less than differentiation asks for
        activations = int(sum(kept for kept, *_ in modes))
    sizes = estimates.analytic_memory(experiment.model, state, batch, activations)
    collectives = estimates.analytic_collectives(experiment, state.params, batch, mesh)
    program = ProgramCosts(estimates.analytic_bytes_moved(experiment, sizes, positions, modes))
    return _StepCosts(sizes, collectives, program, None)


def _assemble_plan(
    workload: Workload, request: PlanRequest, mesh: sharding.AnyMesh, costs: _StepCosts, **other_fields: Any
) -> RunPlan:
    experiment, target, chip = workload.experiment, request.target, request.target.chip
    limit, is_compiled = estimates.available_memory(chip), costs.compile_seconds is not None
    seconds = None
    if chip is not None and costs.program is not None:
        # the outermost axis of the mesh crosses slices
        slice_ids = [device * target.num_slices // mesh.size for device in range(mesh.size)]
        dtype, flops = model_dtype(experiment.model), workload.step_flops / mesh.size
        seconds = step_seconds(chip, dtype, flops, costs.program.bytes_moved, costs.collectives, slice_ids)
        seconds = dataclasses.replace(seconds, launches=costs.program.launches * estimates.LAUNCH_SECONDS)
    bounds = (seconds.lower_bound, seconds.upper_bound) if seconds else ()
    num_chips = max(1, mesh.size // (chip.cores if chip else 1))
    return RunPlan(
        experiment=request.name,
        topology=target.name,
        devices=mesh.size,
        chips=num_chips,
        chip=chip.name if chip else target.compiler,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        compiler=target.compiler if is_compiled else f"analytic ({target.compiler})",
        compile_seconds=costs.compile_seconds,
        batch=batch_summary(workload.batch),
        tokens=workload.flops.positions,
        accumulate=experiment.grad_accum,
        memory=costs.memory,
        available_memory=limit,
        fits=None if limit is None else 0 < costs.memory["total"] <= limit,
        model_flops=workload.flops.full,
        causal_halved_flops=workload.flops.causal_halved,
        step_flops=workload.step_flops,
        bytes_moved=costs.program and costs.program.bytes_moved,
        launches=costs.program.launches if costs.program and is_compiled else None,
        host_turns=costs.program.host_turns if costs.program and is_compiled else None,
        collectives=bytes_by_kind(costs.collectives),
        seconds=seconds,
        peak_flops=peak_flops(experiment.model, chip, mesh.size),
        steps=experiment.steps,
        run_costs=[run_cost(bound, experiment.steps, num_chips, request.price) for bound in bounds],
        **other_fields,
    )

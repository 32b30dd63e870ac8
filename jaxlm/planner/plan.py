"""One plan: the real train step of an experiment, compiled for devices that need not be there, and what follows."""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm import config
from jaxlm.distributed.placement import batch_shardings
from jaxlm.distributed.sharding import AnyMesh, num_batch_shards, unsharded_params, with_shardings
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.perf.collectives import Collective, bytes_by_kind, find_collectives
from jaxlm.perf.dummy_batch import adapt_batching, batch_summary, num_positions, shape_structs, synthetic_batch
from jaxlm.perf.flops import jaxpr_flops, model_flops, unknown_trip_count
from jaxlm.planner import memory
from jaxlm.planner.analytic import analytic_bytes_moved, analytic_collectives
from jaxlm.planner.hbm_traffic import bytes_moved
from jaxlm.planner.roofline import StepTime, run_cost, step_seconds
from jaxlm.planner.topology import Target
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.setup import check_batch_divisible
from jaxlm.training.step import CompiledStep, build_compiled_step, make_init_fn
from jaxlm.types import Batch


@dataclass(frozen=True)
class RunPlan:
    """What was found. Bytes are of one device, FLOPs and tokens of all. `seconds` is None on chips without a table."""

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
    memory: dict[str, int]
    available_memory: int | None
    fits: bool | None
    model_flops: int
    causal_halved_flops: int
    step_flops: int
    bytes_moved: int | None
    collectives: dict[str, dict[str, int]]
    seconds: StepTime | None
    peak_flops: float | None
    steps: int
    run_costs: list[dict[str, Any]]
    unsharded_params: list[str]

    def mfu(self, seconds: float) -> float | None:
        """FLOPs of the model over those of the peak."""
        return self.model_flops / seconds / self.peak_flops if self.peak_flops else None

    def to_json(self) -> dict[str, Any]:
        """As one object; `seconds` with the bounds, and the figures that follow from them."""
        found = dataclasses.asdict(self)
        if self.seconds is not None:
            quick, slow = self.seconds.lower_bound, self.seconds.upper_bound
            found["seconds"] |= {"lower_bound": quick, "upper_bound": slow}
            found["mfu"] = {"lower_bound": self.mfu(slow), "upper_bound": self.mfu(quick)}
            found["tokens_per_second"] = {"lower_bound": self.tokens / slow, "upper_bound": self.tokens / quick}
        return found


@dataclass(frozen=True)
class Workload:
    """What does not depend on the mesh: shapes, and FLOPs of a step as it is differentiated, recomputation included.

    `kept`: bytes of the activations of a whole batch, where they were asked for.
    """

    experiment: Experiment
    batch: Batch
    new_state: Any
    model_flops: int
    step_flops: int
    unknown_trip_count: int
    activation_bytes: int


def check_has_steps(experiment: Experiment) -> None:
    """Raises UserError for a model that is not trained by steps."""
    if hasattr(experiment.model, "fit"):
        raise UserError(
            "this model is fitted in closed form, in one look at the data: there is no step to plan or time"
        )


def count_workload(experiment: Experiment, with_activations: bool = False) -> Workload:
    """Trace the step for one device. Raises UserError where a model is not trained by steps."""
    check_has_steps(experiment)
    batch, new = shape_structs(synthetic_batch(experiment)), make_init_fn(experiment)
    whole = build_compiled_step(experiment, new, None)
    carried = dataclasses.replace(batch, state=whole.abstract_state.carry)
    jaxpr = jax.make_jaxpr(whole.train_step)(whole.abstract_state, batch).jaxpr
    params = whole.abstract_state.params
    forward = model_flops(experiment.model, experiment.objective, params, carried)
    kept = memory.activation_bytes(experiment, params, carried) if with_activations else 0
    return Workload(experiment, batch, new, forward, jaxpr_flops(jaxpr), unknown_trip_count(jaxpr), kept)


def _cached_workload(experiment: Experiment) -> Workload:
    """`count` for formulas, to which micro-batches make no difference: once for all meshes that are tried."""
    whole = dataclasses.replace(experiment, grad_accum=1)
    key = json.dumps(config.to_json(whole))
    if key not in _WORKLOADS:
        _WORKLOADS[key] = count_workload(whole, with_activations=True)
    return dataclasses.replace(_WORKLOADS[key], experiment=experiment)


_WORKLOADS: dict[str, Workload] = {}


def make_plan(
    name: str, experiment: Experiment, target: Target, mesh: AnyMesh, price: float | None = None,
    run_options: RunOptions = DEFAULT_RUN_OPTIONS, use_compiler: bool = True,
) -> RunPlan:  # fmt: skip
    """Count, compile where something can, and draw the conclusions."""
    experiment, changed = adapt_batching(experiment, num_batch_shards(mesh))
    experiment = dataclasses.replace(experiment, model=run_options.with_remat(experiment.model))
    use_compiler = use_compiler and target.devices is not None
    counted = count_workload(experiment) if use_compiler else _cached_workload(experiment)
    rows = len(jax.tree.leaves(counted.batch)[0])
    check_batch_divisible(rows, experiment.grad_accum, num_batch_shards(mesh))
    made = build_compiled_step(experiment, counted.new_state, mesh, run_options)
    batch = with_shardings(counted.batch, batch_shardings(counted.batch, mesh))
    found = (_compiled_costs if use_compiler else _analytic_costs)(counted, made, batch, mesh)
    return _assemble_plan(name, counted, target, mesh, made, found, changed, price)


@dataclass(frozen=True)
class _StepCosts:
    memory: dict[str, int]
    collectives: list[Collective]
    bytes_moved: int | None
    compile_seconds: float | None


def _compiled_costs(workload: Workload, step_program: CompiledStep, batch: Batch, mesh: AnyMesh) -> _StepCosts:
    began = time.perf_counter()
    step, wanted = memory.compile_or_bytes_needed(step_program.train_step.lower(step_program.abstract_state, batch))
    seconds = time.perf_counter() - began
    if step is None:
        parts = memory.state_memory(step_program.abstract_state, batch) | {"total": wanted}
        return _StepCosts(parts, [], None, seconds)
    text = step.as_text()
    parts = memory.compiled_memory(workload.experiment, step_program.abstract_state, batch, step.memory_analysis())
    # The loss walks over a group of tokens a device; counted was one group of all of them.
    rounds = math.ceil(workload.unknown_trip_count / (num_batch_shards(mesh) * mesh.shape["sequence"]))
    return _StepCosts(parts, find_collectives(text, rounds), bytes_moved(text, rounds), seconds)


def _analytic_costs(workload: Workload, step_program: CompiledStep, batch: Batch, mesh: AnyMesh) -> _StepCosts:
    parts = memory.analytic_memory(
        workload.experiment, step_program.abstract_state, batch, workload.activation_bytes, mesh
    )
    sent = analytic_collectives(workload.experiment, step_program.abstract_state.params, batch, mesh)
    return _StepCosts(parts, sent, analytic_bytes_moved(workload.experiment, parts), None)


def _assemble_plan(
    name: str, workload: Workload, target: Target, mesh: AnyMesh, step_program: CompiledStep, costs: _StepCosts,
    changed_options: list[str],
    price: float | None,
) -> RunPlan:  # fmt: skip
    experiment, chip, limit = workload.experiment, target.chip, memory.available_memory(target.chip)
    seconds, dtype = None, getattr(experiment.model, "dtype", "float32")
    fits = None if limit is None else 0 < costs.memory["total"] <= limit
    if chip is not None and costs.bytes_moved is not None:
        slices = [
            place * target.num_slices // mesh.size for place in range(mesh.size)
        ]  # the outermost axis goes across
        work = workload.step_flops / mesh.size, costs.bytes_moved
        seconds = step_seconds(chip, dtype, *work, costs.collectives, mesh.size, slices)
    bounds = (seconds.lower_bound, seconds.upper_bound) if seconds else ()
    chips = max(1, mesh.size // (chip.cores if chip else 1))
    return RunPlan(
        experiment=name,
        topology=target.name,
        devices=mesh.size,
        chips=chips,
        chip=chip.name if chip else target.compiler,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        changed_options=changed_options,
        compiler=target.compiler if costs.compile_seconds is not None else f"formula ({target.compiler})",
        compile_seconds=costs.compile_seconds,
        batch=batch_summary(workload.batch),
        tokens=num_positions(workload.batch),
        accumulate=experiment.grad_accum,
        memory=costs.memory,
        available_memory=limit,
        fits=fits,
        model_flops=workload.model_flops,
        causal_halved_flops=workload.model_flops - causal_attention_flops(experiment.model, workload.batch) // 2,
        step_flops=workload.step_flops,
        bytes_moved=costs.bytes_moved,
        collectives=bytes_by_kind(costs.collectives),
        seconds=seconds,
        peak_flops=chip.peak_flops(dtype) * mesh.size if chip else None,
        steps=experiment.steps,
        run_costs=[run_cost(one, experiment.steps, chips, price) for one in bounds],
        unsharded_params=unsharded_params(step_program.abstract_state.params, mesh),
    )


def causal_attention_flops(model: Any, batch: Batch) -> int:
    """Of the products of queries, keys and values of causal attention in one update: half of them meet the mask."""
    layers = model.layers if isinstance(model, Decoder) else 0
    layers = model.decoder_layers if isinstance(model, EncoderDecoder) else layers
    if not layers:
        return 0
    rows, length = batch.target_BT.shape
    width = (getattr(model, "head_dim", None) or model.width // model.heads) * model.heads
    return 3 * layers * 4 * rows * length * length * width

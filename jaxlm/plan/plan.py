"""One plan: the real train step of an experiment, compiled for devices that need not be there, and what follows."""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm import config
from jaxlm.collectives import Collective, collectives, traffic
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.flops import flops_of, model_flops, open_loops
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.parallel import Meshed, batch_shards, left_whole, with_sharding
from jaxlm.placing import batch_layout
from jaxlm.plan import memory
from jaxlm.plan.cost import Seconds, step_seconds, whole_run
from jaxlm.plan.formula import formula_collectives, formula_moved
from jaxlm.plan.moved import bytes_moved
from jaxlm.plan.shapes import batch_of, described, fitted, positions, shapes_of
from jaxlm.plan.topology import Target
from jaxlm.train.machine import PLAIN, Machine
from jaxlm.train.prepare import check_rows
from jaxlm.train.program import Program, fresh_state, program
from jaxlm.types import Batch


@dataclass(frozen=True)
class Plan:
    """What was found. Bytes are of one device, FLOPs and tokens of all. `seconds` is None on chips without a table."""

    experiment: str
    topology: str
    devices: int
    chips: int
    chip: str
    mesh: dict[str, int]
    changed: list[str]
    compiler: str
    compile_seconds: float | None
    batch: str
    tokens: int
    accumulate: int
    memory: dict[str, int]
    available: int | None
    fits: bool | None
    model_flops: int
    halved_flops: int
    step_flops: int
    bytes_moved: int | None
    collectives: dict[str, dict[str, int]]
    seconds: Seconds | None
    peak_flops: float | None
    steps: int
    run: list[dict[str, Any]]
    left_whole: list[str]

    def mfu(self, seconds: float) -> float | None:
        """FLOPs of the model over those of the peak."""
        return self.model_flops / seconds / self.peak_flops if self.peak_flops else None

    def to_json(self) -> dict[str, Any]:
        """As one object; `seconds` with the bounds, and the figures that follow from them."""
        found = dataclasses.asdict(self)
        if self.seconds is not None:
            quick, slow = self.seconds.least, self.seconds.most
            found["seconds"] |= {"least": quick, "most": slow}
            found["mfu"] = {"least": self.mfu(slow), "most": self.mfu(quick)}
            found["tokens_per_second"] = {"least": self.tokens / slow, "most": self.tokens / quick}
        return found


@dataclass(frozen=True)
class Counted:
    """What does not depend on the mesh: shapes, and FLOPs of a step as it is differentiated, recomputation included.

    `kept`: bytes of the activations of a whole batch, where they were asked for.
    """

    experiment: Experiment
    batch: Batch
    new: Any
    model: int
    step: int
    open_loops: int
    kept: int


def check_steps(experiment: Experiment) -> None:
    """Raises UserError for a model that is not trained by steps."""
    if hasattr(experiment.model, "fit"):
        raise UserError(
            "this model is fitted in closed form, in one look at the data: there is no step to plan or time"
        )


def count(experiment: Experiment, formula: bool = False) -> Counted:
    """Trace the step for one device. Raises UserError where a model is not trained by steps."""
    check_steps(experiment)
    batch, new = shapes_of(batch_of(experiment)), fresh_state(experiment)
    whole = program(experiment, new, None)
    carried = dataclasses.replace(batch, state=whole.abstract_state.carry)
    jaxpr = jax.make_jaxpr(whole.step)(whole.abstract_state, batch).jaxpr
    params = whole.abstract_state.params
    forward = model_flops(experiment.model, experiment.objective, params, carried)
    kept = memory.activations(experiment, params, carried) if formula else 0
    return Counted(experiment, batch, new, forward, flops_of(jaxpr), open_loops(jaxpr), kept)


def _known(experiment: Experiment) -> Counted:
    """`count` for formulas, to which micro-batches make no difference: once for all meshes that are tried."""
    whole = dataclasses.replace(experiment, accumulate=1)
    key = json.dumps(config.to_json(whole))
    if key not in _COUNTED:
        _COUNTED[key] = count(whole, formula=True)
    return dataclasses.replace(_COUNTED[key], experiment=experiment)


_COUNTED: dict[str, Counted] = {}


def make_plan(
    name: str, experiment: Experiment, target: Target, mesh: Meshed, price: float | None = None,
    machine: Machine = PLAIN, compiles: bool = True,
) -> Plan:  # fmt: skip
    """Count, compile where something can, and draw the conclusions."""
    experiment, changed = fitted(experiment, batch_shards(mesh))
    experiment = dataclasses.replace(experiment, model=machine.placed(experiment.model))
    compiles = compiles and target.devices is not None
    counted = count(experiment) if compiles else _known(experiment)
    rows = len(jax.tree.leaves(counted.batch)[0])
    check_rows(rows, experiment.accumulate, batch_shards(mesh))
    made = program(experiment, counted.new, mesh, machine)
    batch = with_sharding(counted.batch, batch_layout(counted.batch, mesh))
    found = (_compiled if compiles else _by_formula)(counted, made, batch, mesh)
    return _concluded(name, counted, target, mesh, made, found, changed, price)


@dataclass(frozen=True)
class _Found:
    memory: dict[str, int]
    collectives: list[Collective]
    moved: int | None
    seconds: float | None


def _compiled(counted: Counted, made: Program, batch: Batch, mesh: Meshed) -> _Found:
    began = time.perf_counter()
    step, wanted = memory.compiled_or_wanted(made.step.lower(made.abstract_state, batch))
    seconds = time.perf_counter() - began
    if step is None:
        parts = memory.state_memory(made.abstract_state, batch) | {"total": wanted}
        return _Found(parts, [], None, seconds)
    text = step.as_text()
    parts = memory.compiled(counted.experiment, made.abstract_state, batch, step.memory_analysis())
    # The loss walks over a group of tokens a device; counted was one group of all of them.
    rounds = math.ceil(counted.open_loops / (batch_shards(mesh) * mesh.shape["sequence"]))
    return _Found(parts, collectives(text, rounds), bytes_moved(text, rounds), seconds)


def _by_formula(counted: Counted, made: Program, batch: Batch, mesh: Meshed) -> _Found:
    parts = memory.by_formula(counted.experiment, made.abstract_state, batch, counted.kept, mesh)
    sent = formula_collectives(counted.experiment, made.abstract_state.params, batch, mesh)
    return _Found(parts, sent, formula_moved(counted.experiment, parts), None)


def _concluded(
    name: str, counted: Counted, target: Target, mesh: Meshed, made: Program, found: _Found, changed: list[str],
    price: float | None,
) -> Plan:  # fmt: skip
    experiment, chip, limit = counted.experiment, target.chip, memory.available(target.chip)
    seconds, dtype = None, getattr(experiment.model, "dtype", "float32")
    fits = None if limit is None else 0 < found.memory["total"] <= limit
    if chip is not None and found.moved is not None:
        slices = [place * target.slices // mesh.size for place in range(mesh.size)]  # the outermost axis goes across
        work = counted.step / mesh.size, found.moved
        seconds = step_seconds(chip, dtype, *work, found.collectives, mesh.size, slices)
    bounds = (seconds.least, seconds.most) if seconds else ()
    chips = max(1, mesh.size // (chip.cores if chip else 1))
    return Plan(
        experiment=name,
        topology=target.name,
        devices=mesh.size,
        chips=chips,
        chip=chip.name if chip else target.compiler,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        changed=changed,
        compiler=target.compiler if found.seconds is not None else f"formula ({target.compiler})",
        compile_seconds=found.seconds,
        batch=described(counted.batch),
        tokens=positions(counted.batch),
        accumulate=experiment.accumulate,
        memory=found.memory,
        available=limit,
        fits=fits,
        model_flops=counted.model,
        halved_flops=counted.model - causal_flops(experiment.model, counted.batch) // 2,
        step_flops=counted.step,
        bytes_moved=found.moved,
        collectives=traffic(found.collectives),
        seconds=seconds,
        peak_flops=chip.peak(dtype) * mesh.size if chip else None,
        steps=experiment.steps,
        run=[whole_run(one, experiment.steps, chips, price) for one in bounds],
        left_whole=left_whole(made.abstract_state.params, mesh),
    )


def causal_flops(model: Any, batch: Batch) -> int:
    """Of the products of queries, keys and values of causal attention in one update: half of them meet the mask."""
    layers = model.layers if isinstance(model, Decoder) else 0
    layers = model.decoder_layers if isinstance(model, EncoderDecoder) else layers
    if not layers:
        return 0
    rows, length = batch.target_BT.shape
    width = (getattr(model, "head_width", None) or model.width // model.heads) * model.heads
    return 3 * layers * 4 * rows * length * length * width
